package enforce_test

import (
	"context"
	"encoding/binary"
	"iter"
	"net/netip"
	"sync"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// bulk is a System whose changes cost the same however many routes there are, so
// that what grows with them is the Enforcer's own. It counts what it is asked.
type bulk struct {
	mu     sync.Mutex // guards what follows
	order  []plan.Route
	stands map[netip.Prefix]bool
	own    map[netip.Prefix]plan.Route
	calls  calls

	sink  *enforce.Sink
	edge  enforce.Edge
	asked func() // called when the interfaces are read, when not nil
}

// calls is the work that a System was given.
type calls struct {
	tables, facts, applies int
	actions                [plan.Forget + 1]int // by kind
}

// bulkRoute is the i-th of many that conflict with 10.0.0.0/8.
func bulkRoute(i int) plan.Route {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 10<<24|uint32(i))
	return plan.Route{Dst: netip.PrefixFrom(netip.AddrFrom4(a), 32), Hop: plan.Hop{Link: eth0, Via: netip.MustParseAddr("192.168.1.66")}, Protocol: 16,
		Raw: "as many bytes as the kernel says of a route, more or less: 60"}
}

// bulkSession protects what a bulk's routes conflict with.
var bulkSession = enforce.Session{Tunnel: "tun0", Protect: []netip.Prefix{pfx("10.0.0.0/8")}}

// newBulk has n of them.
func newBulk(n int) *bulk {
	b := &bulk{stands: map[netip.Prefix]bool{}, own: map[netip.Prefix]plan.Route{}}
	for i := range n {
		r := bulkRoute(i)
		b.order = append(b.order, r)
		b.stands[r.Dst] = true
	}
	return b
}

func (b *bulk) Watch(ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
	b.edge, b.sink = edge, sink
	ready()
	<-ctx.Done()
	return nil
}

func (b *bulk) Table(context.Context) iter.Seq2[plan.Route, error] {
	return func(yield func(plan.Route, error) bool) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.calls.tables++
		for _, r := range b.own {
			if !yield(r, nil) {
				return
			}
		}
		for _, r := range b.order {
			if b.stands[r.Dst] && !yield(r, nil) {
				return
			}
		}
	}
}

func (b *bulk) Apply(_ context.Context, actions []plan.Action) []error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls.applies++
	for i := range actions {
		a := &actions[i]
		b.calls.actions[a.Kind]++
		switch a.Kind {
		case plan.Put:
			b.own[a.Route.Dst] = a.Route
		case plan.Withdraw:
			delete(b.own, a.Route.Dst)
		case plan.Remove:
			delete(b.stands, a.Route.Dst)
		case plan.Restore:
			b.stands[a.Route.Dst] = true
		case plan.Forget:
		}
	}
	return make([]error, len(actions))
}

func (b *bulk) Facts(context.Context) (enforce.Facts, error) {
	if b.asked != nil {
		b.asked()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls.facts++
	return enforce.Facts{Links: []plan.Link{
		{Index: eth0, Name: "eth0", Up: true, Addrs: []netip.Prefix{pfx("192.168.1.10/24")}},
		{Index: tun0, Name: "tun0", Up: true, Addrs: []netip.Prefix{pfx("10.8.0.2/24")}},
	}}, nil
}

// work returns the work since the last time it was asked.
func (b *bulk) work() calls {
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.calls
	b.calls = calls{}
	return was
}

// attack announces a route that came and was deleted by the edge path, and returns
// the answer.
func (b *bulk) attack(r plan.Route) enforce.Answer {
	now := time.Now()
	ev := enforce.Event{Change: enforce.Added, Route: r, Answer: b.edge(enforce.Added, &r), Seen: now, Done: now}
	ev.Removed = ev.Answer.Delete
	b.sink.Tell(ev)
	return ev.Answer
}

// memory is a Journal in memory whose every call costs the same for each entry.
type memory struct{ entries map[uint64]enforce.Entry }

func (m *memory) Load() ([]enforce.Entry, error) { return nil, nil }

func (m *memory) Hold(entries []enforce.Entry) error {
	if m.entries == nil {
		m.entries = map[uint64]enforce.Entry{}
	}
	for _, e := range entries {
		m.entries[e.ID] = e
	}
	return nil
}

func (m *memory) Forget(ids []uint64) error {
	for _, id := range ids {
		delete(m.entries, id)
	}
	return nil
}
