package enforcetest

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

func conformSubscribe(t *testing.T, l Lab) {
	for n := range 20 {
		routes := l.both(n, l.Links[0])
		w := l.watchFrom(t, nil, func() {
			for _, r := range routes {
				if err := l.Add(r, Add); err != nil {
					t.Errorf("add %s: %v", Text(r), err)
				}
			}
		})
		for _, r := range routes {
			eventually(t, "announcement of "+Text(r), func() bool { return w.saw(enforce.Added, r) })
		}
		w.stop(t)
	}
}

func conformReach(t *testing.T, l Lab) {
	w := l.watch(t, nil)
	for n := range 100 {
		for _, r := range l.both(n, l.Links[n%2]) {
			l.addDelete(t, w, r)
		}
	}
	for n := range 100 {
		for _, r := range l.both(n, l.Links[n%2]) {
			eventually(t, "announcement of "+Text(r), func() bool { return w.saw(enforce.Added, r) })
			eventually(t, "announcement of the deletion of "+Text(r), func() bool { return w.saw(enforce.Deleted, r) })
			if w.when(enforce.Added, r) > w.when(enforce.Deleted, r) {
				t.Errorf("%s was announced as deleted before it was as added", Text(r))
			}
		}
	}
	if bad := w.withRaw(); bad != "" {
		t.Errorf("the edge's scratch route has Raw: %s", bad)
	}
}

// addDelete adds a route and deletes it again, at once where the platform's
// announcements allow.
func (l *Lab) addDelete(t *testing.T, w *watcher, r plan.Route) {
	t.Helper()
	l.add(t, Add, r)
	if l.Features.KeyOnly {
		eventually(t, "announcement of "+Text(r), func() bool { return w.saw(enforce.Added, r) })
	}
	if err := l.Delete(r); err != nil {
		t.Fatalf("delete %s: %v", Text(r), err)
	}
}

func (w *watcher) withRaw() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.seen {
		if s.route.Raw != "" {
			return Text(s.route)
		}
	}
	return ""
}

// deleteOnAdd answers the announcement of a route with its deletion.
func deleteOnAdd(target plan.Route) enforce.Edge {
	return func(c enforce.Change, r *plan.Route) enforce.Answer {
		return enforce.Answer{Delete: c == enforce.Added && alike(*r, target)}
	}
}

func conformEdgeDelete(t *testing.T, l Lab) {
	for family, routes := range l.variants(t) {
		l.add(t, Append, routes...)
		for _, target := range routes {
			t.Run(family+" "+Text(target), func(t *testing.T) { l.edgeDelete(t, target) })
		}
	}
}

// edgeDelete takes one of the variants away, adds it again under a watch that
// deletes it, and puts it back for the next.
func (l *Lab) edgeDelete(t *testing.T, target plan.Route) {
	l.apply(t, plan.Action{Kind: plan.Remove, Route: l.mustFind(t, target)})
	want := l.text(t)
	w := l.watch(t, deleteOnAdd(target))
	l.add(t, Append, target)
	ev := w.event(t, target.Dst)
	w.stop(t)
	if ev.Err != nil || !ev.Answer.Delete || ev.Change != enforce.Added || !alike(ev.Route, target) {
		t.Errorf("told %v %s, delete %v, error %v", ev.Change, Text(ev.Route), ev.Answer.Delete, ev.Err)
	}
	if ev.Done.Before(ev.Seen) || ev.Seen.IsZero() {
		t.Errorf("seen %v, done %v", ev.Seen, ev.Done)
	}
	l.sameSet(t, want, "after the edge's delete")
	l.add(t, Append, target)
}

