//go:build linux

package promise

import (
	"context"
	"iter"
	"os"
	"sync"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/culvert-project/culvert/enforce/rtnl"
)

// mortal is a process that can die between any two of its steps. A step is one
// change of the table or one call of the journal. What is dead fails in all it
// does, and the kernel and the file keep what it had done.
type mortal struct {
	sys     enforce.System
	journal *enforce.FileJournal
	torn    bool // the write of the last step is cut off

	mu   sync.Mutex // guards what follows
	fuse int        // steps left
	dead bool
}

// step counts one and reports whether the process lives to take it.
func (m *mortal) step() (lives, last bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	last = m.fuse == 0 && !m.dead
	m.dead = m.dead || m.fuse == 0
	m.fuse--
	return !m.dead, last
}

func (m *mortal) isDead() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

// Watch implements enforce.System. The dead answer nothing.
func (m *mortal) Watch(ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
	return m.sys.Watch(ctx, func(c enforce.Change, r *plan.Route) enforce.Answer {
		if m.isDead() {
			return enforce.Answer{}
		}
		return edge(c, r)
	}, sink, ready)
}

// Table implements enforce.System.
func (m *mortal) Table(ctx context.Context) iter.Seq2[plan.Route, error] {
	if m.isDead() {
		return func(yield func(plan.Route, error) bool) { yield(plan.Route{}, enforcetest.ErrHalted) }
	}
	return m.sys.Table(ctx)
}

// Apply implements enforce.System.
func (m *mortal) Apply(ctx context.Context, actions []plan.Action) []error {
	errs := make([]error, len(actions))
	for i := range actions {
		if lives, _ := m.step(); !lives {
			errs[i] = enforcetest.ErrHalted
			continue
		}
		errs[i] = m.sys.Apply(ctx, actions[i:i+1])[0]
	}
	return errs
}

// Facts implements enforce.System.
func (m *mortal) Facts(ctx context.Context) (enforce.Facts, error) {
	if m.isDead() {
		return enforce.Facts{}, enforcetest.ErrHalted
	}
	return m.sys.Facts(ctx)
}

// Load implements enforce.Journal.
func (m *mortal) Load() ([]enforce.Entry, error) { return m.journal.Load() }

// Hold implements enforce.Journal.
func (m *mortal) Hold(entries []enforce.Entry) error {
	lives, last := m.step()
	switch {
	case lives:
		return m.journal.Hold(entries)
	case last && m.torn:
		return m.tear(func() error { return m.journal.Hold(entries) })
	}
	return enforcetest.ErrHalted
}

// Forget implements enforce.Journal.
func (m *mortal) Forget(ids []uint64) error {
	lives, last := m.step()
	switch {
	case lives:
		return m.journal.Forget(ids)
	case last && m.torn && len(ids) < m.entries(): // else the file is begun anew
		return m.tear(func() error { return m.journal.Forget(ids) })
	}
	return enforcetest.ErrHalted
}

// LoadMarks implements enforce.MarkStore.
func (m *mortal) LoadMarks() ([]enforce.Mark, bool) { return m.journal.LoadMarks() }

// KeepMarks implements enforce.MarkStore.
func (m *mortal) KeepMarks(c enforce.MarkChange) error {
	lives, last := m.step()
	switch {
	case lives:
		return m.journal.KeepMarks(c)
	case last && m.torn:
		return m.tear(func() error { return m.journal.KeepMarks(c) })
	}
	return enforcetest.ErrHalted
}

func (m *mortal) entries() int {
	all, _ := m.journal.Load()
	return len(all)
}

// tear does a write, but leaves its last bytes out.
func (m *mortal) tear(write func() error) error {
	if err := write(); err != nil {
		return err
	}
	info, err := os.Stat(m.journal.Path())
	if err != nil {
		return err
	}
	if err := os.Truncate(m.journal.Path(), info.Size()-7); err != nil {
		return err
	}
	return enforcetest.ErrHalted
}

