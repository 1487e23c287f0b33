package witness

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/loader"
)

// fakeProbe is a loader in memory.
type fakeProbe struct {
	mu         sync.Mutex
	sets       []loader.Config
	fail       error
	counters   []loader.Counter
	senders    []loader.Sender
	sendersErr error
	status     loader.Status
	samples    chan loader.Sample
	closed     bool
}

func (p *fakeProbe) Set(cfg loader.Config) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return p.fail
	}
	p.sets = append(p.sets, cfg)
	return nil
}

func (p *fakeProbe) Counters() ([]loader.Counter, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]loader.Counter(nil), p.counters...), nil
}

func (p *fakeProbe) Senders() ([]loader.Sender, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]loader.Sender(nil), p.senders...), p.sendersErr
}

func (p *fakeProbe) Status() (loader.Status, error) { return p.status, nil }

func (p *fakeProbe) Read(ctx context.Context, f func(loader.Sample)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-p.samples:
			f(s)
		}
	}
}

func (p *fakeProbe) Close() error { p.closed = true; return nil }

// last is what is in force, in words.
func (p *fakeProbe) last() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.sets) == 0 {
		return "nothing was set"
	}
	return shown(policy{config: p.sets[len(p.sets)-1]})
}

// deadlines are those of what is in force.
func (p *fakeProbe) deadlines() (heartbeat, remaining time.Duration) {
	cfg := p.sets[len(p.sets)-1]
	return cfg.Heartbeat, cfg.Remaining
}

var start = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// clock is a keeper whose time is set by hand.
func clock(p *fakeProbe, want Rules) (*keeper, *time.Time) {
	k, now, _ := sleeper(p, want)
	return k, now
}

// sleeper is a keeper on a machine that also sleeps by hand.
func sleeper(p *fakeProbe, want Rules) (*keeper, *time.Time, *time.Duration) {
	now, slept := start, time.Duration(0)
	k := newKeeper(p, want, slog.New(slog.DiscardHandler))
	k.now = func() time.Time { return now }
	k.boot = func() time.Duration { return now.Sub(start) + slept }
	return k, &now, &slept
}

func sessions(list ...enforce.ProtectedSession) enforce.Protection {
	return enforce.Protection{Sessions: list}
}

func TestKeeperSets(t *testing.T) {
	p := &fakeProbe{}
	k, _ := clock(p, Rules{})
	k.protect(sessions(protected("tun0", 7, "10.0.0.0/8")))
	k.protect(sessions(protected("tun0", 7, "10.0.0.0/8")))
	k.tick()
	if len(p.sets) != 1 || p.last() != "10.0.0.0/8 protected by 7\n" {
		t.Errorf("%d sets: %s", len(p.sets), p.last())
	}
	done := k.end("tun0")
	k.protect(sessions())
	done()
	if len(p.sets) != 2 || p.last() != "" {
		t.Errorf("%d sets: %s", len(p.sets), p.last())
	}
	id := p.sets[0].Prefixes[0].ID
	for _, x := range p.sets[0].Prefixes {
		id = max(id, x.ID)
	}
	if own, ok := k.ownerOf(id); !ok || own.tunnel != "tun0" {
		t.Errorf("an ID of before is forgotten: %v, %v", own, ok)
	}
}

func TestKeeperFailure(t *testing.T) {
	p := &fakeProbe{fail: errors.New("no memory")}
	k, _ := clock(p, Rules{Drop: true})
	k.protect(sessions(protected("tun0", 7, "10.0.0.0/8")))
	if _, err := k.state(); !errors.Is(err, p.fail) {
		t.Errorf("the failure is not told: %v", err)
	}
	p.fail = nil
	k.tick()
	if _, err := k.state(); err != nil || p.last() != "10.0.0.0/8 protected by 7 drop\n" {
		t.Errorf("not tried again: %v, %s", err, p.last())
	}
}

