package enforcetest

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// Lab is a System under test in surroundings of its own, and the means to act
// there as somebody else. A nil func is something the platform does not have.
type Lab struct {
	System   enforce.System
	Links    [2]LabLink // two interfaces that are no tunnel
	Tunnel   LabLink
	Features Features

	Add           func(plan.Route, How) error // into the main table
	Delete        func(plan.Route) error
	SetUp         func(link uint32, up bool) error
	AddAddress    func(link uint32, a netip.Prefix) error
	RemoveAddress func(link uint32, a netip.Prefix) error
	SetNexthop    func(id uint32, hops ...plan.Hop) error // new or replaced; no hops: a blackhole
	DeleteNexthop func(id uint32) error
	AddRule       func() error           // any rule that is asked before main
	AddElsewhere  func(plan.Route) error // into a table that is not main

	// Shapes are routes that only the platform can make, each to a
	// destination of its own: encapsulation, MTU, on-link gateways.
	Shapes []Shape
	// Native says a route as the platform reads it back: metric and protocol
	// are Linux's where the suite makes a route up. Nil: as asked.
	Native func(plan.Route) plan.Route
	// Text lists the main table as the platform does, in full and without
	// what changes by itself; nil: what System.Table yields is listed.
	Text func() string
}

// LabLink is an interface of a [Lab]. It is up, has both addresses (the IPv6
// one if the platform has IPv6), and the gates lie in their subnets.
type LabLink struct {
	Index        uint32
	Name         string
	Addr4, Addr6 netip.Prefix
	Gate4, Gate6 netip.Addr
}

// Shape is one way to make a route.
type Shape struct {
	Name string
	Add  func() error
	// Dst is where the route made goes: the suite finds it by that.
	Dst netip.Prefix
}

// Features says what the platform's routing has.
type Features struct {
	IPv6      bool
	TOS       bool
	Types     bool // blackhole, unreachable, prohibit, throw
	Multipath bool
	Nexthops  bool // nexthop objects
	Sources   bool // IPv6 source-specific routes
	PrefSrc   bool
	Metrics   bool // several routes to one destination differ by metric
	Order     bool // routes of one slot have an order: append and prepend
	Protocols bool // equal routes of different protocols stand side by side
	NextHops  bool // so do routes of different next hops, though Order is false
	KeyOnly   bool // announcements only name a route; one that is gone when it is looked up is not told
}

// patience is how long a case waits for what must happen. Only the tests of the
// suite itself are less patient.
var patience = 10 * time.Second

// Conform checks that the System of each new Lab keeps the contract of
// [enforce.System]. It is the one suite for every System.
func Conform(t *testing.T, newLab func(t *testing.T) Lab) {
	cases := []struct {
		name string
		run  func(*testing.T, Lab)
	}{
		{"a change made when ready returns is noticed", conformSubscribe},
		{"every added and deleted route reaches the edge", conformReach},
		{"an edge delete takes that route alone", conformEdgeDelete},
		{"an edge put comes before its delete", conformEdgePut},
		{"an untold event is not told", conformUntold},
		{"an event's route can be restored", conformEventRestore},
		{"remove takes that route alone, twice", conformRemove},
		{"a metric 0 twin that is gone spares its sibling", conformTwin},
		{"a leg leaves its multipath route", conformLeg},
		{"put, restore, remove and withdraw are idempotent", conformIdempotent},
		{"that there was nothing to do is told", conformIdle},
		{"actions are carried out in order", conformOrder},
		{"one action's error is its own", conformErrors},
		{"own routes are known again", conformOwn},
		{"restore gives the identical table", conformRestore},
		{"restore keeps the place in the slot", conformPlace},
		{"put first goes ahead", conformFirst},
		{"restore spends the lifetime", conformExpired},
		{"a nexthop object turned blackhole does not hinder", conformBlackhole},
		{"a restored gateway needs no connected route", conformOnlink},
		{"table yields main only, each route once", conformMain},
		{"table follows a canceled context", conformTableCancel},
		{"table is whole while it changes", conformChanging},
		{"link, address, rule and nexthop changes are dirty", conformDirty},
		{"an overrun sink is dirty", conformOverrun},
		{"a canceled watch returns nil and may begin again", conformCancel},
		{"facts list the links", conformFacts},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(t, newLab(t)) })
	}
}