func conformEdgePut(t *testing.T, l Lab) {
	for i, put := range l.both(1, l.Tunnel) {
		trigger := l.both(2, l.Links[0])[i]
		put.Origin, put.Protocol = plan.Own, 0
		w := l.watch(t, func(c enforce.Change, r *plan.Route) enforce.Answer {
			if c != enforce.Added || !alike(*r, trigger) {
				return enforce.Answer{}
			}
			return enforce.Answer{Put: &put, Delete: true}
		})
		l.add(t, Add, trigger)
		if ev := w.event(t, trigger.Dst); ev.Err != nil {
			t.Errorf("edge answer: %v", ev.Err)
		}
		if got := l.mustFind(t, put); got.Origin != plan.Own {
			t.Errorf("%s has origin %v, want own", Text(got), got.Origin)
		}
		eventually(t, "announcement of the delete", func() bool { return w.saw(enforce.Deleted, trigger) })
		if n := w.when(enforce.Added, put); n >= 0 && n > w.when(enforce.Deleted, trigger) {
			t.Error("the delete was carried out before the put")
		}
		w.stop(t)
		if _, stands := l.find(t, trigger); stands {
			t.Errorf("%s was not deleted", Text(trigger))
		}
	}
}

func conformUntold(t *testing.T, l Lab) {
	last := l.both(9, l.Links[0])[0]
	w := l.watch(t, func(c enforce.Change, r *plan.Route) enforce.Answer {
		return enforce.Answer{Tell: alike(*r, last)}
	})
	l.add(t, Add, l.both(1, l.Links[0])...)
	l.add(t, Add, last)
	eventually(t, "event", func() bool { return len(w.sink.Events()) > 0 })
	if ev := <-w.sink.Events(); !alike(ev.Route, last) {
		t.Errorf("told of %s, want only %s", Text(ev.Route), Text(last))
	}
	w.stop(t)
}

func conformEventRestore(t *testing.T, l Lab) {
	for family, routes := range l.variants(t) {
		for _, target := range routes {
			t.Run(family+" "+Text(target), func(t *testing.T) { l.eventRestore(t, target) })
		}
	}
}

func (l *Lab) eventRestore(t *testing.T, target plan.Route) {
	l.add(t, Append, target)
	want, read := l.text(t), l.mustFind(t, target)
	l.apply(t, plan.Action{Kind: plan.Remove, Route: read})
	w := l.watch(t, deleteOnAdd(target))
	l.add(t, Append, target)
	ev := w.event(t, target.Dst)
	w.stop(t)
	if !ev.Route.Same(read) {
		t.Errorf("told %+v, read %+v", ev.Route, read)
	}
	l.apply(t, plan.Action{Kind: plan.Restore, Route: ev.Route})
	l.same(t, want, "after restoring the event's route")
	l.apply(t, plan.Action{Kind: plan.Remove, Route: l.mustFind(t, target)})
}

func conformRemove(t *testing.T, l Lab) {
	for family, routes := range l.variants(t) {
		l.add(t, Append, routes...)
		for i, target := range routes {
			t.Run(family+" "+Text(target), func(t *testing.T) {
				l.removeTwice(t, target, routes[i+1:])
			})
		}
		for _, target := range routes {
			if _, stands := l.find(t, target); stands {
				t.Errorf("%s still stands", Text(target))
			}
		}
	}
}

// removeTwice removes a route, then once more, and checks that the others
// that stood still do.
func (l *Lab) removeTwice(t *testing.T, target plan.Route, others []plan.Route) {
	read := l.mustFind(t, target)
	count := len(l.table(t))
	for _, time := range []string{"first", "second"} {
		l.apply(t, plan.Action{Kind: plan.Remove, Route: read})
		if _, stands := l.find(t, target); stands {
			t.Fatalf("%s still stands after the %s remove", Text(target), time)
		}
		if n := len(l.table(t)); n != count-1 {
			t.Errorf("the %s remove left %d routes of %d", time, n, count)
		}
		for _, o := range others {
			l.mustFind(t, o)
		}
	}
}

func conformTwin(t *testing.T, l Lab) {
	if !l.Features.Metrics {
		t.Skip("the platform has no metrics")
	}
	zero := l.both(1, l.Links[0])[0]
	hundred := zero
	hundred.Metric = 100
	l.add(t, Append, zero, hundred)
	read := l.mustFind(t, zero)
	if err := l.Delete(read); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []plan.Kind{plan.Remove, plan.Withdraw} {
		l.apply(t, plan.Action{Kind: kind, Route: read})
		l.mustFind(t, hundred)
	}
	w := l.watch(t, deleteOnAdd(zero))
	l.add(t, Append, zero)
	w.event(t, zero.Dst)
	w.stop(t)
	l.mustFind(t, hundred)
}

