package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

const lan, vpn uint32 = 2, 5

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func route(dst, via string) plan.Route {
	return plan.Route{Dst: pfx(dst), Protocol: 3, Hop: plan.Hop{Link: lan, Via: netip.MustParseAddr(via)}}
}

// protecting is an Enforcer whose policy protects 172.31.0.0/16 by a session on tun0. It
// does not run.
func protecting(t *testing.T) (*Enforcer, *session) {
	t.Helper()
	e := New(nil, noJournal{}, Options{})
	e.setPolicy(e.policy())
	e.stay.Store(&staying{})
	e.facts.Links = []plan.Link{{Index: lan, Name: "eth0", Up: true}, {Index: vpn, Name: "tun0", Up: true}}
	e.names = map[uint32]string{lan: "eth0", vpn: "tun0"}
	s := &session{Session: Session{Tunnel: "tun0", Protect: []netip.Prefix{pfx("172.31.0.0/16")}}, link: vpn, up: true, id: LinkID{Index: vpn, Name: "tun0"}}
	e.sessions = []*session{s}
	e.rebuild()
	e.meetLinks()
	e.arm()
	if v := e.verdict("172.31.5.0/24"); v.Decision != plan.Conflict || e.sessionOf(v) != s {
		t.Fatalf("nothing is protected: %+v", v)
	}
	return e, s
}

func (e *Enforcer) verdict(dst string) plan.Verdict {
	r := route(dst, "192.168.1.66")
	return plan.Judge(e.policy(), &r)
}

// TestStates: what a session is said to be, the worst first.
func TestStates(t *testing.T) {
	missing := []netip.Prefix{pfx("10.0.0.0/8"), pfx("172.31.0.0/16")}
	for _, c := range []struct {
		name    string
		set     func(*Enforcer, *session)
		missing []netip.Prefix
		want    State
	}{
		{"all is well", func(*Enforcer, *session) {}, nil, Enforcing},
		{"another's route is missing", func(*Enforcer, *session) {}, missing[:1], Enforcing},
		{"its route is missing", func(*Enforcer, *session) {}, missing, Reconnecting},
		{"the tunnel is down", func(_ *Enforcer, s *session) { s.up = false }, nil, Reconnecting},
		{"the guard holds", func(_ *Enforcer, s *session) { s.loss = true }, nil, Reconnecting},
		{"it failed", func(_ *Enforcer, s *session) { s.err, s.up = errors.New("no"), false }, nil, Failed},
		{"no tunnel", func(_ *Enforcer, s *session) { s.err, s.link = errors.New("no"), 0 }, nil, Connecting},
		{"nothing is changed", func(e *Enforcer, _ *session) { e.opt.Audit = true }, missing, Auditing},
		{"nothing is changed, and the tunnel is down", func(e *Enforcer, s *session) { e.opt.Audit, s.up = true, false }, nil, Reconnecting},
	} {
		e, s := protecting(t)
		c.set(e, s)
		e.closing = s
		if e.settle(c.missing); s.state != c.want || e.closing != nil {
			t.Errorf("%s: %s, want %s; closing %v", c.name, s.state, c.want, e.closing)
		}
	}
}

// TestFirstErrorStays: a session tells of what went wrong first, and only of what is its own.
func TestFirstErrorStays(t *testing.T) {
	first, other := errors.New("first"), errors.New("other")
	e, s := protecting(t)
	e.fail(e.verdict("203.0.113.0/24"), other)
	e.swallowed([]plan.Route{route("198.51.100.7/32", "192.168.1.1")})
	away := plan.Action{Kind: plan.Restore, Route: route("203.0.113.0/24", "192.168.1.66")}
	e.noteFailure(&away, other)
	if s.err != nil {
		t.Errorf("another's fault: %v", s.err)
	}
	for _, err := range []error{ErrGone, ErrNotNow, context.Canceled} {
		a := plan.Action{Kind: plan.Remove, Route: route("172.31.5.0/24", "192.168.1.66"), Verdict: e.verdict("172.31.5.0/24")}
		if e.noteFailure(&a, err); s.err != nil {
			t.Errorf("%v fails the session: %v", err, s.err)
		}
	}
	e.fail(e.verdict("172.31.5.0/24"), first)
	e.fail(e.verdict("172.31.5.0/24"), other)
	in := plan.Route{Dst: pfx("198.51.100.7/32"), Hop: plan.Hop{Link: vpn}}
	e.swallowed([]plan.Route{in})
	a := plan.Action{Kind: plan.Remove, Route: route("172.31.5.0/24", "192.168.1.66"), Verdict: e.verdict("172.31.5.0/24")}
	e.noteFailure(&a, other)
	if s.err != first {
		t.Errorf("it says %v", s.err)
	}
	s.err = nil
	if e.noteFailure(&a, other); !errors.Is(s.err, other) || !strings.Contains(fmt.Sprint(s.err), "172.31.5.0/24") {
		t.Errorf("a refused removal: %v", s.err)
	}
	s.err, e.opt.Audit = nil, true
	if e.swallowed([]plan.Route{in}); s.err != nil {
		t.Errorf("where nothing is changed: %v", s.err)
	}
	e.opt.Audit = false
	if e.swallowed([]plan.Route{in}); s.err == nil || !strings.Contains(s.err.Error(), "198.51.100.7 is reached through its own tunnel") {
		t.Errorf("swallowed: %v", s.err)
	}
}