// watcher is a running Watch and what came of it.
type watcher struct {
	sink   *enforce.Sink
	cancel context.CancelFunc
	done   chan error

	mu   sync.Mutex // guards what follows
	seen []sighting
}

// sighting is one call of the edge.
type sighting struct {
	change enforce.Change
	route  plan.Route
}

// watch runs Watch until the test ends, with an edge that answers as told.
func (l *Lab) watch(t *testing.T, answer enforce.Edge) *watcher {
	t.Helper()
	return l.watchFrom(t, answer, func() {})
}

func (l *Lab) watchFrom(t *testing.T, answer enforce.Edge, ready func()) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{sink: enforce.NewSink(), cancel: cancel, done: make(chan error, 1)}
	begun := make(chan struct{})
	go func() {
		w.done <- l.System.Watch(ctx, w.edge(answer), w.sink, func() { ready(); close(begun) })
	}()
	t.Cleanup(cancel)
	select {
	case <-begun:
	case err := <-w.done:
		t.Fatalf("watch ended before it was ready: %v", err)
	case <-time.After(patience):
		t.Fatal("watch never became ready")
	}
	return w
}

// edge notes each call and hands it to answer.
func (w *watcher) edge(answer enforce.Edge) enforce.Edge {
	return func(c enforce.Change, r *plan.Route) enforce.Answer {
		w.mu.Lock()
		w.seen = append(w.seen, sighting{c, *r})
		w.mu.Unlock()
		if answer == nil {
			return enforce.Answer{}
		}
		return answer(c, r)
	}
}

func (w *watcher) saw(c enforce.Change, r plan.Route) bool { return w.when(c, r) >= 0 }

// when returns at which call of the edge the change was seen, or -1.
func (w *watcher) when(c enforce.Change, r plan.Route) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.IndexFunc(w.seen, func(s sighting) bool { return s.change == c && alike(s.route, r) })
}

// stop ends the watch, which must return nil.
func (w *watcher) stop(t *testing.T) {
	t.Helper()
	w.cancel()
	select {
	case err := <-w.done:
		if err != nil {
			t.Errorf("canceled watch returned %v, want nil", err)
		}
	case <-time.After(patience):
		t.Fatal("watch did not end when canceled")
	}
}

// event returns the next told event that concerns the route's destination.
func (w *watcher) event(t *testing.T, dst netip.Prefix) enforce.Event {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case ev := <-w.sink.Events():
			if ev.Route.Dst == dst {
				return ev
			}
		case <-deadline:
			t.Fatalf("no event was told of a route to %v", dst)
		}
	}
}

// alike reports whether a route that was read is the one that was asked for.
// What the platform fills in by itself is not compared.
func alike(read, asked plan.Route) bool {
	read, asked = canonical(read), canonical(asked)
	if rejecting(asked.Type) {
		read, asked = read.WithHops(), asked.WithHops()
	}
	if asked.NexthopID != 0 {
		read, asked = read.WithHops(), asked.WithHops()
	}
	return read.Slot() == asked.Slot() && read.Hop == asked.Hop && read.More == asked.More &&
		read.Type == asked.Type && read.NexthopID == asked.NexthopID &&
		(asked.Protocol == 0 || read.Protocol == asked.Protocol) &&
		read.PrefSrc == asked.PrefSrc
}

// table reads the main table, again when the reading was interrupted.
func (l *Lab) table(t *testing.T) []plan.Route {
	t.Helper()
	var failed error
	for range 100 {
		routes, err := readTable(l.System)
		if err == nil {
			return routes
		}
		failed = err
	}
	t.Fatalf("table: %v", failed)
	return nil
}

func readTable(s enforce.System) (out []plan.Route, err error) {
	for r, err := range s.Table(context.Background()) {
		if err != nil {
			return nil, err
		}
		out = append(out, r.Clone()) // Raw may be a view of a buffer
	}
	return out, nil
}

// find returns the standing route that was asked for.
func (l *Lab) find(t *testing.T, asked plan.Route) (plan.Route, bool) {
	t.Helper()
	table := l.table(t)
	i := slices.IndexFunc(table, func(r plan.Route) bool { return alike(r, asked) })
	if i < 0 {
		return plan.Route{}, false
	}
	return table[i], true
}

