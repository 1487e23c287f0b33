package enforcetest_test

import (
	"errors"
	"runtime"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

func read(s *enforcetest.System, t *testing.T) (n int, err error) {
	for _, err := range s.Table(t.Context()) {
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

func TestInterrupt(t *testing.T) {
	s := enforcetest.NewSystem(table(t))
	s.Interrupt(2)
	for range 2 {
		if n, err := read(s, t); !errors.Is(err, enforce.ErrInterrupted) || n == 0 {
			t.Errorf("read %d routes, error %v, want some and %v", n, err, enforce.ErrInterrupted)
		}
	}
	if _, err := read(s, t); err != nil {
		t.Errorf("third reading: %v", err)
	}
}

func TestLostAndOverrun(t *testing.T) {
	s := enforcetest.NewSystem(table(t))
	sink := enforce.NewSink()
	ready, ended := make(chan struct{}), make(chan error)
	seen := 0
	edge := func(enforce.Change, *plan.Route) enforce.Answer { seen++; return enforce.Answer{} }
	go func() { ended <- s.Watch(t.Context(), edge, sink, func() { close(ready) }) }()
	<-ready
	add := func(metric uint32) {
		if err := s.Do(1, func(tb *enforcetest.Table) error {
			return tb.Add(plan.Route{Dst: dst4, Hop: via(2, none), Metric: metric}, enforcetest.Append)
		}); err != nil {
			t.Fatal(err)
		}
	}
	s.Lose(1)
	add(1)
	s.Overrun(1)
	add(2)
	if why := <-sink.DirtyC(); why != "receive buffer overran" {
		t.Errorf("dirty: %s", why)
	}
	add(3)
	broken := errors.New("broken")
	for s.Pending() > 0 {
		runtime.Gosched()
	}
	s.BreakWatch(broken)
	if err := <-ended; !errors.Is(err, broken) {
		t.Errorf("watch ended with %v, want %v", err, broken)
	}
	if seen != 1 {
		t.Errorf("the edge saw %d of 3 announcements, want 1", seen)
	}
}

// TestHalt kills the process between two actions: the first stays done, the
// second is not, and the next process finds things so.
func TestHalt(t *testing.T) {
	s := enforcetest.NewSystem(table(t))
	s.Hook = func(p enforcetest.Point) {
		if p.After && p.N == 0 {
			s.Halt()
		}
	}
	put := func(metric uint32) plan.Action {
		return plan.Action{Kind: plan.Put, Route: plan.Route{Dst: dst4, Hop: via(9, none), Metric: metric, Origin: plan.Own}}
	}
	errs := s.Apply(t.Context(), []plan.Action{put(1), put(2)})
	if errs[0] != nil || !errors.Is(errs[1], enforcetest.ErrHalted) {
		t.Errorf("errors %v", errs)
	}
	if _, err := s.Facts(t.Context()); !errors.Is(err, enforcetest.ErrHalted) {
		t.Errorf("facts of a dead process: %v", err)
	}
	s.Resume()
	if got := to(s.Snapshot(), dst4); len(got) != 1 {
		t.Errorf("after the crash: %q", got)
	}
}

func TestRefuse(t *testing.T) {
	s := enforcetest.NewSystem(table(t))
	full := errors.New("no space left")
	s.Refuse = func(a plan.Action) error {
		if a.Kind == plan.Put {
			return full
		}
		return nil
	}
	errs := s.Apply(t.Context(), []plan.Action{{Kind: plan.Put, Route: plan.Route{Dst: dst4, Hop: via(9, none)}}, {Kind: plan.Remove, Route: plan.Route{Dst: dst4}}})
	if !errors.Is(errs[0], full) || !errors.Is(errs[1], enforce.ErrAlready) {
		t.Errorf("errors %v", errs)
	}
}

func TestJournal(t *testing.T) {
	var j enforcetest.Journal
	entry := func(id uint64) []enforce.Entry { return []enforce.Entry{{ID: id}} }
	hold := func(id uint64, want error) {
		t.Helper()
		if err := j.Hold(entry(id)); !errors.Is(err, want) {
			t.Errorf("hold %d: %v, want %v", id, err, want)
		}
	}
	full := errors.New("no space left")
	hold(1, nil)
	j.Refuse = func(op string) error {
		if op == "hold" {
			return full
		}
		return nil
	}
	hold(2, full)
	j.Refuse = nil
	j.Hook = func(p enforcetest.Point) {
		if !p.After && p.N == 2 {
			j.Halt()
		}
	}
	hold(3, enforcetest.ErrHalted)
	j.Resume()
	hold(4, nil)
	if err := j.Forget([]uint64{1, 99}); err != nil {
		t.Error(err)
	}
	if got, err := j.Load(); err != nil || len(got) != 1 || got[0].ID != 4 {
		t.Errorf("loaded %v, %v, want entry 4", got, err)
	}
}
