package enforce_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// taker is a System whose first delete also takes another route.
type taker struct {
	*enforcetest.System
	victim plan.Route
	took   bool
}

func (s *taker) Apply(ctx context.Context, actions []plan.Action) []error {
	errs := s.System.Apply(ctx, actions)
	for i, a := range actions {
		if a.Kind == plan.Remove && !s.took {
			s.took = true
			_ = s.System.Do(enforcetest.OwnPort, func(tb *enforcetest.Table) error { return tb.DeleteExact(s.victim) })
			errs[i] = &enforce.DisplacedError{Routes: []plan.Route{s.victim}, Why: errors.New("its gateway is out"), Result: errs[i]}
		}
	}
	return errs
}

// TestDisplacedIsHeld: what a delete took by mistake and could not be put back is
// held, and comes back when it can. The delete itself is a success.
func TestDisplacedIsHeld(t *testing.T) {
	sys := newHost(t)
	victim := via("203.0.113.0/24", "192.168.1.1", eth0)
	add(t, sys, victim)
	add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
	before := sys.Text()
	e, stop := run(t, &taker{System: sys, victim: victim}, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	eventually(t, "it is back", func() bool { return strings.Contains(sys.Text(), "203.0.113.0/24") })
	if st := status(t, e); st.State != enforce.Enforcing || st.Removed != 1 {
		t.Errorf("state %s, %d removed, error %q", st.State, st.Removed, st.Error)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if after := sys.Text(); after != before {
		t.Errorf("after\n%sbefore\n%s", after, before)
	}
}

// slip is a System whose process dies after a delete took another route than it
// named, before that is put back.
type slip struct {
	*enforcetest.System
	journal *enforcetest.Journal
	victim  plan.Route
}

func (s *slip) Apply(ctx context.Context, actions []plan.Action) []error {
	if slices.ContainsFunc(actions, func(a plan.Action) bool { return a.Kind == plan.Remove }) {
		_ = s.System.Do(enforcetest.OwnPort, func(tb *enforcetest.Table) error { return tb.DeleteExact(s.victim) })
		s.System.Halt()
		s.journal.Halt()
	}
	return s.System.Apply(ctx, actions)
}

// TestDeathBetweenDeleteAndPutBack: what a delete takes by mistake is written down
// before, where the table shows that it may be taken. Where nothing can be taken
// nothing is written.
func TestDeathBetweenDeleteAndPutBack(t *testing.T) {
	sys, j := newHost(t), &enforcetest.Journal{}
	victim := via("172.31.0.0/16", "192.168.1.66", eth0)
	victim.Metric = 50
	conflict := via("172.31.0.0/16", "192.168.1.66", eth0)
	add(t, sys, victim)
	e, stop := run(t, &slip{System: sys, journal: j, victim: victim}, j, enforce.Options{})
	open(t, e, split) // the one with the metric stays: it never wins
	if got := j.Entries(); len(got) > 0 || !strings.Contains(sys.Text(), "metric 50") {
		t.Fatalf("held %v of\n%s", got, sys.Text())
	}
	before := sys.Text()
	sys.Lose(1 << 20) // the loop finds the conflict, not the edge
	add(t, sys, conflict)
	e.Wake("test")
	eventually(t, "the process dies", func() bool { return !strings.Contains(sys.Text(), "metric 50") })
	_ = stop() // the dead give nothing back
	sys.Resume()
	j.Resume()
	if _, err := enforce.Recover(t.Context(), sys, j, enforce.Options{}); err != nil {
		t.Fatal(err)
	}
	_ = sys.Do(0, func(tb *enforcetest.Table) error { return tb.DeleteExact(conflict) })
	if after := sys.Text(); after != before {
		t.Errorf("after\n%s\nbefore\n%s", after, before)
	}
}

// TestEdgeSparesLookAlikes: what the kernel may find first for a delete stays where it
// is excluded by the operator. The edge path does not wait for a disk, so it leaves
// such a conflict to the loop, which writes down what the delete may take.
func TestEdgeSparesLookAlikes(t *testing.T) {
	const docker0 = eth0 + 30
	sys, j := newHost(t), &enforcetest.Journal{}
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		tb.AddLink(plan.Link{Index: docker0, Name: "docker0", Up: true})
		return nil
	})
	victim := via("172.31.5.0/24", "", docker0)
	conflict := victim.WithHops(victim.Hop, plan.Hop{Link: eth0})
	s := split
	s.ExcludeInterfaces = []string{"docker0"}
	add(t, sys, victim)
	e, stop := run(t, &slip{System: sys, journal: j, victim: victim}, j, enforce.Options{})
	open(t, e, s)
	before := sys.Text()
	add(t, sys, conflict)
	eventually(t, "the process dies in the loop's delete", func() bool {
		got := linesOf(sys, "172.31.5.0/24")
		return len(got) == 1 && strings.Contains(got[0], "dev 2")
	})
	_ = stop()
	sys.Resume()
	j.Resume()
	if _, err := enforce.Recover(t.Context(), sys, j, enforce.Options{}); err != nil {
		t.Fatal(err)
	}
	_ = sys.Do(0, func(tb *enforcetest.Table) error { return tb.DeleteExact(conflict) })
	if after := sys.Text(); after != before {
		t.Errorf("after\n%s\nbefore\n%s", after, before)
	}
}