func (l *Lab) mustFind(t *testing.T, asked plan.Route) plan.Route {
	t.Helper()
	r, ok := l.find(t, asked)
	if !ok {
		t.Fatalf("route is not in the table: %s\n%s", Text(asked), l.text(t))
	}
	return r
}

// text lists the main table, lifetimes left out.
func (l *Lab) text(t *testing.T) string {
	t.Helper()
	if l.Text != nil {
		return l.Text()
	}
	var ordered, sorted []string
	for _, r := range l.table(t) {
		r.Expires = 0
		line := Text(canonical(r)) + "\n"
		if l.Features.Order && r.Dst.Addr().Is4() {
			ordered = append(ordered, line)
		} else {
			sorted = append(sorted, line)
		}
	}
	slices.Sort(sorted)
	return strings.Join(ordered, "") + strings.Join(sorted, "")
}

func (l *Lab) same(t *testing.T, want, what string) {
	t.Helper()
	if got := l.text(t); got != want {
		t.Errorf("%s: table is\n%swant\n%s", what, got, want)
	}
}

// apply carries out actions that must all succeed.
func (l *Lab) apply(t *testing.T, actions ...plan.Action) {
	t.Helper()
	errs := l.System.Apply(context.Background(), actions)
	if len(errs) != len(actions) {
		t.Fatalf("apply returned %d errors for %d actions", len(errs), len(actions))
	}
	for i, err := range errs {
		if err != nil && !errors.Is(err, enforce.ErrAlready) {
			t.Fatalf("%v %s: %v", actions[i].Kind, Text(actions[i].Route), err)
		}
	}
}

func (l *Lab) add(t *testing.T, how How, routes ...plan.Route) {
	t.Helper()
	for _, r := range routes {
		if err := l.Add(r, how); err != nil {
			t.Fatalf("add %s: %v", Text(r), err)
		}
	}
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if holds() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// dst4 and dst6 are destinations that no Lab uses for itself.
func dst4(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 177, byte(n >> 8), byte(n)}), 32)
}

func dst6(n int) netip.Prefix {
	a := netip.MustParseAddr("2001:db8:177::").As16()
	a[14], a[15] = byte(n>>8), byte(n)
	return netip.PrefixFrom(netip.AddrFrom16(a), 128)
}

// both returns one on-link route per family that the platform has.
func (l *Lab) both(n int, link LabLink) []plan.Route {
	routes := []plan.Route{{Dst: dst4(n), Hop: plan.Hop{Link: link.Index}, Protocol: ProtoBoot}}
	if l.Features.IPv6 {
		routes = append(routes, plan.Route{Dst: dst6(n), Hop: plan.Hop{Link: link.Index}, Metric: 1024, Protocol: ProtoBoot})
	}
	return l.native(routes...)
}

// native returns the routes as the platform would read them back.
func (l *Lab) native(routes ...plan.Route) []plan.Route {
	if l.Native == nil {
		return routes
	}
	for i := range routes {
		routes[i] = l.Native(routes[i])
	}
	return routes
}

// connected returns the route that follows from a link's address.
func (l *Lab) connected(link LabLink, a netip.Prefix) plan.Route {
	return l.native(ConnectedRoute(link.Index, a))[0]
}

// variants returns routes to one destination that differ in one thing each.
// They can stand side by side, added in this order with Append.
func (l *Lab) variants(t *testing.T) map[string][]plan.Route {
	t.Helper()
	out := map[string][]plan.Route{"IPv4": l.variants4(t)}
	if l.Features.IPv6 {
		out["IPv6"] = l.variants6(t)
	}
	return out
}

