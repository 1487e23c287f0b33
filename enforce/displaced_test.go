package enforce_test

import (
	"context"
	"errors"
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