// TestKeeperAdopts: what an earlier daemon had in force stays until the sessions
// are known, and sessions whose tunnels are away are guarded on.
func TestKeeperAdopts(t *testing.T) {
	p := &fakeProbe{}
	k, _ := clock(p, Rules{Guard: true})
	k.hold([]enforce.Session{{Tunnel: "tun0", Protect: pfx("10.0.0.0/8"), Rearm: true}, {Tunnel: "wg0", Protect: pfx("10.1.0.0/16"), Rearm: true}})
	k.protect(sessions(protected("wg0", 9, "10.1.0.0/16")))
	if len(p.sets) != 0 {
		t.Errorf("set before the sessions are known: %s", p.last())
	}
	k.begin()
	if got := p.last(); got != "10.0.0.0/8 protected by 0 drop\n10.1.0.0/16 protected by 9 drop\n" {
		t.Errorf("in force:\n%s", got)
	}
	if holding, _ := k.state(); strings.Join(holding, " ") != "tun0" {
		t.Errorf("holding %v", holding)
	}
	k.protect(sessions(protected("wg0", 9, "10.1.0.0/16"), protected("tun0", 11, "10.0.0.0/8")))
	k.protect(sessions(protected("wg0", 9, "10.1.0.0/16"))) // and its session ended
	if got := p.last(); got != "10.1.0.0/16 protected by 9 drop\n" {
		t.Errorf("in force after the end of a session:\n%s", got)
	}
}

func TestKeeperForgets(t *testing.T) {
	p := &fakeProbe{}
	k, _ := clock(p, Rules{Guard: true})
	k.hold([]enforce.Session{{Tunnel: "tun0", Protect: pfx("10.0.0.0/8")}})
	k.begin()
	if !k.forget("tun0") || k.forget("tun0") || p.last() != "" {
		t.Errorf("in force:\n%s", p.last())
	}
	// Without a guard nobody waits.
	p = &fakeProbe{}
	k, _ = clock(p, Rules{Drop: true})
	k.hold([]enforce.Session{{Tunnel: "tun0", Protect: pfx("10.0.0.0/8")}})
	if k.begin(); p.last() != "" {
		t.Errorf("in force:\n%s", p.last())
	}
}

func TestKeeperDeadline(t *testing.T) {
	p := &fakeProbe{}
	k, now := clock(p, Rules{Guard: true, For: time.Minute})
	k.protect(sessions(protected("tun0", 7, "10.0.0.0/8"), protected("wg0", 9, "10.1.0.0/16")))
	*now = start.Add(10 * time.Second)
	k.tick()
	if beat, left := p.deadlines(); beat != time.Minute || left != 0 {
		t.Errorf("while the tunnels stand: %v without a sign of the daemon, %v in all", beat, left)
	}
	lost := *now
	k.protect(sessions(protected("tun0", 0, "10.0.0.0/8"), protected("wg0", 0, "10.1.0.0/16")))
	*now = lost.Add(30 * time.Second)
	ended := k.tick()
	if beat, left := p.deadlines(); len(ended) != 0 || beat != 0 || left != 30*time.Second {
		t.Errorf("while the tunnels are away: ended %v, %v without a sign of the daemon, %v in all", ended, beat, left)
	}
	k.protect(sessions(protected("tun0", 0, "10.0.0.0/8"), protected("wg0", 10, "10.1.0.0/16")))
	*now = lost.Add(time.Minute)
	if ended := k.tick(); strings.Join(ended, " ") != "tun0" || len(k.tick()) != 0 {
		t.Errorf("at its end: %v", ended)
	}
	if got := p.last(); got != "10.0.0.0/8 protected by 0\n10.1.0.0/16 protected by 10 drop\n" {
		t.Errorf("in force:\n%s", got)
	}
	if holding, _ := k.state(); len(holding) != 0 {
		t.Errorf("holding %v", holding)
	}
	// Back, and lost again: a new guard.
	k.protect(sessions(protected("tun0", 12, "10.0.0.0/8"), protected("wg0", 10, "10.1.0.0/16")))
	k.protect(sessions(protected("tun0", 0, "10.0.0.0/8"), protected("wg0", 10, "10.1.0.0/16")))
	if holding, _ := k.state(); strings.Join(holding, " ") != "tun0" || !strings.Contains(p.last(), "by 0 drop") {
		t.Errorf("holding %v:\n%s", holding, p.last())
	}
}

