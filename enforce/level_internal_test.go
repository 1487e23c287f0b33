package enforce

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

// TestCrossedOut: which entries what became of an action crosses out.
func TestCrossedOut(t *testing.T) {
	const old, fresh = 3, 8
	e, _ := protecting(t)
	r := route("172.31.5.0/24", "192.168.1.66")
	e.held.add(Entry{ID: old, Route: r})
	newer, other := r, r
	newer.Expires, other.PrefSrc = 60, netip.MustParseAddr("192.168.1.10")
	edge, level := occasion{events: map[plan.Slot]*Event{}}, occasion{}
	for _, c := range []struct {
		name string
		a    plan.Action
		err  error
		id   uint64
		on   occasion
		want []uint64
	}{
		{"it is back", plan.Action{Kind: plan.Restore, Route: r, Held: old}, nil, 0, level, []uint64{old}},
		{"it was there", plan.Action{Kind: plan.Restore, Route: r, Held: old}, ErrAlready, 0, level, []uint64{old}},
		{"it cannot be any more", plan.Action{Kind: plan.Restore, Route: r, Held: old}, ErrGone, 0, level, []uint64{old}},
		{"it cannot be now", plan.Action{Kind: plan.Restore, Route: r, Held: old}, ErrNotNow, 0, level, nil},
		{"it is forgotten", plan.Action{Kind: plan.Forget, Route: r, Held: old}, nil, 0, level, []uint64{old}},
		{"not written down", plan.Action{Kind: plan.Remove, Route: r}, syscall.EPERM, 0, level, nil},
		{"held as it is", plan.Action{Kind: plan.Remove, Route: r, Held: old}, syscall.EPERM, old, level, nil},
		{"it still stands", plan.Action{Kind: plan.Remove, Route: r}, syscall.EPERM, fresh, level, []uint64{fresh}},
		{"it is out", plan.Action{Kind: plan.Remove, Route: r}, nil, fresh, level, nil},
		{"the newer is out", plan.Action{Kind: plan.Remove, Route: newer, Held: old}, nil, fresh, level, []uint64{old}},
		{"it was gone as the table was read", plan.Action{Kind: plan.Remove, Route: other, Held: old}, ErrAlready, fresh, level, []uint64{old}},
		{"the news is old", plan.Action{Kind: plan.Remove, Route: other, Held: old}, ErrAlready, fresh, edge, []uint64{fresh}},
		{"the news is old, of nothing held", plan.Action{Kind: plan.Remove, Route: other}, ErrAlready, fresh, edge, []uint64{fresh}},
		{"the edge path was first", plan.Action{Kind: plan.Remove, Route: newer, Held: old}, ErrAlready, fresh, edge, []uint64{old}},
		{"a put", plan.Action{Kind: plan.Put, Route: r}, nil, fresh, level, nil},
	} {
		if got := e.outcome(&c.a, c.err, c.id, c.on); !slices.Equal(got, c.want) {
			t.Errorf("%s: crosses out %v, want %v", c.name, got, c.want)
		}
	}
}

// TestWrittenDown: what needs an entry, and what renews the life of one.
func TestWrittenDown(t *testing.T) {
	e, _ := protecting(t)
	r := route("172.31.5.0/24", "192.168.1.66")
	changed := func(f func(*plan.Route)) plan.Route { c := r; f(&c); return c }
	living := changed(func(c *plan.Route) { c.Expires, c.Dst, c.Origin = 600, pfx("172.31.6.0/24"), plan.Leased })
	e.held.add(Entry{ID: 1, Route: r}, Entry{ID: 2, Route: living})
	for _, c := range []struct {
		name         string
		a            plan.Action
		write, renew bool
	}{
		{"new", plan.Action{Kind: plan.Remove, Hold: true, Route: r}, true, false},
		{"not to come back", plan.Action{Kind: plan.Remove, Route: r}, false, false},
		{"a restore", plan.Action{Kind: plan.Restore, Hold: true, Route: r}, false, false},
		{"held already", plan.Action{Kind: plan.Remove, Hold: true, Route: r, Held: 1}, false, false},
		{"held, and not to come back", plan.Action{Kind: plan.Remove, Route: living, Held: 2}, false, false},
		{"another", plan.Action{Kind: plan.Remove, Hold: true, Route: changed(func(c *plan.Route) { c.PrefSrc = netip.MustParseAddr("192.168.1.10") }), Held: 1}, true, false},
		{"other bytes", plan.Action{Kind: plan.Remove, Hold: true, Route: changed(func(c *plan.Route) { c.Raw = "mtu" }), Held: 1}, true, false},
		{"it has a life now", plan.Action{Kind: plan.Remove, Hold: true, Route: changed(func(c *plan.Route) { c.Expires = 60 }), Held: 1}, false, true},
		{"renewed", plan.Action{Kind: plan.Remove, Hold: true, Route: func() plan.Route { c := living; c.Expires, c.Raw = 900, "x"; return c }(), Held: 2}, false, true},
		{"the life is not told yet", plan.Action{Kind: plan.Remove, Hold: true, Route: func() plan.Route { c := living; c.Expires = 0; return c }(), Held: 2}, false, true},
		{"made endless by hand", plan.Action{Kind: plan.Remove, Hold: true, Route: func() plan.Route { c := living; c.Expires, c.Origin = 0, plan.Foreign; return c }(), Held: 2}, true, false},
		{"another with a life", plan.Action{Kind: plan.Remove, Hold: true, Route: func() plan.Route { c := living; c.Metric = 7; return c }(), Held: 2}, true, false},
	} {
		if w, l := e.mustWrite(&c.a), e.renewsLife(&c.a); w != c.write || l != c.renew {
			t.Errorf("%s: written %t, renewed %t", c.name, w, l)
		}
	}
}

