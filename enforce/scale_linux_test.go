package enforce_test

import (
	"context"
	"flag"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

var manyHeld = flag.Int("held", 40_000, "how many held routes TestManyHeld goes to")

// cpuTime is what the process has taken of the processors: a busy machine does not
// change it much.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// life connects over n routes that must come back, has some of them added again,
// asks for the status, and disconnects. It returns the processor time of each.
func life(t *testing.T, n int) (took [4]time.Duration) {
	t.Helper()
	sys := newBulk(n)
	j := openJournal(t, t.TempDir(), here)
	e, stop := run(t, sys, j, enforce.Options{})
	step := func(i int, f func()) {
		start := cpuTime(t)
		f()
		took[i] = cpuTime(t) - start
	}
	step(0, func() {
		if st := open(t, e, bulkSession); st.State != enforce.Enforcing || len(st.Held) != n {
			t.Fatalf("%s, %d held", st.State, len(st.Held))
		}
	})
	step(1, func() {
		sys.again(min(n, 2000))
		if st := status(t, e); len(st.Held) != n {
			t.Fatalf("%d held", len(st.Held))
		}
	})
	step(2, func() { status(t, e) })
	step(3, func() {
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
	sys.mu.Lock()
	defer sys.mu.Unlock()
	if len(sys.stands) != n || len(sys.own) > 0 {
		t.Errorf("%d of %d routes stand afterwards, and %v", len(sys.stands), n, sys.own)
	}
	return took
}

// TestManyHeld: ten times the routes take about ten times the work, not a hundred
// times. A busy machine may make one attempt look worse, not each.
func TestManyHeld(t *testing.T) {
	const linear, noise = 10, 2.5
	for attempt := range 4 {
		few, many := life(t, *manyHeld/10), life(t, *manyHeld)
		t.Logf("connect, added again, status, disconnect: %v of %d, %v of %d", few, *manyHeld/10, many, *manyHeld)
		worst := 0.0
		for _, i := range []int{0, 2, 3} {
			worst = max(worst, many[i].Seconds()/max(few[i], 10*time.Millisecond).Seconds())
		}
		if worst <= linear*noise {
			return
		}
		if attempt == 3 {
			t.Errorf("ten times the routes take %.0f times the time", worst)
		}
	}
}

// again announces routes that stand anew, as the edge path does.
func (b *bulk) again(n int) {
	for _, r := range b.order[:n] {
		b.mu.Lock()
		b.stands[r.Dst] = true
		b.mu.Unlock()
		now := time.Now()
		ev := enforce.Event{Change: enforce.Added, Route: r, Answer: b.edge(enforce.Added, &r), Seen: now, Done: now}
		if ev.Answer.Delete {
			b.Apply(context.Background(), []plan.Action{{Kind: plan.Remove, Route: r}})
			ev.Removed = true
		}
		b.sink.Tell(ev)
	}
}