// conformLeg merges a foreign IPv6 gateway with the tunnel's and removes it.
func conformLeg(t *testing.T, l Lab) {
	if !l.Features.IPv6 || !l.Features.Multipath {
		t.Skip("the platform does not merge IPv6 routes")
	}
	ours := plan.Route{Dst: dst6(1), Hop: plan.Hop{Link: l.Tunnel.Index, Via: l.Tunnel.Gate6}, Metric: 1024, Protocol: ProtoBoot}
	foreign := ours
	foreign.Hop, foreign.Protocol = plan.Hop{Link: l.Links[0].Index, Via: l.Links[0].Gate6}, ProtoStatic
	for _, pair := range [][2]plan.Route{{ours, foreign}, {foreign, ours}} {
		l.add(t, Append, pair[0], pair[1])
		merged := ours.WithHops(pair[0].Hop, pair[1].Hop)
		merged.Protocol = 0 // of either leg
		merged = l.mustFind(t, merged)
		l.apply(t, plan.Action{Kind: plan.Remove, Route: merged.WithHops(foreign.Hop)})
		l.mustFind(t, ours)
		l.apply(t, plan.Action{Kind: plan.Remove, Route: l.mustFind(t, ours)})
	}
}

func conformIdempotent(t *testing.T, l Lab) {
	for i, own := range l.both(1, l.Tunnel) {
		own.Origin, own.Protocol = plan.Own, 0
		held := l.both(2, l.Links[0])[i]
		l.add(t, Add, held)
		read := l.mustFind(t, held)
		put := plan.Action{Kind: plan.Put, Route: own}
		l.apply(t, put)
		both := l.text(t)
		l.apply(t, put, plan.Action{Kind: plan.Restore, Route: read}, plan.Action{Kind: plan.Restore, Route: read, First: true})
		l.same(t, both, "after putting and restoring what is there")
		withdraw := plan.Action{Kind: plan.Withdraw, Route: l.mustFind(t, own)}
		l.apply(t, withdraw)
		less := l.text(t)
		l.apply(t, withdraw)
		l.same(t, less, "after withdrawing what is gone")
		l.apply(t, plan.Action{Kind: plan.Remove, Route: read}, plan.Action{Kind: plan.Remove, Route: read})
	}
}

// conformIdle asks that what changed nothing is no plain success: what is counted, held
// and given back hangs on it.
func conformIdle(t *testing.T, l Lab) {
	for i, own := range l.both(1, l.Tunnel) {
		own.Origin, own.Protocol = plan.Own, 0
		held := l.both(2, l.Links[0])[i]
		l.add(t, Add, held)
		read := l.mustFind(t, held)
		put, restore := plan.Action{Kind: plan.Put, Route: own}, plan.Action{Kind: plan.Restore, Route: read}
		remove := plan.Action{Kind: plan.Remove, Route: read}
		l.does(t, put, true)
		l.does(t, put, false)
		l.does(t, restore, false)
		l.does(t, remove, true)
		l.does(t, remove, false)
		l.does(t, restore, true)
		l.edgeIdles(t, own, l.both(3, l.Links[0])[i])
		withdraw := plan.Action{Kind: plan.Withdraw, Route: l.mustFind(t, own)}
		l.does(t, withdraw, true)
		l.does(t, withdraw, false)
	}
}

// does carries out an action that changes something, or finds it done.
func (l *Lab) does(t *testing.T, a plan.Action, something bool) {
	t.Helper()
	err := l.System.Apply(t.Context(), []plan.Action{a})[0]
	if err != nil && !errors.Is(err, enforce.ErrAlready) || (err == nil) != something {
		t.Errorf("%v %s: %v; it had something to do: %v", a.Kind, Text(a.Route), err, something)
	}
}