// TestNoted: what becomes of an action is told, or why a held route is not back.
func TestNoted(t *testing.T) {
	e, s := protecting(t)
	var did []plan.Kind
	e.done = func(a *plan.Action) { did = append(did, a.Kind) }
	r := route("172.31.5.0/24", "192.168.1.66")
	for _, c := range []struct {
		kind    plan.Kind
		err     error
		done    bool
		told    int
		notBack error
	}{
		{plan.Remove, nil, true, 1, nil},
		{plan.Remove, ErrAlready, true, 0, nil},
		{plan.Remove, syscall.EPERM, false, 0, nil},
		{plan.Restore, nil, true, 0, nil},
		{plan.Restore, ErrAlready, true, 0, nil},
		{plan.Restore, syscall.EPERM, false, 0, syscall.EPERM},
		{plan.Put, nil, true, 0, nil},
		{plan.Put, syscall.EPERM, false, 0, nil},
	} {
		did, e.incidents, s.err = nil, incidentRing{}, nil
		clear(e.notBack)
		a := plan.Action{Kind: c.kind, Route: r, Held: 9, Verdict: e.verdict("172.31.5.0/24")}
		e.note(&a, c.err, occasion{path: "level"})
		if told := len(e.incidents.all()); (len(did) == 1) != c.done || told != c.told || e.notBack[9] != c.notBack || (s.err != nil) != !c.done {
			t.Errorf("%v, %v: done %v, told %d times, not back: %v, session: %v", c.kind, c.err, did, told, e.notBack[9], s.err)
		}
	}
	e.notBack[9] = syscall.EPERM
	e.held.add(Entry{ID: 9, Route: r})
	if e.forget(9); len(e.notBack) != 0 {
		t.Errorf("what is crossed out is not back because of %v", e.notBack)
	}
}

// TestClosedStatus: what is not back is not called restored, beside what else is wrong.
func TestClosedStatus(t *testing.T) {
	e, s := protecting(t)
	s.err = errors.New("a fault")
	e.held.add(Entry{ID: 1, Route: route("203.0.113.0/24", "192.168.1.66")}, Entry{ID: 2, Route: route("172.31.5.0/24", "192.168.1.66")})
	const first = "1 held routes cannot come back yet, the first is 203.0.113.0/24 via 192.168.1.66 dev eth0 proto 3: "
	for why, set := range map[string]func(){
		"what it needs is not there": func() {},
		"operation not permitted":    func() { e.notBack[1] = syscall.EPERM },
		"interface eth0 is down":     func() { e.facts.Links[0].Up = false },
	} {
		clear(e.notBack)
		e.facts.Links[0].Up = true
		set()
		if st := e.closedStatus(s); st.State != Restoring || st.Error != "a fault; "+first+why || len(st.Held) != 1 {
			t.Errorf("%s: %s, %q, %d held", why, st.State, st.Error, len(st.Held))
		}
	}
	s.err = nil
	if st := e.closedStatus(s); !strings.HasPrefix(st.Error, first) {
		t.Errorf("%q", st.Error)
	}
	e.held.remove(1)
	if st := e.closedStatus(s); st.State != Restored || st.Error != "" {
		t.Errorf("%s, %q", st.State, st.Error)
	}
	s.poser = "another has the name"
	if st := e.statusOf(s); st.Error != "another has the name" || st.Interface != "" {
		t.Errorf("%q, %q", st.Error, st.Interface)
	}
	s.err, s.id.Name = errors.New("a fault"), "vpn0"
	if st := e.statusOf(s); st.Error != "another has the name; a fault" || st.Interface != "vpn0" {
		t.Errorf("%q, %q", st.Error, st.Interface)
	}
	s.Exclude, s.Servers = []netip.Prefix{pfx("192.0.2.0/24")}, []Server{{Addr: netip.MustParseAddrPort("[::ffff:198.51.100.7]:1194")}}
	if got := fmt.Sprint(e.excluded(s)); got != "[192.0.2.0/24 198.51.100.7/32]" {
		t.Errorf("excluded %s", got)
	}
}

