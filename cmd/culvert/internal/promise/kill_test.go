//go:build linux

package promise

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
	"github.com/culvert-project/culvert/testenv"
)

// toll counts the kills by what they interrupted.
type toll struct {
	kills atomic.Int64
	out   atomic.Int64 // routes that were out at the moments of death looked at
	mu    sync.Mutex
	by    map[string]int
}

// sampled: one in so many deaths is looked at, to see that routes were out.
const sampled = 5

func (k *toll) count(what string, out int) {
	k.kills.Add(1)
	k.out.Add(int64(out))
	k.mu.Lock()
	defer k.mu.Unlock()
	k.by[what]++
}

// TestKills: the real daemon is killed at random moments while it connects, is
// attacked, changes its policy or disconnects. The next one recovers, starts
// and stops, or enforces again and stops. No route is lost, none is altered.
func TestKills(t *testing.T) {
	needs(t)
	sum := toll{by: map[string]int{}}
	t.Cleanup(func() {
		t.Logf("%d kills (%v); %d routes were out at one in %d of them", sum.kills.Load(), sum.by, sum.out.Load(), sampled)
		if sum.out.Load() == 0 && *onlySeed == 0 && !t.Failed() {
			t.Error("no route was out at any moment of death: these kills prove nothing")
		}
		if want := int64(*killRuns); *onlySeed == 0 && sum.kills.Load() < want && !t.Failed() {
			t.Errorf("only %d of %d kills", sum.kills.Load(), want)
		}
	})
	tables := map[*lab]scene{}
	var mu sync.Mutex
	eachSeed(t, *killRuns, func(t *testing.T, l *lab, seed uint64) {
		mu.Lock()
		sc, ok := tables[l]
		mu.Unlock()
		if !ok {
			sc = l.scene(t)
			mu.Lock()
			tables[l] = sc
			mu.Unlock()
		}
		l.kill(t, sc, seed, &sum)
	})
}

// scene is one table that outlives many daemons.
type scene struct {
	p              *testenv.Program
	before, during string
	flags          []string // of its daemons
}

func (l *lab) scene(t *testing.T) scene {
	t.Helper()
	sc := scene{p: testenv.NewProgram(t, l.ns, ""), before: l.fill(t)}
	d := l.run(t, sc.p, everything, sc.flags...)
	sc.during = l.table(t)
	stop(t, d)
	return sc
}

// moments are what a kill can interrupt. Each starts it and returns the daemon
// and what to wait for before the table is looked at.
var moments = []struct {
	name  string
	delay time.Duration // the kill comes within
	begin func(t *testing.T, l *lab, sc scene, rng *rand.Rand) (*testenv.Process, <-chan struct{})
}{
	{"connect", 60 * time.Millisecond, beginConnect},
	{"open", 30 * time.Millisecond, beginOpen},
	{"attack", 30 * time.Millisecond, beginAttack},
	{"policy", 30 * time.Millisecond, beginPolicy},
	{"stop", 30 * time.Millisecond, beginStop},
	{"close", 30 * time.Millisecond, beginClose},
}

func beginConnect(t *testing.T, _ *lab, sc scene, _ *rand.Rand) (*testenv.Process, <-chan struct{}) {
	return sc.p.StartDaemon(t, append(upArgs(everything)[1:], sc.flags...)...), nil
}

func beginOpen(t *testing.T, _ *lab, sc scene, _ *rand.Rand) (*testenv.Process, <-chan struct{}) {
	d := sc.p.Daemon(t, sc.flags...)
	return d, sc.ask(t, control.Request{Op: control.Open, Session: &everything})
}

func beginAttack(t *testing.T, l *lab, sc scene, rng *rand.Rand) (*testenv.Process, <-chan struct{}) {
	d := l.run(t, sc.p, everything, sc.flags...)
	var lines []string
	for i := range 60 {
		lines = append(lines,
			fmt.Sprintf("route append 172.%d.%d.0/24 dev eth2 proto 77", 21+rng.IntN(8), i),
			fmt.Sprintf("route append fd21:%d::/64 dev eth1 proto 77", i))
	}
	return d, l.strikeAside(t, [][]string{lines})
}

func beginPolicy(t *testing.T, l *lab, sc scene, rng *rand.Rand) (*testenv.Process, <-chan struct{}) {
	d := l.run(t, sc.p, everything, sc.flags...)
	s := everything
	s.Protect = everything.Protect[rng.IntN(2) : 2+rng.IntN(3)]
	return d, sc.ask(t, control.Request{Op: control.Open, Session: &s})
}

func beginStop(t *testing.T, l *lab, sc scene, _ *rand.Rand) (*testenv.Process, <-chan struct{}) {
	d := l.run(t, sc.p, everything, sc.flags...)
	if err := d.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	return d, nil
}

func beginClose(t *testing.T, l *lab, sc scene, _ *rand.Rand) (*testenv.Process, <-chan struct{}) {
	d := l.run(t, sc.p, everything, sc.flags...)
	return d, sc.ask(t, control.Request{Op: control.Close, Tunnel: everything.Tunnel})
}

// ask sends a request that may never be answered.
func (sc scene) ask(t *testing.T, r control.Request) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = control.Ask(t.Context(), sc.p.Socket, r)
	}()
	return done
}

func (l *lab) kill(t *testing.T, sc scene, seed uint64, sum *toll) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0x6b696c6c))
	if seed%8 != 0 {
		sc.flags = blind
	}
	m := moments[rng.IntN(len(moments))]
	d, done := m.begin(t, l, sc, rng)
	time.Sleep(time.Duration(rng.Int64N(int64(m.delay))))
	d.Kill()
	if done != nil {
		<-done
	}
	out := 0
	if seed%sampled == 0 {
		out = len(gone(sc.before, l.table(t)))
	}
	sum.count(m.name, out)
	how := l.next(t, sc, seed)
	if m.name == "attack" {
		l.batch(t, "-4", []string{"route flush proto 77"})
		l.batch(t, "-6", []string{"route flush proto 77"})
	}
	if diff := l.difference(t, sc.before, l.table(t), sandwiched(sc.before, sc.during)); diff != "" {
		t.Errorf("seed %d, killed in %s, then %s: the table differs:\n%s\nkilled daemon:\n%s", seed, m.name, how, diff, d.Output())
	}
}

// next is the process after a killed one.
func (l *lab) next(t *testing.T, sc scene, seed uint64) string {
	t.Helper()
	switch seed % 4 {
	case 0, 2:
		sc.p.Must(t, "recover")
		return "recovered"
	case 1:
		stop(t, sc.p.Daemon(t, sc.flags...))
		return "started anew"
	default:
		stop(t, l.run(t, sc.p, everything, sc.flags...))
		return "started anew with the session"
	}
}