// TestKeeperSleeps: a machine that sleeps for longer than a guard lasts. The daemon sleeps too, so the silence is no sign of
// its end; what is away is away in sleep as well, for the kernel and for the daemon alike.
func TestKeeperSleeps(t *testing.T) {
	p := &fakeProbe{}
	k, _, slept := sleeper(p, Rules{Drop: true, For: time.Minute})
	k.protect(sessions(protected("tun0", 7, "10.0.0.0/8")))
	*slept = time.Hour
	if got := k.done("tun0"); got != report.Drop {
		t.Errorf("on waking: %v", got)
	}
	if ended := k.tick(); len(ended) != 0 {
		t.Errorf("ended with the tunnel up: %v", ended)
	}
	k.protect(sessions(protected("tun0", 0, "10.0.0.0/8")))
	*slept += 59 * time.Second
	if ended := k.tick(); len(ended) != 0 || k.done("tun0") != report.Drop {
		t.Errorf("a guard that has not lasted its time: ended %v, %v", ended, k.done("tun0"))
	}
	if _, left := p.deadlines(); left != time.Second {
		t.Errorf("%v left of a minute after 59 s of sleep", left)
	}
	*slept += time.Second
	if got := k.done("tun0"); got != report.Count {
		t.Errorf("the kernel's drops have ended: %v", got)
	}
	if ended := k.tick(); strings.Join(ended, " ") != "tun0" {
		t.Errorf("a guard that lasted its time in sleep: ended %v", ended)
	}
}

func TestKeeperStops(t *testing.T) {
	for _, tt := range []struct {
		name  string
		want  Rules
		p     enforce.Protection
		stays bool
	}{
		{"guard", Rules{Guard: true}, sessions(protected("tun0", 7, "10.0.0.0/8")), true},
		{"guard of nothing", Rules{Guard: true}, sessions(), false},
		{"drop", Rules{Drop: true}, sessions(protected("tun0", 7, "10.0.0.0/8")), false},
	} {
		p := &fakeProbe{}
		k, _ := clock(p, tt.want)
		k.protect(tt.p)
		before := p.last()
		if got := k.freeze(true); got != tt.stays {
			t.Errorf("%s: stays %t", tt.name, got)
		}
		k.protect(sessions()) // the enforcer stops
		if err := k.release(); err != nil {
			t.Error(err)
		}
		if stays := p.last() == before && before != ""; stays != tt.stays {
			t.Errorf("%s: in force at the end:\n%s", tt.name, p.last())
		}
	}
}

// TestKeeperMode: what is said of drops is what the policy in force does, for
// each session by itself.
func TestKeeperMode(t *testing.T) {
	p := &fakeProbe{}
	k, now := clock(p, Rules{Drop: true, For: time.Minute})
	tun := protected("tun0", 7, "10.0.0.0/8")
	step := func(when string, mode, tun0, wg0 report.Mode) {
		t.Helper()
		if a, b, c := k.mode(), k.done("tun0"), k.done("wg0"); a != mode || b != tun0 || c != wg0 {
			t.Errorf("%s: %s, of tun0 %s, of wg0 %s; want %s, %s, %s", when, a, b, c, mode, tun0, wg0)
		}
	}
	step("nothing is protected", report.Drop, report.Off, report.Off)
	k.protect(sessions(tun))
	step("a session", report.Drop, report.Drop, report.Off)
	p.fail = errors.New("no memory")
	k.protect(sessions(tun, protected("wg0", 9, "10.1.0.0/16")))
	step("a second one, that could not be set", report.Count, report.Drop, report.Off)
	p.fail = nil
	k.tick()
	step("tried again", report.Drop, report.Drop, report.Drop)
	*now = start.Add(time.Hour)
	step("nothing renewed the deadline", report.Count, report.Count, report.Count)
	k.tick()
	step("renewed", report.Drop, report.Drop, report.Drop)

	k, _ = clock(&fakeProbe{}, Rules{})
	k.protect(sessions(tun))
	step("nobody asked for drops", report.Count, report.Count, report.Off)
}