// TestPlaceOfANewcomer: news of a route that came behind those of its slot, which are
// held, has it come back behind them; not what stood first, nor what the table shows.
func TestPlaceOfANewcomer(t *testing.T) {
	for _, c := range []struct {
		placed, first bool
		want          uint64
	}{{false, false, 3}, {false, true, 0}, {true, false, 0}} {
		e, s := protecting(t)
		e.held.add(Entry{ID: 2, Route: route("172.31.5.0/24", "192.168.1.60"), First: true}, Entry{ID: 3, Route: route("172.31.5.0/24", "192.168.1.61")},
			Entry{ID: 4, Route: route("172.31.5.0/24", "192.168.1.62")})
		e.lastID = 4
		a := plan.Action{Kind: plan.Remove, Hold: true, First: c.first, Route: route("172.31.5.0/24", "192.168.1.66"), Verdict: e.verdict("172.31.5.0/24")}
		actions, ids := e.writeDown([]plan.Action{{Kind: plan.Remove, Route: route("172.31.9.0/24", "192.168.1.66"), Held: 77}, a}, c.placed)
		if len(actions) != 2 || ids[0] != 77 || ids[1] != 5 {
			t.Fatalf("%d actions, entries %v", len(actions), ids)
		}
		if h := e.held.get(5); h.Place != c.want || h.First != c.first || e.held.tally(5) != &s.tally {
			t.Errorf("placed %t, first %t: %+v", c.placed, c.first, h)
		}
	}
}

// fullDisk is a Journal that keeps nothing.
type fullDisk struct{ noJournal }

func (fullDisk) Hold([]Entry) error { return syscall.ENOSPC }

// TestLeftOut: what cannot be written down stays, the rest is carried out.
func TestLeftOut(t *testing.T) {
	e, s := protecting(t)
	e.journal = fullDisk{}
	v := e.verdict("172.31.5.0/24")
	actions, ids := e.writeDown([]plan.Action{
		{Kind: plan.Remove, Hold: true, Route: route("172.31.5.0/24", "192.168.1.66"), Verdict: v}, {Kind: plan.Remove, Route: route("172.31.6.0/24", "192.168.1.66")}, {Kind: plan.Put},
	}, true)
	if len(actions) != 2 || len(ids) != 2 || actions[0].Route.Dst != pfx("172.31.6.0/24") || !e.unwritten || !errors.Is(s.err, syscall.ENOSPC) {
		t.Errorf("%+v, %v, unwritten %t, %v", actions, ids, e.unwritten, s.err)
	}
	e.stay.Store(&staying{pfx("172.31.6.0/24"): {func() plan.Route { r := route("172.31.6.0/24", "192.168.1.66"); r.Metric = 7; return r }()}})
	if got := e.holdAtRisk(actions); got != nil || e.held.len() != 0 || e.lastID != 0 {
		t.Errorf("held at risk: %v, %d in all", got, e.held.len())
	}
	e.journal = noJournal{}
	if got := e.holdAtRisk(append(actions, actions[0])); !slices.Equal(got, []uint64{1}) || !e.held.get(1).First {
		t.Errorf("held at risk: %v", got)
	}
	if e.journal = (fullDisk{}); e.displaced(nil) != nil || e.displaced(syscall.EPERM) != syscall.EPERM {
		t.Error("another result of a delete")
	}
	err := e.displaced(&DisplacedError{Routes: []plan.Route{route("203.0.113.0/24", "192.168.1.1")}, Result: ErrAlready})
	if err != ErrAlready || e.pace.timer == nil {
		t.Errorf("displaced, which cannot be written down: %v", err)
	}
}