func (l *Lab) variants4(t *testing.T) []plan.Route {
	t.Helper()
	f, l0, l1 := l.Features, l.Links[0], l.Links[1]
	base := plan.Route{Dst: dst4(1), Hop: plan.Hop{Link: l0.Index}, Protocol: ProtoBoot}
	with := func(change func(*plan.Route)) plan.Route {
		r := base
		r.Metric = 100
		change(&r)
		return r
	}
	gated := plan.Hop{Link: l0.Index, Via: l0.Gate4}
	v := variants{base}
	v.when(f.Metrics, with(func(*plan.Route) {}))
	v.when(f.Order || f.NextHops, with(func(r *plan.Route) { r.Hop = gated }))
	v.when(f.Order || f.NextHops, with(func(r *plan.Route) { r.Hop.Link = l1.Index }))
	v.when(f.Order && f.Types, with(func(r *plan.Route) { r.Type = plan.Blackhole; r.Hop = plan.Hop{} }))
	v.when(f.Order && f.PrefSrc, with(func(r *plan.Route) { r.PrefSrc = l1.Addr4.Addr() }))
	v.when(f.Protocols, with(func(r *plan.Route) { r.Protocol = ProtoStatic }))
	v.when(f.TOS, with(func(r *plan.Route) { r.TOS = 0x10 }))
	v.when(f.TOS, with(func(r *plan.Route) { r.TOS, r.Metric = 0x10, 0 }))
	v.when(f.Multipath, with(func(r *plan.Route) { *r = r.WithHops(gated, plan.Hop{Link: l1.Index, Via: l1.Gate4}) }))
	v.when(f.Multipath, with(func(r *plan.Route) { *r = r.WithHops(gated, plan.Hop{Link: l0.Index}) }))
	v.when(f.Nexthops, with(func(r *plan.Route) { *r = l.byNexthop(t, *r, 41, gated) }))
	v.when(f.Nexthops, with(func(r *plan.Route) { *r = l.byNexthop(t, *r, 42, gated) }))
	return l.native(v...)
}

func (l *Lab) variants6(t *testing.T) []plan.Route {
	t.Helper()
	f, l0, l1 := l.Features, l.Links[0], l.Links[1]
	base := plan.Route{Dst: dst6(1), Hop: plan.Hop{Link: l0.Index}, Metric: 1024, Protocol: ProtoBoot}
	with := func(metric uint32, change func(*plan.Route)) plan.Route {
		r := base
		r.Metric = metric
		change(&r)
		return r
	}
	gated := plan.Hop{Link: l0.Index, Via: l0.Gate6}
	v := variants{base}
	v.when(f.Metrics, with(100, func(*plan.Route) {}))
	v.when(f.Metrics || f.NextHops, with(200, func(r *plan.Route) { r.Hop = gated }))
	v.when(f.Order, with(200, func(*plan.Route) {}))
	v.when(f.Order || f.NextHops, with(100, func(r *plan.Route) { r.Hop.Link = l1.Index }))
	v.when(f.Types, with(100, func(r *plan.Route) { r.Type = plan.Blackhole; r.Hop = plan.Hop{} }))
	v.when(f.Sources, with(100, func(r *plan.Route) { r.Src = l1.Addr6.Masked() }))
	v.when(f.Multipath, with(300, func(r *plan.Route) { *r = r.WithHops(gated, plan.Hop{Link: l1.Index, Via: l1.Gate6}) }))
	v.when(f.Nexthops, with(100, func(r *plan.Route) { *r = l.byNexthop(t, *r, 61, gated) }))
	v.when(f.Nexthops, with(100, func(r *plan.Route) { *r = l.byNexthop(t, *r, 62, gated) }))
	return l.native(v...)
}

type variants []plan.Route

func (v *variants) when(has bool, r plan.Route) {
	if has {
		*v = append(*v, r)
	}
}

// byNexthop makes a nexthop object, when the platform has them, and returns
// the route that uses it.
func (l *Lab) byNexthop(t *testing.T, r plan.Route, id uint32, hops ...plan.Hop) plan.Route {
	t.Helper()
	if !l.Features.Nexthops {
		return r
	}
	if err := l.SetNexthop(id, hops...); err != nil {
		t.Fatalf("nexthop %d: %v", id, err)
	}
	r = r.WithHops(hops...)
	r.NexthopID = id
	return r
}

// sameSet fails the test unless the table holds what it should, in any order:
// a System may have to take out a slot's other routes to reach the right one.
func (l *Lab) sameSet(t *testing.T, want, when string) {
	t.Helper()
	if got := l.text(t); sortedLines(got) != sortedLines(want) {
		t.Errorf("%s: table is\n%s\nwant\n%s", when, got, want)
	}
}

func sortedLines(s string) string {
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