// TestKeeperLingers: what leaks of a session whose tunnel vanished is counted on,
// and let go, until it is back, somebody ends it, or it takes too long.
func TestKeeperLingers(t *testing.T) {
	for _, want := range []Rules{{}, {Drop: true}} {
		p := &fakeProbe{}
		k, now := clock(p, want)
		drop := map[bool]string{true: " drop"}[want.Drop]
		is := func(when, config string) {
			t.Helper()
			if got := p.last(); got != config {
				t.Errorf("%s, drop %t: in force\n%swant\n%s", when, want.Drop, got, config)
			}
		}
		tun := protected("tun0", 7, "10.0.0.0/8")
		tun.Exclude = pfx("10.99.0.0/16")
		k.protect(sessions(tun))
		id := p.sets[0].Prefixes
		k.protect(sessions())
		is("vanished", "10.0.0.0/8 protected by 0\n10.99.0.0/16 excluded\n")
		for i, x := range p.sets[len(p.sets)-1].Prefixes {
			if x.ID != id[i].ID || x.Class == loader.Protected && x.Name != "tun0" {
				t.Errorf("the line is %+v, was %+v", x, id[i])
			}
		}
		if holding, _ := k.state(); len(holding) != 0 || p.sets[len(p.sets)-1].Guard {
			t.Errorf("holding %v", holding)
		}
		k.protect(sessions(protected("wg0", 9, "10.96.0.0/11")))
		is("another protects a part", "10.0.0.0/8 protected by 0\n10.96.0.0/11 protected by 9"+drop+"\n")
		k.protect(sessions(protected("wg0", 9, "10.0.0.0/8")))
		is("another protects the same", "10.0.0.0/8 protected by 9"+drop+"\n")
		tun.Link = 8
		k.protect(sessions(tun))
		is("back", "10.0.0.0/8 protected by 8"+drop+"\n10.99.0.0/16 excluded\n")
		k.end("wg0")()
		k.protect(sessions())
		k.end("tun0")()
		is("ended after it vanished", "")
		k.protect(sessions(tun))
		k.protect(sessions())
		*now = now.Add(lingerFor)
		k.tick()
		is("for too long", "")
		k.protect(sessions(tun))
		done := k.end("tun0")
		k.protect(sessions())
		done()
		is("ended", "")
		k.protect(sessions(tun))
		k.freeze(true)
		k.protect(sessions())
		is("the daemon stops", "")
	}
}

// TestKeeperFreezes: whatever the end, what is in force goes on, unless somebody
// asked for the end of what is no guard. Not knowing is not "nothing is protected".
func TestKeeperFreezes(t *testing.T) {
	tun := sessions(protected("tun0", 7, "10.0.0.0/8"))
	for _, tt := range []struct {
		name  string
		want  Rules
		asked bool
		do    func(*keeper, *fakeProbe)
		stays bool
	}{
		{"adopted, and the enforcer never knew", Rules{Guard: true}, false, func(k *keeper, _ *fakeProbe) { k.hold(nil) }, true},
		{"adopted, and stopped before the first look", Rules{Guard: true}, true, func(k *keeper, _ *fakeProbe) { k.hold(nil) }, true},
		{"adopted by a daemon that would only count", Rules{}, true, func(k *keeper, _ *fakeProbe) { k.hold(nil) }, true},
		{"a guard, and one setting failed", Rules{Guard: true}, true, func(k *keeper, p *fakeProbe) {
			k.protect(tun)
			p.fail = errors.New("no memory")
			k.protect(sessions(protected("tun0", 8, "10.0.0.0/8")))
			p.fail = nil
		}, true},
		{"drop, and the enforcer ended by itself", Rules{Drop: true}, false, func(k *keeper, _ *fakeProbe) { k.protect(tun) }, true},
		{"drop, and stopped", Rules{Drop: true}, true, func(k *keeper, _ *fakeProbe) { k.protect(tun) }, false},
		{"count, and the enforcer ended by itself", Rules{}, false, func(k *keeper, _ *fakeProbe) { k.protect(tun) }, false},
	} {
		p := &fakeProbe{}
		k, _ := clock(p, tt.want)
		tt.do(k, p)
		before := len(p.sets)
		if got := k.freeze(tt.asked); got != tt.stays {
			t.Errorf("%s: stays %t", tt.name, got)
		}
		k.protect(sessions())
		if err := k.release(); err != nil {
			t.Error(err)
		}
		if stays := len(p.sets) == before; stays != tt.stays {
			t.Errorf("%s: in force at the end: %s", tt.name, p.last())
		}
	}
}