// TestUnknownLinks: what is removed of an interface that came after the last look.
func TestUnknownLinks(t *testing.T) {
	e, _ := protecting(t)
	known, late := route("172.31.5.0/24", "192.168.1.66"), plan.Route{Dst: pfx("172.31.5.0/24"), Hop: plan.Hop{Link: 9}}
	both := known.WithHops(known.Hop, late.Hop)
	for _, c := range []struct {
		name string
		a    plan.Action
		want bool
	}{
		{"known", plan.Action{Kind: plan.Remove, Route: known}, false},
		{"late", plan.Action{Kind: plan.Remove, Route: late}, true},
		{"a leg", plan.Action{Kind: plan.Remove, Route: both}, true},
		{"leads nowhere", plan.Action{Kind: plan.Remove, Route: plan.Route{Dst: pfx("172.31.5.0/24")}}, false},
		{"is put", plan.Action{Kind: plan.Put, Route: late}, false},
	} {
		if got := e.unknownLinks(&plan.Plan{Actions: []plan.Action{{Kind: plan.Put}, c.a}}); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
		if v := e.view.Load(); c.a.Kind == plan.Remove && v.knows(&c.a.Route) == c.want {
			t.Errorf("%s: the edge path knows it: %t", c.name, !c.want)
		}
	}
}

// TestUnseen: a connected route that came after the facts is held; one that was there
// before them has no address, and is not.
func TestUnseen(t *testing.T) {
	e, _ := protecting(t)
	connected := func(dst string) plan.Route {
		return plan.Route{Dst: pfx(dst), Hop: plan.Hop{Link: lan}, Origin: plan.Kernel, Protocol: 2}
	}
	forged, late, attack := connected("172.31.5.0/24"), connected("172.31.6.0/24"), route("172.31.7.0/24", "192.168.1.66")
	pl := plan.Plan{Policy: e.policy(), Actions: []plan.Action{
		{Kind: plan.Remove, Route: forged}, {Kind: plan.Remove, Route: attack}, {Kind: plan.Put, Route: late}, {Kind: plan.Remove, Route: connected("172.31.8.0/24"), Hold: true},
	}}
	seen := e.addressless(&pl)
	if len(seen) != 1 || !seen[forged.Identity()] {
		t.Errorf("without an address: %v", seen)
	}
	pl.Actions = append(pl.Actions, plan.Action{Kind: plan.Remove, Route: late})
	e.holdUnseen(&pl, seen)
	var held []string
	for _, a := range pl.Actions {
		held = append(held, fmt.Sprint(a.Hold))
	}
	if got := strings.Join(held, " "); got != "false false false true true" {
		t.Errorf("held: %s", got)
	}
	if !holds(pl.Actions) || holds(pl.Actions[:3]) || holds([]plan.Action{{Kind: plan.Restore, Hold: true}}) {
		t.Error("whether anything is held")
	}
}

// TestExposedSince: the time is that of the first news, but of what stood before it is now.
func TestExposedSince(t *testing.T) {
	e, _ := protecting(t)
	now := time.Now()
	if e.baseline, e.hinted = false, now.Add(-time.Hour); !e.exposedSince().Equal(e.hinted) {
		t.Errorf("since %v", e.exposedSince())
	}
	if e.baseline = true; e.exposedSince().Before(now) {
		t.Errorf("at a baseline since %v", e.exposedSince())
	}
	if e.baseline, e.hinted = false, (time.Time{}); e.exposedSince().Before(now) {
		t.Errorf("without news since %v", e.exposedSince())
	}
}

