package enforce_test

import (
	"context"
	"iter"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// slow is a System whose table takes so long to read.
type slow struct {
	*enforcetest.System
	takes    atomic.Int64 // a time.Duration
	readings atomic.Int64
}

func (s *slow) Table(ctx context.Context) iter.Seq2[plan.Route, error] {
	s.readings.Add(1)
	time.Sleep(time.Duration(s.takes.Load()))
	return s.System.Table(ctx)
}

// TestPauseHasABound: a reading that took long, because the machine stood still say,
// makes nobody deaf. What is only a hint is followed within a second, what is wrong
// already as soon as a reading takes.
func TestPauseHasABound(t *testing.T) {
	hint := func(_ *enforce.Enforcer, sys *slow) { sys.SetBypasses("a rule") }
	link := func(_ *enforce.Enforcer, sys *slow) {
		_ = sys.Do(0, func(tb *enforcetest.Table) error { return tb.Rename(eth0, "lan0") })
	}
	leak := func(e *enforce.Enforcer, _ *slow) { e.Wake("leak") }
	for name, c := range map[string]struct {
		took  time.Duration
		news  func(*enforce.Enforcer, *slow)
		least time.Duration
		most  time.Duration
	}{
		"frozen for an hour, a hint": {time.Hour, hint, 900 * time.Millisecond, time.Second},
		"frozen for an hour, a leak": {time.Hour, leak, 900 * time.Millisecond, time.Second},
		"slow, a hint":               {100 * time.Millisecond, hint, 300 * time.Millisecond, 400 * time.Millisecond},
		"slow, a leak":               {100 * time.Millisecond, leak, 50 * time.Millisecond, 100 * time.Millisecond},
		"slow, a link":               {100 * time.Millisecond, link, 50 * time.Millisecond, 100 * time.Millisecond},
		"fast, a hint":               {0, hint, 10 * time.Millisecond, 20 * time.Millisecond},
		"fast, a leak":               {0, leak, 10 * time.Millisecond, 20 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sys := &slow{System: newHost(t)}
				e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
				open(t, e, split)
				time.Sleep(10 * time.Second) // all is quiet
				sys.takes.Store(int64(c.took))
				n := sys.readings.Load()
				e.Wake("test")
				synctest.Wait()
				time.Sleep(c.took)
				synctest.Wait()
				if got := sys.readings.Load() - n; got != 1 {
					t.Fatalf("read %d times", got)
				}
				sys.takes.Store(0)
				sys.Lose(1) // nobody is told of it
				do(t, sys.System, 4711, func(tb *enforcetest.Table) error { return tb.DeleteExact(via("172.31.0.0/16", "10.8.0.1", tun0)) })
				start := time.Now()
				c.news(e, sys)
				for leavesBy(sys.System, "172.31.0.1") != tun0 && time.Since(start) < time.Minute {
					time.Sleep(time.Millisecond)
					synctest.Wait()
				}
				if took := time.Since(start); took < c.least || took > c.most+time.Millisecond {
					t.Errorf("it is mended after %v", took)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