// TestGroups: of what came too fast each kind is told as one, and nothing that was not done.
func TestGroups(t *testing.T) {
	e, s := protecting(t)
	e.opt.ProtocolName = func(p uint8) string { return fmt.Sprint("proto", p) }
	at := time.Now()
	event := func(dst string, ms int, set func(*Event)) {
		ev := Event{Change: Added, Route: route(dst, "192.168.1.66"), Seen: at, Done: at.Add(time.Duration(ms) * time.Millisecond), Port: 77,
			Answer: Answer{Verdict: e.verdict(dst), tally: &s.tally, Delete: true}}
		set(&ev)
		e.grouped.add(&ev, "edge")
	}
	removed := func(ev *Event) { ev.Removed = true }
	event("172.31.1.0/24", 1, func(ev *Event) { removed(ev); ev.Process = "dhclient" })
	event("172.31.2.0/24", 9, removed)
	event("172.31.3.0/24", 3, removed)
	event("172.31.4.0/24", 1, func(ev *Event) { ev.Err = syscall.EPERM })
	event("172.31.5.0/24", 1, func(ev *Event) { ev.Idle = true })                            // nothing was there
	event("172.31.6.0/24", 1, func(ev *Event) { ev.Answer.Delete, ev.Err = false, ErrGone }) // it was not asked for
	event("203.0.113.0/24", 1, removed)                                                      // of no session
	event("172.31.0.0/16", 1, func(ev *Event) {
		ev.Readded, ev.Change, ev.Answer.Put = true, Deleted, &plan.Route{Dst: pfx("172.31.0.0/16")}
	})
	event("172.31.0.0/16", 1, func(ev *Event) {
		ev.Readded, ev.Change, ev.Answer.Put = true, Deleted, &plan.Route{Dst: pfx("172.31.0.0/16")}
	})
	e.tellGroups(e.grouped)
	got := map[string]string{}
	for _, in := range e.incidents.all() {
		got[in.What] = fmt.Sprint(in.Count, " ", in.Exposed, " ", in.Tunnel, " ", in.Path, " ", in.By, " ", in.Route, ": ", in.Reason, in.Error)
	}
	want := map[string]string{
		"removed": "3 9000 tun0 edge dhclient (process 77, protocol proto3) 172.31.0.0/16 dev eth0: 3 routes like 172.31.1.0/24, " +
			"longer than 172.31.0.0/16, leaves by eth0: they came faster than they could be told one by one",
		"failed":  "1 1000 tun0 edge netlink port 77 (protocol proto3) 172.31.4.0/24 via 192.168.1.66 dev eth0 proto proto3: longer than 172.31.0.0/16, leaves by eth0operation not permitted",
		"readded": "2 1000 tun0 edge netlink port 77 (protocol proto0) 172.31.0.0/16 proto proto0: the tunnel's route was deleted, 2 times: they came faster than they could be told one by one",
	}
	for what := range want {
		if got[what] != want[what] {
			t.Errorf("%s:\n%s\nwant\n%s", what, got[what], want[what])
		}
	}
	if len(got) != len(want) || len(e.incidents.all()) != len(want) {
		t.Errorf("told: %v", got)
	}
}

// TestGroupsAreBounded: beyond the bound each prefix has one more, for whatever differs.
func TestGroupsAreBounded(t *testing.T) {
	e, _ := protecting(t)
	for i := range 3 * groupsKept {
		ev := Event{Change: Added, Route: route("172.31.1.0/24", "192.168.1.66"), Answer: Answer{Verdict: e.verdict("172.31.1.0/24")}, Removed: true, Port: uint32(i + 1)}
		e.grouped.add(&ev, "edge")
	}
	var sum uint64
	for _, g := range e.grouped {
		sum += g.count
	}
	if len(e.grouped) != groupsKept+1 || sum != 3*groupsKept {
		t.Errorf("%d groups of %d", len(e.grouped), sum)
	}
}

// TestTallies: what is done counts for the session that it belongs to, else for the one
// that ends, else for all together; an ended session has none to fail.
func TestTallies(t *testing.T) {
	e, s := protecting(t)
	ended := &session{}
	inside, outside := route("172.31.5.0/24", "192.168.1.66"), route("203.0.113.0/24", "192.168.1.66")
	e.held.add(Entry{ID: 4, Route: inside})
	e.held.owe(4, &ended.tally)
	for _, c := range []struct {
		name    string
		a       plan.Action
		closing *session
		want    *tally
	}{
		{"a removal", plan.Action{Kind: plan.Remove, Route: inside, Verdict: e.verdict("172.31.5.0/24")}, ended, &s.tally},
		{"a removal for nobody", plan.Action{Kind: plan.Remove, Route: inside}, ended, nil},
		{"a restore for whom it was removed", plan.Action{Kind: plan.Restore, Route: inside, Held: 4}, nil, &ended.tally},
		{"a restore of what nobody knows", plan.Action{Kind: plan.Restore, Route: inside, Held: 5}, nil, &s.tally},
		{"a restore at the end", plan.Action{Kind: plan.Restore, Route: outside}, ended, &ended.tally},
		{"a restore for nobody", plan.Action{Kind: plan.Restore, Route: outside}, nil, nil},
		{"a put inside", plan.Action{Kind: plan.Put, Route: inside}, ended, &s.tally},
	} {
		if e.closing = c.closing; e.tallyFor(&c.a) != c.want {
			t.Errorf("%s counts for another", c.name)
		}
	}
	ended.tally.owner = ended
	if e.owner(&s.tally) != s || e.owner(&ended.tally) != nil || e.owner(nil) != nil || e.owner(&tally{}) != nil {
		t.Error("whose tally it is")
	}
}
