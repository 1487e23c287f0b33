package witness

import (
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/loader"
)

// keeper keeps the probe's policy what the enforcer says. Its methods may be
// called from any goroutine; Protect is called from the enforcer's loop.
type keeper struct {
	probe Probe
	want  Rules
	log   *slog.Logger
	now   func() time.Time     // does not count sleep, like the daemon's own timers
	boot  func() time.Duration // since boot, counts sleep

	// mu guards everything below, and that policies are set in order.
	mu      sync.Mutex
	last    enforce.Protection         // as the enforcer said it
	waiting map[string]enforce.Session // guarded by an earlier daemon, and not seen since
	away    map[string]time.Duration   // since when a tunnel is away, by boot
	freed   map[string]bool            // away for longer than a guard lasts
	ending  map[string]bool            // whose sessions somebody ends
	ended   map[string]lingering       // vanished with their tunnels: counted on for a while
	stops   bool                       // the daemon stops: no session ends by itself any more
	owners  map[uint32]owner           // every ID ever used
	held    bool                       // nothing is set until Begin: what was adopted stays
	frozen  bool                       // nothing is set any more
	err     error                      // of the last setting
	inForce *loader.Config             // the last that was set, its deadline apart; nil before
	over    func() bool                // whether its deadline has passed; nil where it has none
}

func newKeeper(p Probe, want Rules, log *slog.Logger) *keeper {
	return &keeper{
		probe: p, want: want, log: log, now: time.Now, boot: bootTime,
		waiting: map[string]enforce.Session{}, away: map[string]time.Duration{},
		freed: map[string]bool{}, owners: map[uint32]owner{}, ending: map[string]bool{}, ended: map[string]lingering{},
	}
}

// lingering is a session that nobody ended: its tunnel vanished. What leaks until
// the tunnel is back is counted, and let go.
type lingering struct {
	enforce.ProtectedSession
	gateways []netip.Prefix
	until    time.Time
}

// beside reduces a lingering session to the addresses that no open session
// protects: an open session comes first.
func (l lingering) beside(live []enforce.ProtectedSession) (enforce.ProtectedSession, []netip.Prefix) {
	protected := map[netip.Prefix]bool{}
	for _, s := range live {
		for _, x := range s.Protect {
			protected[x.Masked()] = true
		}
	}
	taken := func(p netip.Prefix) bool {
		for bits := p.Bits(); bits >= 0; bits-- {
			if around, err := p.Addr().Prefix(bits); err == nil && protected[around] {
				return true
			}
		}
		return false
	}
	s := l.ProtectedSession
	s.Protect = slices.DeleteFunc(slices.Clone(s.Protect), taken)
	s.Exclude = slices.DeleteFunc(slices.Clone(s.Exclude), taken)
	s.Servers = slices.DeleteFunc(slices.Clone(s.Servers), func(srv enforce.Server) bool {
		a := srv.Addr.Addr().Unmap()
		return taken(netip.PrefixFrom(a, a.BitLen()))
	})
	return s, slices.DeleteFunc(slices.Clone(l.gateways), taken)
}

// lingerFor is how long a VPN client may take to come back.
const lingerFor = 2 * time.Minute

// linger keeps the sessions that are in the last protection, and not in p though
// nobody ended them.
func (k *keeper) linger(p enforce.Protection) {
	here := map[string]bool{}
	for _, s := range p.Sessions {
		here[s.Tunnel] = true
		delete(k.ended, s.Tunnel)
	}
	for _, s := range k.last.Sessions {
		if here[s.Tunnel] || k.ending[s.Tunnel] || k.stops || k.want.Guard { // a guard's own end with nothing but a word
			continue
		}
		s.Link, s.Renamed = 0, false // it comes back by the name that it was opened with
		k.ended[s.Tunnel] = lingering{s, k.last.Gateways, k.now().Add(lingerFor)}
	}
}