// TestKeeperServersOfOthers: a lingering session's server is let out of no prefix that an
// open session protects; its other servers are.
func TestKeeperServersOfOthers(t *testing.T) {
	gone := lingering{ProtectedSession: protected("tun0", 7, "10.0.0.0/8"), gateways: pfx("192.168.1.1/32", "10.1.0.1/32")}
	for _, at := range []string{"10.1.0.9:1194", "[::ffff:10.1.0.8]:1194", "198.51.100.7:1194"} {
		gone.Servers = append(gone.Servers, enforce.Server{Addr: netip.MustParseAddrPort(at), Proto: "udp"})
	}
	rest, gateways := gone.beside([]enforce.ProtectedSession{protected("wg0", 9, "10.1.0.0/16")})
	if got := fmt.Sprint(rest.Servers, gateways); got != "[198.51.100.7:1194/udp] [192.168.1.1/32]" {
		t.Errorf("let out: %s", got)
	}
	if len(gone.Servers) != 3 {
		t.Errorf("the session itself was changed: %v", gone.Servers)
	}
}

// TestKeeperReleasedIsOver: what is released once is set no more, whoever asks.
func TestKeeperReleasedIsOver(t *testing.T) {
	p := &fakeProbe{}
	k, _ := clock(p, Rules{Drop: true})
	k.protect(sessions(protected("tun0", 7, "10.0.0.0/8")))
	if err := k.release(); err != nil || p.last() != "" {
		t.Errorf("%v, in force %s", err, p.last())
	}
	n := len(p.sets)
	k.protect(sessions(protected("tun0", 8, "10.0.0.0/8")))
	if err := k.release(); err != nil || len(p.sets) != n {
		t.Errorf("%v; %d sets after the release", err, len(p.sets)-n)
	}
	p.fail = errors.New("no memory")
	k, _ = clock(p, Rules{Drop: true})
	if err := k.release(); !errors.Is(err, p.fail) {
		t.Errorf("a release that failed: %v", err)
	}
}

// TestKeeperTriesAgain: the same policy is set again after a failure, and not otherwise.
func TestKeeperTriesAgain(t *testing.T) {
	p := &fakeProbe{}
	k, _ := clock(p, Rules{Drop: true})
	first, second := sessions(protected("tun0", 7, "10.0.0.0/8")), sessions(protected("tun0", 8, "10.0.0.0/8"))
	k.protect(first)
	p.fail = errors.New("no memory")
	k.protect(second)
	p.fail = nil
	k.protect(first) // as it was in force: the failure is over
	if _, err := k.state(); err != nil || len(p.sets) != 2 {
		t.Errorf("%v, %d sets", err, len(p.sets))
	}
	k.protect(first)
	k.tick()
	if len(p.sets) != 2 {
		t.Errorf("%d sets of what is in force", len(p.sets))
	}
}

// TestKeeperOfExcluded: an exclusion alone is nothing that drops, and what one tunnel's
// prefixes do says nothing of another's.
func TestKeeperOfExcluded(t *testing.T) {
	k, _ := clock(&fakeProbe{}, Rules{Drop: true})
	tun := protected("tun0", 7, "10.0.0.0/8")
	tun.Exclude = pfx("10.99.0.0/16")
	k.protect(sessions(tun))
	if got := k.done("tun0"); got != report.Drop {
		t.Errorf("beside an exclusion: %s", got)
	}
}