// TestPlaces: of those that stood behind what comes back, the ones that stay held come
// back behind others, in the order that they have.
func TestPlaces(t *testing.T) {
	r := route("172.31.5.0/24", "192.168.1.60")
	made := func() (h heldRoutes) {
		h.add(Entry{ID: 1, Route: r, First: true}, Entry{ID: 2, Route: r, First: true}, Entry{ID: 3, Route: r}, Entry{ID: 4, Route: r, First: true},
			Entry{ID: 5, Route: route("172.31.6.0/24", "192.168.1.60"), First: true})
		return h
	}
	for _, c := range []struct {
		place uint64
		comes uint64
		want  string
		last  uint64
	}{{1, 9, "2→4 4→2", 2}, {1, 2, "4→4", 3}, {2, 9, "4→4", 3}, {4, 9, "", 3}, {0, 4, "1→2 2→1", 1}} {
		h := made()
		var got []string
		for _, o := range h.demote(&plan.Action{Route: r, Place: c.place}, func(id uint64) bool { return id == c.comes }) {
			if got = append(got, fmt.Sprintf("%d→%d", o.ID, o.Place)); o.First || h.get(o.ID).First || h.get(o.ID).Place != o.Place {
				t.Errorf("%+v comes back first", o)
			}
		}
		if text := strings.Join(got, " "); text != c.want || h.lastPlace(r.Slot()) != c.last {
			t.Errorf("behind %d, while %d comes: %s, the last place is %d; want %s, %d", c.place, c.comes, text, h.lastPlace(r.Slot()), c.want, c.last)
		}
	}
	h := made()
	sum := &tally{}
	h.owe(99, sum)
	if h.tally(1) != nil || h.tally(99) != nil || h.get(99) != nil {
		t.Error("what is not held is owed")
	}
	h.owe(2, sum)
	h.remove(99, 1, 4)
	if h.len() != 3 || h.first().ID != 2 || h.tally(2) != sum || h.superseded(&r) == 0 {
		t.Errorf("%d are left, the first is %+v", h.len(), h.first())
	}
	h.remove(2, 3, 5)
	if h.len() != 0 || h.first() != nil || h.superseded(&r) != 0 || h.lastPlace(r.Slot()) != 0 || len(h.bySlot) != 0 {
		t.Errorf("none is left, but %+v", h)
	}
}

// TestSharedIsTakenApartLater: of a route that shares the tunnel's legs the first news is
// noted, for the next reading, and nothing is written down.
func TestSharedIsTakenApartLater(t *testing.T) {
	e, _ := protecting(t)
	shared := route("172.31.0.0/16", "192.168.1.66")
	shared = shared.WithHops(shared.Hop, plan.Hop{Link: vpn})
	first := time.Now().Add(-time.Second)
	for _, seen := range []time.Time{first, first.Add(time.Millisecond)} {
		v := plan.Judge(e.policy(), &shared)
		if !v.Shared || v.Decision != plan.Conflict {
			t.Fatalf("%+v", v)
		}
		e.event(t.Context(), Event{Change: Added, Route: shared, Answer: Answer{Verdict: v, Tell: true}, Seen: seen})
	}
	if !e.hinted.Equal(first) || len(e.written.actions) != 0 || e.pace.timer == nil {
		t.Errorf("noted %v of %v, %d to be written down", e.hinted, first, len(e.written.actions))
	}
	e.hinted = time.Time{}
	alone := route("172.31.5.0/24", "192.168.1.66")
	e.event(t.Context(), Event{Change: Added, Route: alone, Answer: Answer{Verdict: e.verdict("172.31.5.0/24")}, Seen: first})
	if !e.hinted.IsZero() || len(e.written.actions) != 1 || e.written.actions[0].Hold {
		t.Errorf("an attack: noted %v, %+v", e.hinted, e.written.actions)
	}
}

// TestOwnNews: which routes of the tunnel's own let fewer compete with it, and when its
// route may be put at once.
func TestOwnNews(t *testing.T) {
	own := plan.Route{Dst: pfx("172.31.0.0/16"), Hop: plan.Hop{Link: vpn}, Metric: 50}
	en := &plan.Entry{Prefix: own.Dst, Route: own, Class: plan.Protected}
	for name, c := range map[string]struct {
		set  func(*plan.Route)
		want bool
	}{
		"preferred": {func(r *plan.Route) { r.Metric = 49 }, true}, "the same": {func(*plan.Route) {}, false}, "not preferred": {func(r *plan.Route) { r.Metric = 51 }, false},
		"another":  {func(r *plan.Route) { r.Metric, r.Dst = 1, pfx("172.31.0.0/24") }, false},
		"of a TOS": {func(r *plan.Route) { r.Metric, r.TOS = 1, 8 }, false}, "of a source": {func(r *plan.Route) { r.Metric, r.Src = 1, pfx("10.0.0.0/8") }, false},
	} {
		r := own
		c.set(&r)
		if got := betters(&r, en); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	e, _ := protecting(t)
	v, before := e.view.Load(), *e.view.Load()
	before.before = &plan.Policy{}
	entry := e.verdict("172.31.5.0/24").Entry
	seen := *entry
	seen.Known = true
	if !v.mayPut(entry) || before.mayPut(entry) || !before.mayPut(&seen) {
		t.Errorf("put at once: %t; before the table is read: %t, and one that was seen %t", v.mayPut(entry), before.mayPut(entry), before.mayPut(&seen))
	}
}
