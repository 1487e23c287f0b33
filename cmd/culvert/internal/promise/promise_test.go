//go:build linux

package promise

import (
	"context"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/testenv"
)

// tally is what all seeds together came to.
type tally struct {
	tables, binary              atomic.Int64
	before, after, of           atomic.Int64 // violations, and questions about protected addresses
	bystanders, removed, routes atomic.Int64
}

// TestPromise: for random policies and tables, before and after, the kernel is
// asked at every boundary; then the session ends and the table is as before.
func TestPromise(t *testing.T) {
	needs(t)
	var sum tally
	t.Cleanup(func() {
		t.Logf("%d tables (%d by the program itself), %d routes, %d removed; protected answers wrong before %d, after %d, of %d; %d others looked at",
			sum.tables.Load(), sum.binary.Load(), sum.routes.Load(), sum.removed.Load(), sum.before.Load(), sum.after.Load(), sum.of.Load(), sum.bystanders.Load())
		if sum.before.Load() == 0 && !t.Failed() {
			t.Error("nothing was wrong before: these tables prove nothing")
		}
	})
	eachSeed(t, *tableSeeds, func(t *testing.T, l *lab, seed uint64) { l.promise(t, seed, &sum) })
}

func (l *lab) promise(t *testing.T, seed uint64, sum *tally) {
	w := newWorld(seed)
	if len(w.sessions) == 0 {
		return
	}
	l.build(t, w)
	before := l.table(t)
	asked := questions(boundaries(w.sessions, before))
	wrong, _ := l.violations(t, w, asked)
	others := l.answers(t, w, asked)
	sum.before.Add(int64(len(wrong)))

	e := l.enforcer(t, seed, sum)
	var states []string // the table after each session was opened
	for _, s := range w.sessions {
		e.open(t, s)
		states = append(states, l.table(t))
	}
	during := states[len(states)-1]
	l.readGateways(w, during)
	l.orphans = true
	wrong, of := l.violations(t, w, asked)
	changed, looked := l.bystanders(t, w, others)
	e.end(t)
	after := l.table(t)

	sum.tables.Add(1)
	sum.after.Add(int64(len(wrong)))
	sum.of.Add(int64(of))
	sum.bystanders.Add(int64(looked))
	sum.routes.Add(int64(len(entries(before))))
	sum.removed.Add(int64(len(gone(before, during))))
	complain(t, "connected, protected addresses", wrong)
	complain(t, "connected, other addresses", changed)
	if d := l.difference(t, before, after, sandwiched(before, states...)); d != "" {
		t.Errorf("seed %d: after the disconnect the table differs:\n%s", seed, d)
	}
	if t.Failed() {
		t.Logf("seed %d\n%sbefore\n%sconnected\n%s\nafter\n%s", seed, w, before, strings.Join(states, "\nthen\n"), after)
	}
}

func complain(t *testing.T, what string, wrong []string) {
	t.Helper()
	const shown = 10
	if len(wrong) > 0 {
		t.Errorf("%s: %d wrong:\n%s", what, len(wrong), strings.Join(wrong[:min(shown, len(wrong))], "\n"))
	}
}

// build makes the world's table.
func (l *lab) build(t *testing.T, w *world) {
	t.Helper()
	l.ns.Sysctl(t, "net.ipv4.nexthop_compat_mode", map[bool]string{false: "0", true: "1"}[w.compat])
	l.reset(t, w.lines)
	l.orphans = false               // nothing was taken out yet
	if l.objects = nil; !w.compat { // else answers name the legs
		l.readObjects(t)
	}
}

// culvert is the thing under test: in this process, or the program.
type culvert interface {
	open(t *testing.T, s enforce.Session)
	end(t *testing.T)
}

// enforcer chooses how a seed's world is enforced: mostly in this process,
// where only the program's wiring is left out.
func (l *lab) enforcer(t *testing.T, seed uint64, sum *tally) culvert {
	t.Helper()
	if *viaBinary > 0 && seed%uint64(*viaBinary) == 0 {
		sum.binary.Add(1)
		p := testenv.NewProgram(t, l.ns, "")
		return &program{p: p, daemon: p.Daemon(t, blind...)}
	}
	return l.inProcess(t, seed%2 == 0)
}

// inProcess runs an Enforcer on the lab.
type inProcess struct {
	e       *enforce.Enforcer
	stop    func() error
	tunnels []string
	close   bool // sessions are closed one by one; else the process ends
}

func (l *lab) inProcess(t *testing.T, closes bool) *inProcess {
	t.Helper()
	return startEnforcer(t, l.sys, &enforcetest.Journal{}, closes)
}

func startEnforcer(t *testing.T, sys enforce.System, j enforce.Journal, closes bool) *inProcess {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	e := enforce.New(sys, j, enforce.Options{})
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	t.Cleanup(cancel)
	select {
	case <-e.Ready():
	case err := <-ended:
		t.Fatal(err)
	}
	return &inProcess{e: e, close: closes, stop: func() error { cancel(); return <-ended }}
}

func (p *inProcess) open(t *testing.T, s enforce.Session) {
	t.Helper()
	st, err := p.e.Open(t.Context(), s)
	if err != nil || st.State != enforce.Enforcing {
		t.Errorf("open %s: %v, %s %s", s.Tunnel, err, st.State, st.Error)
	}
	p.tunnels = append(p.tunnels, s.Tunnel)
}

func (p *inProcess) end(t *testing.T) {
	t.Helper()
	if p.close {
		for _, tunnel := range p.tunnels {
			if st, err := p.e.Close(t.Context(), tunnel); err != nil || st.Error != "" {
				t.Errorf("close %s: %v %s", tunnel, err, st.Error)
			}
		}
	}
	if err := p.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// program is the real one.
type program struct {
	p      *testenv.Program
	daemon *testenv.Process
}

func (p *program) open(t *testing.T, s enforce.Session) {
	t.Helper()
	p.p.Must(t, upArgs(s)...)
	p.p.Must(t, "status", "--wait", "5s")
}

func (p *program) end(t *testing.T) {
	t.Helper()
	if code := p.daemon.Stop(t); code != 0 {
		t.Errorf("the daemon ended with %d:\n%s", code, p.daemon.Output())
	}
}

// upArgs is a session as "culvert up" takes it.
func upArgs(s enforce.Session) []string {
	args := []string{"up", "--tunnel", s.Tunnel, "--protect", join(s.Protect)}
	if len(s.Exclude) > 0 {
		args = append(args, "--exclude", join(s.Exclude))
	}
	for _, srv := range s.Servers {
		args = append(args, "--server", srv.Addr.String()+"/"+srv.Proto)
	}
	return args
}

func join(prefixes []netip.Prefix) string {
	var words []string
	for _, p := range prefixes {
		words = append(words, p.String())
	}
	return strings.Join(words, ",")
}

// patience is how long something may take on a busy machine.
const patience = 10 * time.Second