// end says that somebody ends the session on a tunnel, until the result is
// called: nothing of it is counted any more.
func (k *keeper) end(tunnel string) (done func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ending[tunnel] = true
	if _, ok := k.ended[tunnel]; ok {
		delete(k.ended, tunnel)
		k.set(false)
	}
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.ending, tunnel)
	}
}

// hold keeps what an earlier daemon's guard had in force until begin. Sessions
// that the daemon will open itself are guarded on, though their tunnels are
// away, as they were before.
func (k *keeper) hold(own []enforce.Session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held = true
	if k.want.Guard {
		for _, s := range own {
			k.waiting[s.Tunnel] = s
		}
	}
}

// begin puts the policy in force, the daemon's own sessions being open.
func (k *keeper) begin() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held = false
	k.set(true)
}

// protect takes in what is protected from now on, and has it in force when it
// returns, unless setting fails.
func (k *keeper) protect(p enforce.Protection) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.linger(p)
	k.last = p
	k.set(false)
}

// freeze keeps the policy that is in force, whatever the enforcer says while it
// stops, and reports whether it does. It keeps a guard's policy and an adopted one
// that nothing has replaced yet; where nobody asked for the end, any that drops.
func (k *keeper) freeze(asked bool) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stops = true
	k.frozen = k.held || k.inForce != nil && (k.inForce.Guard || !asked && k.inForce.Drops())
	return k.frozen
}

// forget lets go of a session that an earlier daemon had guarded.
func (k *keeper) forget(tunnel string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, was := k.waiting[tunnel]
	delete(k.waiting, tunnel)
	if was {
		k.set(false)
	}
	return was
}

// tick renews the deadline and what failed, and returns the tunnels whose guard
// has ended by it since the last call.
func (k *keeper) tick() (ended []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now, boot := k.now(), k.boot()
	for tunnel, since := range k.away {
		if k.want.For > 0 && !k.freed[tunnel] && boot-since >= k.want.For {
			k.freed[tunnel] = true
			delete(k.waiting, tunnel)
			ended = append(ended, tunnel)
		}
	}
	over := false
	for tunnel, s := range k.ended {
		if !now.Before(s.until) {
			delete(k.ended, tunnel)
			over = true
		}
	}
	if k.err != nil || over || len(ended) > 0 || k.want.For > 0 && len(k.sessions()) > 0 {
		k.set(true)
	}
	return ended
}

// sessions are the enforcer's and those still waited for, tunnels being away.
func (k *keeper) sessions() []enforce.ProtectedSession {
	out := slices.Clone(k.last.Sessions)
	for _, s := range k.last.Sessions {
		delete(k.waiting, s.Tunnel)
	}
	for _, s := range k.waiting {
		out = append(out, enforce.ProtectedSession{Session: s, Reject: enforce.Rejected([]enforce.Session{s}, &s)})
	}
	return out
}

// set puts what is known in force. A policy that is in force already is set again
// only to renew its deadline.
func (k *keeper) set(renew bool) {
	if k.held || k.frozen {
		return
	}
	p := enforce.Protection{Sessions: k.sessions(), Gateways: k.last.Gateways}
	k.noteAway(p.Sessions, k.boot())
	pol := k.compile(p)
	if !renew && k.err == nil && k.inForce != nil && reflect.DeepEqual(pol.config, *k.inForce) {
		return
	}
	same := pol.config
	over := k.deadline(&pol.config, p.Sessions)
	maps.Copy(k.owners, pol.owners)
	if err := k.probe.Set(pol.config); err != nil {
		if k.err == nil {
			k.log.Error("the witness keeps an older policy", "err", err)
		}
		k.err = err
		return
	}
	k.err, k.inForce, k.over = nil, &same, over
}