// edgeIdles puts what stands, and deletes what does.
func (l *Lab) edgeIdles(t *testing.T, stands, trigger plan.Route) {
	t.Helper()
	for _, remove := range []bool{false, true} {
		w := l.watch(t, func(c enforce.Change, r *plan.Route) enforce.Answer {
			if c != enforce.Added || !alike(*r, trigger) {
				return enforce.Answer{}
			}
			return enforce.Answer{Put: &stands, Delete: remove, Tell: true}
		})
		l.add(t, Add, trigger)
		ev := w.event(t, trigger.Dst)
		w.stop(t)
		if ev.Err != nil || ev.Readded || ev.Removed != remove || ev.Idle == remove {
			t.Errorf("put of what is there, delete %v: put %v, removed %v, idle %v, error %v", remove, ev.Readded, ev.Removed, ev.Idle, ev.Err)
		}
		if !remove {
			l.apply(t, plan.Action{Kind: plan.Remove, Route: l.mustFind(t, trigger)})
		}
	}
}

func conformOrder(t *testing.T, l Lab) {
	for _, r := range l.both(1, l.Links[0]) {
		l.add(t, Add, r)
		read := l.mustFind(t, r)
		remove, restore := plan.Action{Kind: plan.Remove, Route: read}, plan.Action{Kind: plan.Restore, Route: read}
		l.apply(t, remove, restore)
		l.mustFind(t, r)
		l.apply(t, restore, remove)
		if _, stands := l.find(t, r); stands {
			t.Errorf("%s: removed last, and still there", Text(r))
		}
	}
}

func conformErrors(t *testing.T, l Lab) {
	good, bad := l.both(1, l.Tunnel), l.both(2, l.Tunnel)
	var actions []plan.Action
	for i := range good {
		bad[i].Hop.Link = 1 << 30
		good[i].Origin, bad[i].Origin = plan.Own, plan.Own
		actions = append(actions, plan.Action{Kind: plan.Put, Route: bad[i]}, plan.Action{Kind: plan.Put, Route: good[i]})
	}
	errs := l.System.Apply(t.Context(), actions)
	if len(errs) != len(actions) {
		t.Fatalf("%d errors for %d actions", len(errs), len(actions))
	}
	for i, err := range errs {
		if wantErr := i%2 == 0; (err != nil) != wantErr {
			t.Errorf("put %s: error %v, want one: %v", Text(actions[i].Route), err, wantErr)
		} else if wantErr && !errors.Is(err, enforce.ErrGone) {
			t.Errorf("put on a link that is not there: %v, want %v", err, enforce.ErrGone)
		}
	}
	if l.SetUp != nil {
		l.putOnDown(t)
	}
}

// putOnDown puts routes on a link that is down.
func (l *Lab) putOnDown(t *testing.T) {
	if err := l.SetUp(l.Links[1].Index, false); err != nil {
		t.Fatal(err)
	}
	for _, r := range l.both(3, l.Links[1]) {
		r.Origin = plan.Own
		errs := l.System.Apply(t.Context(), []plan.Action{{Kind: plan.Put, Route: r}})
		if !errors.Is(errs[0], enforce.ErrNotNow) {
			t.Errorf("put %s on a link that is down: %v, want %v", Text(r), errs[0], enforce.ErrNotNow)
		}
	}
}

func conformOwn(t *testing.T, l Lab) {
	for _, r := range l.both(1, l.Tunnel) {
		l.add(t, Add, r)
		if got := l.mustFind(t, r); got.Origin != plan.Foreign {
			t.Errorf("%s has origin %v, want foreign", Text(got), got.Origin)
		}
	}
	for _, r := range l.both(2, l.Tunnel) {
		r.Origin, r.Protocol = plan.Own, 0
		l.apply(t, plan.Action{Kind: plan.Put, Route: r})
		if got := l.mustFind(t, r); got.Origin != plan.Own {
			t.Errorf("%s has origin %v, want own", Text(got), got.Origin)
		}
	}
	connected := l.connected(l.Links[0], l.Links[0].Addr4)
	if got := l.mustFind(t, connected); !got.Connected() {
		t.Errorf("%s has origin %v, want kernel", Text(got), got.Origin)
	}
}

func conformRestore(t *testing.T, l Lab) {
	for family, routes := range l.variants(t) {
		for _, r := range routes {
			l.addShape(family+" "+Text(r), r)
		}
	}
	for _, link := range l.Links {
		l.Shapes = append(l.Shapes, Shape{Name: "connected " + link.Name, Dst: link.Addr4.Masked()})
		if l.Features.IPv6 {
			l.Shapes = append(l.Shapes, Shape{Name: "connected IPv6 " + link.Name, Dst: link.Addr6.Masked()})
		}
	}
	for _, s := range l.Shapes {
		t.Run(s.Name, func(t *testing.T) { l.restoreShape(t, s) })
	}
}