// few are some shapes: enough for every kind of step, few enough to die at each.
var few = append([]string{
	"nexthop add id 1 via 192.0.2.254 dev eth0",
	"route add 0.0.0.0/0 via 192.0.2.254 dev eth0 proto dhcp",
	"route add ::/0 via fe80::fe dev eth0 metric 1024 expires 1800 proto ra",
	"route add 172.20.24.0/24 nhid 1",
	"route add 172.20.7.0/24 nexthop via 192.0.2.254 dev eth0 weight 3 nexthop via 10.0.0.30 dev eth1 weight 7",
	"route append 172.20.40.0/24 via 192.0.2.1 dev eth0",
	"route prepend 172.20.40.0/24 via 192.0.2.3 dev eth0 tos 0x10",
	"route prepend 172.20.40.0/24 via 192.0.2.2 dev eth0",
	"route add throw 172.20.13.0/24 metric 4",
	"route add fd20:3::/64 nexthop via fd01::1 dev eth0 weight 2 nexthop via fd00::1e dev eth1 weight 5",
	"route add fd20:4::/64 from fd99::/16 via fd01::1 dev eth0",
}, vpn...)

// TestDeathAtEveryStep kills the process before every single step of a
// session's life, with and without tearing what it was writing. The next one
// recovers, or enforces again and stops. Then the table is as before.
func TestDeathAtEveryStep(t *testing.T) {
	needs(t)
	split := everything
	split.Protect = everything.Protect[1:3] // 128.0.0.0/1 and ::/1
	split.Exclude = nil
	deaths := 0
	t.Cleanup(func() { t.Logf("%d deaths", deaths) })
	l := newLab(t)
	l.reset(t, few)
	before := l.table(t)
	for _, s := range []enforce.Session{everything, split} {
		during := l.sight(t, s)
		for n := 0; !t.Failed() && l.dies(t, s, n, before, during); n++ {
			deaths++
		}
	}
	if deaths < 50 && !t.Failed() {
		t.Errorf("only %d steps", deaths)
	}
}

// sight returns the table while a session is open.
func (l *lab) sight(t *testing.T, s enforce.Session) string {
	t.Helper()
	e := l.inProcess(t, true)
	e.open(t, s)
	during := l.table(t)
	e.end(t)
	return during
}

// dies lives one life that ends before the given step, and reports whether
// there was such a step.
func (l *lab) dies(t *testing.T, s enforce.Session, step int, before, during string) bool {
	t.Helper()
	dir := t.TempDir()
	m := &mortal{sys: l.sys, journal: l.journal(t, dir), torn: step%3 == 2, fuse: step}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	e := enforce.New(m, m, enforce.Options{})
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	<-e.Ready()
	_, _ = e.Open(t.Context(), s)
	_, _ = e.Close(t.Context(), s.Tunnel)
	cancel()
	<-ended
	died := m.isDead()
	if err := m.journal.Close(); err != nil {
		t.Error(err)
	}
	l.revive(t, dir, s, step%2 == 0)
	if d := l.difference(t, before, l.table(t), sandwiched(before, during)); d != "" {
		t.Errorf("died before step %d (torn %v, recovered %v) of %v: the table differs:\n%s", step, m.torn, step%2 == 0, s.Protect, d)
	}
	return died
}

// journal opens the lab's journal in a folder.
func (l *lab) journal(t *testing.T, dir string) *enforce.FileJournal {
	t.Helper()
	var b enforce.Binding
	var err error
	l.ns.Run(t, func() { b, err = rtnl.Binding() })
	if err != nil {
		t.Fatal(err)
	}
	j, err := enforce.OpenJournal(dir, b, enforce.RouteCheck(l.sys))
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// revive is the next process on the same journal: it only recovers, or
// enforces once more and stops.
func (l *lab) revive(t *testing.T, dir string, s enforce.Session, onlyRecover bool) {
	t.Helper()
	j := l.journal(t, dir)
	if onlyRecover {
		if rec, err := enforce.Recover(t.Context(), l.sys, j, enforce.Options{}); err != nil || len(rec.Pending) > 0 {
			t.Errorf("recover: %v, pending %v", err, rec.Pending)
		}
	} else {
		e := startEnforcer(t, l.sys, j, true)
		e.open(t, s)
		e.end(t)
	}
	if left, err := j.Load(); err != nil || len(left) > 0 {
		t.Errorf("the journal keeps %v, %v", left, err)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}
