package enforce_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// ending notes how long its watch goes on.
type ending struct {
	*enforcetest.System
	watching atomic.Bool
}

func (s *ending) Watch(ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
	s.watching.Store(true)
	defer s.watching.Store(false)
	err := s.System.Watch(ctx, edge, sink, ready)
	time.Sleep(20 * time.Millisecond) // it takes its time to leave
	return err
}

// protections are what an Enforcer said to be protected, in order.
type protections struct {
	sync.Mutex
	list []enforce.Protection
}

func (p *protections) note(now enforce.Protection) {
	p.Lock()
	defer p.Unlock()
	p.list = append(p.list, now)
}

// sessions is how many the last one protects.
func (p *protections) sessions() int {
	p.Lock()
	defer p.Unlock()
	return len(p.list[len(p.list)-1].Sessions)
}

// TestDeadWatch: when the watch fails, Run ends with its error and gives everything back.
// Whoever guards packets is not told that nothing is protected: nobody asked for the end.
func TestDeadWatch(t *testing.T) {
	for _, loss := range []enforce.Loss{"", enforce.LossRestore, enforce.LossGuard} {
		sys := &ending{System: newHost(t)}
		add(t, sys.System, via("172.31.5.0/24", "192.168.1.66", eth0))
		before := sys.Text()
		told := &protections{}
		e := enforce.New(sys, &enforcetest.Journal{}, enforce.Options{OnLoss: loss, OnPolicy: told.note})
		ended := make(chan error, 1)
		go func() { ended <- e.Run(t.Context()) }()
		<-e.Ready()
		open(t, e, split)
		broken := errors.New("the socket is gone")
		sys.BreakWatch(broken)
		select {
		case err := <-ended:
			if !errors.Is(err, broken) {
				t.Errorf("it ends with %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("it goes on without a watch")
		}
		if told.sessions() != 1 || sys.watching.Load() {
			t.Errorf("told %+v, watching %v", told.list, sys.watching.Load())
		}
		sameAfter(t, "the end", before, sys.Text())
		if _, err := e.Status(t.Context()); err == nil {
			t.Error("what has ended answers")
		}
	}
}

// TestAskedEnd: whoever guards packets is told that nothing is protected any more when
// the end was asked for, and the watch has ended with it.
func TestAskedEnd(t *testing.T) {
	sys := &ending{System: newHost(t)}
	told := &protections{}
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{OnPolicy: told.note})
	open(t, e, split)
	if told.sessions() != 1 {
		t.Errorf("told %+v", told.list)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if told.sessions() != 0 || sys.watching.Load() {
		t.Errorf("told %+v, watching %v", told.list, sys.watching.Load())
	}
}

// deafSystem cannot watch.
type deafSystem struct{ *enforcetest.System }

var errDeaf = errors.New("no socket")

func (deafSystem) Watch(context.Context, enforce.Edge, *enforce.Sink, func()) error { return errDeaf }

// badStore is a SessionStore that fails.
type badStore struct {
	load, keep error
	kept       [][]enforce.KeptSession
	mu         sync.Mutex
}

func (s *badStore) LoadSessions() ([]enforce.KeptSession, error) { return nil, s.load }

func (s *badStore) KeepSessions(list []enforce.KeptSession) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.keep; err != nil {
		s.keep = nil // once
		return err
	}
	s.kept = append(s.kept, list)
	return nil
}

// TestCannotStart: what it cannot begin without ends it, by name, and it changes nothing.
func TestCannotStart(t *testing.T) {
	bad := errors.New("bad sector")
	refuse := func(op string) error {
		if op == "load" {
			return bad
		}
		return nil
	}
	for name, c := range map[string]struct {
		sys   func(*enforcetest.System) enforce.System
		j     *enforcetest.Journal
		opt   enforce.Options
		want  error
		words string
	}{
		"journal":  {j: &enforcetest.Journal{Refuse: refuse}, want: bad, words: "load journal"},
		"sessions": {opt: enforce.Options{Sessions: &badStore{load: bad}}, want: bad, words: "load sessions"},
		"watch":    {sys: func(s *enforcetest.System) enforce.System { return deafSystem{s} }, want: errDeaf, words: "no socket"},
	} {
		fake := newHost(t)
		before := fake.Text()
		var sys enforce.System = fake
		if c.sys != nil {
			sys = c.sys(fake)
		}
		if c.j == nil {
			c.j = &enforcetest.Journal{}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		err := enforce.New(sys, c.j, c.opt).Run(ctx)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) || ctx.Err() != nil {
			t.Errorf("%s: it ends with %v", name, err)
		}
		sameAfter(t, name, before, fake.Text())
		cancel()
	}
}

// TestSessionsAreKeptLater: what a store would not take is brought to it again with the
// next look at the table.
func TestSessionsAreKeptLater(t *testing.T) {
	store := &badStore{keep: errors.New("no space")}
	e, stop := run(t, newHost(t), &enforcetest.Journal{}, enforce.Options{Sessions: store})
	open(t, e, split)
	e.Wake("test")
	eventually(t, "the session is kept", func() bool {
		store.mu.Lock()
		defer store.mu.Unlock()
		return len(store.kept) > 0 && len(store.kept[len(store.kept)-1]) == 1
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestHeldByAnotherInterface: while nobody watched, the interface of a held route became
// another in one respect. Its route is not given to that.
func TestHeldByAnotherInterface(t *testing.T) {
	for name, c := range map[string]struct {
		change func(tb *enforcetest.Table) error
		back   bool
	}{
		"the same":      {func(*enforcetest.Table) error { return nil }, true},
		"another name":  {func(tb *enforcetest.Table) error { return tb.Rename(eth0, "lan0") }, false},
		"another by HW": {func(tb *enforcetest.Table) error { return anotherHW(tb) }, false},
		"gone":          {func(tb *enforcetest.Table) error { return tb.DeleteLink(eth0) }, false},
	} {
		sys, j := newHost(t), &enforcetest.Journal{}
		add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
		e, stop := run(t, sys, j, enforce.Options{})
		open(t, e, split)
		sys.Halt()
		j.Halt()
		_ = stop() // the dead give nothing back
		sys.Resume()
		j.Resume()
		do(t, sys, 0, c.change)
		rec, err := enforce.Recover(t.Context(), sys, j, enforce.Options{})
		if err != nil || len(j.Entries()) > 0 || (len(rec.Restored) == 1) != c.back {
			t.Errorf("%s: %+v, %v, held %+v", name, rec, err, j.Entries())
		}
		if got := strings.Contains(sys.Text(), "172.31.5.0/24"); got != c.back {
			t.Errorf("%s: it is back: %v\n%s", name, got, sys.Text())
		}
	}
}

// anotherHW takes eth0 away and makes one of its name and index with another address.
func anotherHW(tb *enforcetest.Table) error {
	err := tb.DeleteLink(eth0)
	tb.AddLink(plan.Link{Index: eth0, Name: "eth0", HW: "02:00:00:00:00:99", Up: true})
	return errors.Join(err, tb.AddAddress(eth0, pfx("192.168.1.10/24")))
}