func (l *Lab) addShape(name string, r plan.Route) {
	l.Shapes = append(l.Shapes, Shape{Name: name, Dst: r.Dst, Add: func() error { return l.Add(r, Append) }})
}

// restoreShape makes the shape, removes it and restores it.
func (l *Lab) restoreShape(t *testing.T, s Shape) {
	if s.Add != nil {
		if err := s.Add(); err != nil {
			t.Fatalf("make: %v", err)
		}
	}
	want := l.text(t)
	made := l.to(t, s.Dst)
	if len(made) != 1 {
		t.Fatalf("the shape makes %d routes, want 1", len(made))
	}
	l.apply(t, plan.Action{Kind: plan.Remove, Route: made[0]})
	if left := l.to(t, s.Dst); len(left) != 0 {
		t.Fatalf("not removed: %s", Text(left[0]))
	}
	l.apply(t, plan.Action{Kind: plan.Restore, Route: made[0]})
	l.same(t, want, "after restore")
	back := l.to(t, s.Dst)
	if len(back) != 1 || !back[0].Same(made[0]) {
		t.Fatalf("restored %+v, want %+v", back, made)
	}
	if s.Add != nil {
		l.apply(t, plan.Action{Kind: plan.Remove, Route: back[0]})
	}
}

// to returns the standing routes to a destination.
func (l *Lab) to(t *testing.T, dst netip.Prefix) (out []plan.Route) {
	t.Helper()
	for _, r := range l.table(t) {
		if r.Dst == dst {
			out = append(out, r)
		}
	}
	return out
}

// slotOf makes three routes of one slot, in order.
func (l *Lab) slotOf(t *testing.T) [3]plan.Route {
	t.Helper()
	if !l.Features.Order {
		t.Skip("the platform keeps no order in a slot")
	}
	r := l.both(1, l.Links[0])[0]
	out := [3]plan.Route{r, r, r}
	out[1].Hop.Link = l.Links[1].Index
	out[2].Hop.Via = l.Links[0].Gate4
	l.add(t, Append, out[:]...)
	for i := range out {
		out[i] = l.mustFind(t, out[i])
	}
	return out
}

func conformPlace(t *testing.T, l Lab) {
	slot := l.slotOf(t)
	want := l.text(t)
	for _, c := range []struct {
		name  string
		first bool
		i     int
	}{{"first", true, 0}, {"last", false, 2}} {
		l.apply(t, plan.Action{Kind: plan.Remove, Route: slot[c.i]})
		l.apply(t, plan.Action{Kind: plan.Restore, Route: slot[c.i], First: c.first})
		l.same(t, want, "after restoring the "+c.name)
	}
	for i := range slot {
		l.apply(t, plan.Action{Kind: plan.Remove, Route: slot[i]})
	}
	for i := range slot {
		l.apply(t, plan.Action{Kind: plan.Restore, Route: slot[i]})
	}
	l.same(t, want, "after restoring all in order")
}

func conformFirst(t *testing.T, l Lab) {
	slot := l.slotOf(t)
	own := plan.Route{Dst: slot[0].Dst, Hop: plan.Hop{Link: l.Tunnel.Index}, Origin: plan.Own}
	l.apply(t, plan.Action{Kind: plan.Put, Route: own, First: true})
	if got := l.to(t, own.Dst); len(got) != 4 || !alike(got[0], own) {
		t.Errorf("the slot's first of %d is %s, want %s", len(got), Text(got[0]), Text(own))
	}
}

