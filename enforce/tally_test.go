package enforce_test

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// nth is one of many conflicting routes.
func nth(i int) plan.Route {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 172<<24|31<<16|uint32(i))
	r := via("172.31.0.0/32", "192.168.1.66", eth0)
	r.Dst = netip.PrefixFrom(netip.AddrFrom4(a), 32)
	return r
}

// TestFloodIsCountedExactly: many more events come than there is room for, while the
// loop is busy. Each deletion is counted; together the records tell of each too.
func TestFloodIsCountedExactly(t *testing.T) {
	const n = 20_000
	sys := &lateSystem{System: newHost(t)}
	var told, groups atomic.Uint64
	observe := func(in enforce.Incident) {
		told.Add(max(1, in.Count))
		if in.Count == 0 {
			return
		}
		groups.Add(1)
		if !strings.HasPrefix(in.Route, "172.31.0.0/16 dev eth0") || !strings.Contains(in.Reason, "routes like 172.31.") {
			t.Errorf("%s: %s", in.Route, in.Reason)
		}
	}
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{Observe: observe})
	open(t, e, split)
	busy, free := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(busy)
		for i := range n {
			r := nth(i)
			r.Protocol = uint8(i % 3)
			ev := enforce.Event{Change: enforce.Added, Route: r, Answer: sys.edge(enforce.Added, &r), Seen: time.Now(), Done: time.Now(), Removed: true, Port: uint32(i % 2)}
			sys.sink.Tell(ev)
		}
	}()
	go func() { defer close(free); _, _ = e.Status(t.Context()) }()
	<-busy
	<-free
	if got := status(t, e).Removed; got != n {
		t.Errorf("%d removed, want %d", got, n)
	}
	e.Wake("test")
	eventually(t, "every removal is told, by itself or in a group", func() bool { return told.Load() == n })
	if groups.Load() == 0 {
		t.Error("nothing was grouped: the flood was no flood")
	}
	st, err := e.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, in := range st.Incidents[1:] {
		if in.ID != st.Incidents[i].ID+1 {
			t.Fatalf("incident %d stands after %d", in.ID, st.Incidents[i].ID)
		}
	}
}

// TestManyRemovalsOfOneReading: those of the loop are exact and grouped too.
func TestManyRemovalsOfOneReading(t *testing.T) {
	const n = 2000
	sys := newHost(t)
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		for i := range n {
			if err := tb.Add(nth(i), enforcetest.Append); err != nil {
				return err
			}
		}
		return nil
	})
	observed := 0
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{Observe: func(enforce.Incident) { observed++ }})
	if st := open(t, e, split); st.Removed != n || len(st.Held) != n {
		t.Errorf("%d removed, %d held", st.Removed, len(st.Held))
	}
	st, err := e.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var sum uint64
	for _, in := range st.Incidents {
		sum += max(1, in.Count)
	}
	sum += st.Incidents[0].ID - 1 // those that the ring has let go of
	if sum != n || observed > 300 {
		t.Errorf("%d are told, by %d incidents", sum, observed)
	}
}

// TestManyReportsAreToldOnce: those that stay are not told anew at each reading, and
// do not push everything else out of sight.
func TestManyReportsAreToldOnce(t *testing.T) {
	const n = 3000
	sys := newHost(t)
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		for i := range n {
			if err := tb.Add(nth(i), enforcetest.Append); err != nil {
				return err
			}
		}
		return nil
	})
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{Audit: true})
	open(t, e, split)
	count := func() (last, sum uint64) {
		st, err := e.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range st.Incidents {
			sum += max(1, in.Count)
		}
		return st.Incidents[len(st.Incidents)-1].ID, sum
	}
	first, sum := count()
	if first > 100 || sum < n {
		t.Errorf("%d incidents tell of %d routes", first, sum)
	}
	open(t, e, split)
	open(t, e, split)
	if last, _ := count(); last != first {
		t.Errorf("%d incidents after the first reading, %d later", first, last)
	}
}

// TestContestOutlivesANumberOfOthers: ever new routes do not make one forgotten that
// comes again and again.
func TestContestOutlivesANumberOfOthers(t *testing.T) {
	sys := &lateSystem{System: newHost(t)}
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	tell := func(r plan.Route) {
		sys.sink.Tell(enforce.Event{Change: enforce.Added, Route: r, Answer: sys.edge(enforce.Added, &r), Seen: time.Now(), Done: time.Now(), Removed: true})
	}
	tell(nth(7))
	tell(nth(7))
	for i := range 5000 {
		tell(nth(1000 + i))
		if i%1000 == 999 {
			tell(nth(7))
			eventually(t, "it is taken in", func() bool { return len(sys.sink.Events()) == 0 })
		}
	}
	eventually(t, "the contest is told", func() bool {
		c := status(t, e).Contested
		return len(c) == 1 && c[0].Times == 7 && strings.HasPrefix(c[0].Route, "172.31.0.7/32")
	})
}