// compile makes the policy of the sessions and of those that linger.
func (k *keeper) compile(p enforce.Protection) policy {
	guarded := len(p.Sessions) > 0
	live := p.Sessions
	for _, s := range k.ended {
		rest, gateways := s.beside(live)
		p.Sessions = append(slices.Clip(p.Sessions), rest)
		p.Gateways = append(slices.Clip(p.Gateways), gateways...)
	}
	pol := compile(p, k.want, func(tunnel string) bool {
		_, lingers := k.ended[tunnel]
		return lingers || k.freed[tunnel]
	})
	pol.config.Guard = pol.config.Guard && guarded
	return pol
}

// noteAway keeps track of which tunnels are away.
func (k *keeper) noteAway(sessions []enforce.ProtectedSession, boot time.Duration) {
	is := map[string]bool{}
	for _, s := range sessions {
		if s.Link != 0 {
			continue
		}
		is[s.Tunnel] = true
		if _, ok := k.away[s.Tunnel]; !ok {
			k.away[s.Tunnel] = boot
		}
	}
	gone := func(tunnel string) bool { return !is[tunnel] }
	maps.DeleteFunc(k.away, func(tunnel string, _ time.Duration) bool { return gone(tunnel) })
	maps.DeleteFunc(k.freed, func(tunnel string, _ bool) bool { return gone(tunnel) })
}

// deadline sets when drops end without this process, and returns a function that reports whether they have. While any
// tunnel stands the deadline is a heartbeat, which does not count sleep: this process sleeps too and cannot renew it. When
// all tunnels are away it is the end of the guard that lasts longest, which counts sleep.
func (k *keeper) deadline(cfg *loader.Config, sessions []enforce.ProtectedSession) (over func() bool) {
	if k.want.For == 0 || len(sessions) == 0 {
		return nil
	}
	now, boot := k.now(), k.boot()
	var last time.Duration
	for _, s := range sessions {
		if s.Link != 0 {
			cfg.Heartbeat = k.want.For
			return func() bool { return k.now().Sub(now) >= k.want.For }
		}
		last = max(last, k.away[s.Tunnel]+k.want.For)
	}
	cfg.Remaining = max(1, last-boot)
	return func() bool { return k.boot() >= last }
}

// pace is how often the deadline wants renewing; 0 is not at all.
func (k *keeper) pace() time.Duration { return k.want.For / 8 }

// ownerOf says what an ID stands for, and whether it is known.
func (k *keeper) ownerOf(id uint32) (owner, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	o, ok := k.owners[id]
	return o, ok
}

// state is what the keeper can say of itself.
func (k *keeper) state() (holding []string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for tunnel := range k.away {
		if k.want.drops() && !k.freed[tunnel] {
			holding = append(holding, tunnel)
		}
	}
	slices.Sort(holding)
	return holding, k.err
}

// done is what the policy in force does about the leaks of a tunnel's prefixes:
// Off where it has none of them, so that they are not even counted.
func (k *keeper) done(tunnel string) report.Mode {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.doneLocked(tunnel)
}

func (k *keeper) doneLocked(tunnel string) report.Mode {
	if k.held {
		return report.Drop // a guard that was adopted: it is there to drop
	}
	mode := report.Off
	if k.inForce == nil {
		return mode
	}
	over := k.over != nil && k.over()
	for _, p := range k.inForce.Prefixes {
		if p.Class != loader.Protected || k.owners[p.ID].tunnel != tunnel {
			continue
		}
		if !p.Drop || over {
			return report.Count
		}
		mode = report.Drop
	}
	return mode
}

// mode is what the policy in force does about leaks: it drops where it does so
// for every session. Where there is none it is what would be done.
func (k *keeper) mode() report.Mode {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.want.drops() {
		return report.Count
	}
	for _, s := range k.sessions() {
		if !k.freed[s.Tunnel] && k.doneLocked(s.Tunnel) != report.Drop {
			return report.Count
		}
	}
	return report.Drop
}

// release empties the policy, so that nothing stays pinned, unless it is frozen.
func (k *keeper) release() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.frozen {
		return nil
	}
	k.frozen = true
	return k.probe.Set(loader.Config{})
}
