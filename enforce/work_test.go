package enforce_test

import (
	"sync/atomic"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// looks returns how often a held route was looked at so far.
func looks(t *testing.T, e *enforce.Enforcer) int {
	t.Helper()
	n, err := e.HeldLooks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// taken waits until the loop has taken in what was told.
func taken(t *testing.T, sys *bulk, e *enforce.Enforcer) {
	t.Helper()
	eventually(t, "the events are taken in", func() bool { looks(t, e); return len(sys.sink.Events()) == 0 })
	looks(t, e) // the last of them too
}

// TestWorkOfASession: to connect over held routes and to disconnect looks at each a
// few times, and asks the System for no more than it must.
func TestWorkOfASession(t *testing.T) {
	const n, each = 5_000, 12
	sys := newBulk(n)
	e, _ := run(t, sys, &memory{}, enforce.Options{})
	sys.work()
	open(t, e, bulkSession)
	w, seen := sys.work(), looks(t, e)
	if w.actions[plan.Remove] != n || w.actions[plan.Put] != 1 || w.applies > 2 || w.tables > 3 || w.facts > 5 {
		t.Errorf("connect: %+v", w)
	}
	if seen > each*n {
		t.Errorf("connect looks at %d held routes %d times", n, seen)
	}
	if _, err := e.Close(t.Context(), "tun0"); err != nil {
		t.Fatal(err)
	}
	w = sys.work()
	if w.actions[plan.Restore] != n || w.actions[plan.Withdraw] != 1 || w.applies > 2 || w.tables > 3 || w.facts > 5 {
		t.Errorf("close: %+v", w)
	}
	if seen = looks(t, e) - seen; seen > each*n {
		t.Errorf("close looks at %d held routes %d times", n, seen)
	}
}

// TestWorkOfAnAttack: what is held makes an attack's event no dearer. Readings of the
// table look at all that is held, and there are few of them.
func TestWorkOfAnAttack(t *testing.T) {
	const held, n, reading = 5_000, 4096, 4
	sys := newBulk(held)
	e, _ := run(t, sys, &memory{}, enforce.Options{})
	open(t, e, bulkSession)
	before := looks(t, e)
	sys.work()
	for i := range n {
		if a := sys.attack(bulkRoute(1<<20 + i)); !a.Delete {
			t.Fatalf("answered %+v", a)
		}
	}
	taken(t, sys, e)
	seen, passes := looks(t, e)-before, sys.work().tables
	if most := 2*n + (passes+2)*reading*held; seen > most {
		t.Errorf("%d attacks and %d readings look at %d held routes %d times, want %d at most", n, passes, held, seen, most)
	}
	if st := status(t, e); st.Removed != held+n {
		t.Errorf("%d removed", st.Removed)
	}
}

// TestFloodOverHeldRoutes: however many routes are held, each attack of a flood is
// counted once, in the status, in the sum, and by what is told.
func TestFloodOverHeldRoutes(t *testing.T) {
	n := 220_000
	if raceEnabled {
		n /= 10 // it overruns all the same
	}
	for _, held := range []int{0, 1_000, 20_000} {
		sys := newBulk(held)
		var told atomic.Uint64
		e, stop := run(t, sys, &memory{}, enforce.Options{Observe: func(in enforce.Incident) {
			if in.What == "removed" {
				told.Add(max(1, in.Count))
			}
		}})
		open(t, e, bulkSession)
		for i := range n {
			sys.attack(bulkRoute(1<<20 + i))
		}
		if st, want := status(t, e), uint64(held+n); st.Removed != want {
			t.Errorf("%d held: %d removed, want %d", held, st.Removed, want)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		if want := uint64(held + n); told.Load() != want {
			t.Errorf("%d held: %d are told, want %d", held, told.Load(), want)
		}
	}
}

// TestStopInAFlood: who ends it does not wait for the flood to end. Each event that
// is told of makes another, so that there are always some.
func TestStopInAFlood(t *testing.T) {
	sys := newBulk(100)
	begun, goOn := make(chan struct{}), make(chan struct{})
	n := 0
	e, stop := run(t, sys, &memory{}, enforce.Options{Observe: func(in enforce.Incident) {
		if in.Path != "edge" {
			return
		}
		if n++; n == 1 {
			close(begun)
			<-goOn
		}
		sys.attack(bulkRoute(1<<20 + n))
	}})
	open(t, e, bulkSession)
	for i := range 1000 {
		sys.attack(bulkRoute(1<<19 + i))
	}
	<-begun
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	close(goOn)
	eventually(t, "it ends", func() bool { return len(ended) == 1 })
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := sys.work().actions[plan.Restore]; got != 100 {
		t.Errorf("%d of 100 routes come back", got)
	}
}

// TestToldAtTheEnd: what the edge path still deletes while the end is under way is
// told of before it is over, also where it comes too fast.
func TestToldAtTheEnd(t *testing.T) {
	const n = 6000
	sys := newBulk(0)
	var told atomic.Uint64
	e, stop := run(t, sys, &memory{}, enforce.Options{Observe: func(in enforce.Incident) { told.Add(max(1, in.Count)) }})
	open(t, e, bulkSession)
	looks(t, e) // the loop waits
	attacks := n
	sys.asked = func() {
		for ; attacks > 0; attacks-- {
			sys.attack(bulkRoute(attacks))
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if told.Load() != n {
		t.Errorf("%d of %d are told", told.Load(), n)
	}
}

// TestCountedOnce: a System may count an event before it tells of it.
func TestCountedOnce(t *testing.T) {
	sys := newBulk(0)
	e, _ := run(t, sys, &memory{}, enforce.Options{})
	open(t, e, bulkSession)
	r := bulkRoute(1)
	ev := enforce.Event{Change: enforce.Added, Route: r, Answer: sys.edge(enforce.Added, &r), Removed: true}
	sys.sink.Count(&ev)
	sys.sink.Tell(ev)
	taken(t, sys, e)
	if st := status(t, e); st.Removed != 1 {
		t.Errorf("%d removed", st.Removed)
	}
}