func conformExpired(t *testing.T, l Lab) {
	if !l.Features.IPv6 {
		t.Skip("the platform has no lifetimes")
	}
	r := l.both(1, l.Links[0])[1]
	r.Expires = 500
	if err := l.Add(r, Add); err != nil {
		t.Skipf("the platform cannot give a route a lifetime: %v", err)
	}
	read := l.mustFind(t, r)
	if read.Expires == 0 || read.Expires > 500 {
		t.Fatalf("read a lifetime of %d s, want 500", read.Expires)
	}
	remove := plan.Action{Kind: plan.Remove, Route: read}
	l.apply(t, remove, plan.Action{Kind: plan.Restore, Route: read, Age: 200})
	if got := l.mustFind(t, r).Expires; got < 280 || got > 300 {
		t.Errorf("restored with %d s to live, want 300", got)
	}
	l.apply(t, remove, plan.Action{Kind: plan.Restore, Route: read, Age: 501})
	if _, stands := l.find(t, r); stands {
		t.Error("a route whose lifetime had ended was restored")
	}
}

// conformBlackhole removes and restores routes whose nexthop object was turned
// into a blackhole: they dump as blackhole and are stored as unicast.
func conformBlackhole(t *testing.T, l Lab) {
	if !l.Features.Nexthops {
		t.Skip("the platform has no nexthop objects")
	}
	for i, r := range l.both(1, l.Links[0]) {
		gate := plan.Hop{Link: l.Links[0].Index, Via: []netip.Addr{l.Links[0].Gate4, l.Links[0].Gate6}[i]}
		r = l.byNexthop(t, r, uint32(71+i), gate)
		l.add(t, Add, r)
		want := l.text(t)
		if err := l.SetNexthop(r.NexthopID); err != nil {
			t.Fatal(err)
		}
		read := l.to(t, r.Dst)
		if len(read) != 1 || read[0].Type != plan.Blackhole {
			t.Fatalf("routes of a blackhole object: %v, want one blackhole", read)
		}
		l.apply(t, plan.Action{Kind: plan.Remove, Route: read[0]})
		if left := l.to(t, r.Dst); len(left) != 0 {
			t.Fatalf("not removed: %s", Text(left[0]))
		}
		l.apply(t, plan.Action{Kind: plan.Restore, Route: read[0]})
		if err := l.SetNexthop(r.NexthopID, gate); err != nil {
			t.Fatal(err)
		}
		l.same(t, want, "after the object is what it was")
	}
}

// conformOnlink restores a gatewayed route while its connected one is out.
func conformOnlink(t *testing.T, l Lab) {
	link := l.Links[0]
	routes := []plan.Route{{Dst: dst4(1), Hop: plan.Hop{Link: link.Index, Via: link.Gate4}, Protocol: ProtoBoot}}
	connected := []plan.Route{l.connected(link, link.Addr4)}
	if l.Features.IPv6 {
		routes = append(routes, plan.Route{Dst: dst6(1), Hop: plan.Hop{Link: link.Index, Via: link.Gate6}, Metric: 1024, Protocol: ProtoBoot})
		connected = append(connected, l.connected(link, link.Addr6))
	}
	routes = l.native(routes...)
	l.add(t, Add, routes...)
	for i, r := range routes {
		read := l.mustFind(t, r)
		l.apply(t,
			plan.Action{Kind: plan.Remove, Route: read},
			plan.Action{Kind: plan.Remove, Route: l.mustFind(t, connected[i])},
			plan.Action{Kind: plan.Restore, Route: read})
		l.mustFind(t, r)
	}
}

func conformMain(t *testing.T, l Lab) {
	if l.AddElsewhere != nil {
		for _, r := range l.both(1, l.Links[0]) {
			if err := l.AddElsewhere(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	seen := map[plan.Route]int{}
	for _, r := range l.table(t) {
		if r.Type == plan.Local || r.Type == plan.Broadcast || r.Type == plan.Multicast || r.Type == plan.Anycast {
			t.Errorf("not main's: %s", Text(r))
		}
		if r.Dst == dst4(1) || r.Dst == dst6(1) {
			t.Errorf("another table's: %s", Text(r))
		}
		if r.Raw == "" {
			t.Errorf("no Raw: %s", Text(r))
		}
		r.Raw, r.Expires = "", 0
		if seen[r]++; seen[r] > 1 {
			t.Errorf("yielded %d times: %s", seen[r], Text(r))
		}
	}
	for _, link := range l.Links {
		if len(l.to(t, link.Addr4.Masked())) != 1 {
			t.Errorf("the connected route of %s is not yielded", link.Name)
		}
	}
}
