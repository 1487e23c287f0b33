package enforce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

// Options are the choices that hold for every session. The zero value enforces
// strictly, restores what stood before, and logs nothing.
type Options struct {
	Log             *slog.Logger       // nil discards
	Audit           bool               // judge and report, change nothing
	OnLoss          Loss               // "" is LossRestore
	RestoreAll      bool               // whatever was removed comes back
	KeepUnreachable bool               // blackhole, unreachable, prohibit: report, do not remove
	ProtocolName    func(uint8) string // names a route protocol; nil prints numbers
	Observe         func(Incident)     // told of every incident, from the loop: must not block
	Own             []Session          // open from the start, before the table is first judged
	Sessions        SessionStore       // where sessions outlive the process; nil keeps none
	Endpoints       Endpoints          // asked where a full tunnel's packets go when nobody says; nil knows nothing
	OnPolicy        func(Protection)   // told of every change of what is protected, from the loop
}

// Enforcer keeps the table right while sessions are open.
//
// One goroutine, the loop, owns all state. The only thing it shares is the
// policy, which is immutable and swapped whole, for the System's watch to judge
// by. All methods may be called from any goroutine while Run runs.
type Enforcer struct {
	sys     System
	journal Journal
	opt     Options
	log     *limitedLog

	view  atomic.Pointer[view] // what the edge path judges by
	stay  atomic.Pointer[staying]
	sink  *Sink
	calls chan func(context.Context)
	wakes chan string
	ready chan struct{}
	known chan struct{} // closed once the interfaces were read, and so the policy made
	ended chan struct{}

	// The rest belongs to the loop.
	own       []Session       // of the configuration
	waits     map[string]bool // tunnels of own whose connection ended: to wait for again
	sessions  []*session
	closing   *session // being closed: what is restored counts for it
	held      heldRoutes
	written   written
	hinted    time.Time // when the first event came that the next reading has to settle
	lastID    uint64
	notBack   map[uint64]error // why held routes could not be given back, the last time
	lives     map[uint64]bool  // held routes whose renewed lifetimes are not written down yet
	livesAt   time.Duration    // uptime when those were written down last
	marks     marks
	unmarked  bool            // the marks could not be written down
	baseline  bool            // the policy grew since the table was last judged
	before    *plan.Policy    // by which the table was right last
	armed     *plan.Policy    // by which the table was read last: the edge path deletes at once what conflicts with it
	linkSet   map[uint32]bool // the interfaces that were looked at; replaced, never changed, for the edge path reads it
	unkept    bool            // the session store has to be written anew: a tunnel changed
	unwritten bool            // the last reading's removals could not all be written down
	insecure  error           // why a crash would lose what is held: the journal was taken away
	facts     Facts
	carried   []string  // the transports of the policy's sessions
	lookedAt  time.Time // when facts were read
	outdated  bool      // the table showed what came after that
	asked     int       // how far the questions have come, where they are many
	names     map[uint32]string
	totals    tally // of all sessions, those that ended too, and of none
	incidents incidentRing
	told      int    // removals that the reading reported one by one
	grouped   groups // the other removals
	contests  contests
	reported  reports
	pace      pacer
	done      func(*plan.Action) // told of each success, when not nil
}

// staying are the routes that stay where a conflict stands or may come, by destination,
// as the last reading found them: a delete may take one of them by mistake.
type staying map[netip.Prefix][]plan.Route

// risks reports whether a delete of r may take a route that stays in r's slot: the kernel
// may find that one first. A route of a higher metric is found only if r is gone already.
func (s *staying) risks(r *plan.Route) bool {
	if len(*s) == 0 {
		return false
	}
	for _, o := range (*s)[r.Dst] {
		if r.MayTake(&o) && r.Slot() == o.Slot() {
			return true
		}
	}
	return false
}

// view is the edge path's share of the state.
type view struct {
	policy *plan.Policy
	// before is the policy by which the table was read last, and nil once the table has
	// been read by policy. What conflicts with policy alone may have stood before.
	before  *plan.Policy
	links   map[uint32]bool // that were looked at
	audit   bool
	tallies []*tally // of the policy's sessions, in their order
}

// tallyOf returns where what is done for an entry of the policy is counted.
func (v *view) tallyOf(en *plan.Entry) *tally {
	if en == nil || en.Session >= len(v.tallies) {
		return nil
	}
	return v.tallies[en.Session]
}

// New returns an Enforcer with no session. Run makes it work.
func New(sys System, j Journal, opt Options) *Enforcer {
	if opt.OnLoss == "" {
		opt.OnLoss = LossRestore
	}
	if opt.ProtocolName == nil {
		opt.ProtocolName = func(p uint8) string { return fmt.Sprint(p) }
	}
	e := &Enforcer{
		sys: sys, journal: j, opt: opt, log: newLimitedLog(opt.Log),
		sink: NewSink(), calls: make(chan func(context.Context)), wakes: make(chan string, 1),
		ready: make(chan struct{}), ended: make(chan struct{}), known: make(chan struct{}),
		names: map[uint32]string{}, notBack: map[uint64]error{}, waits: map[string]bool{},
	}
	for _, s := range opt.Own {
		e.own = append(e.own, tidy(s))
	}
	e.stay.Store(&staying{})
	nothing := &plan.Policy{} // by which every table is right
	e.before, e.armed = nothing, nothing
	e.setPolicy(nothing)
	return e
}

// Ready is closed when the watch stands and what a crash had left is restored.
func (e *Enforcer) Ready() <-chan struct{} { return e.ready }

// Known is closed when the interfaces could be read once, so that what is protected
// is known: until then not knowing is not "nothing".
func (e *Enforcer) Known() <-chan struct{} { return e.known }

// Run enforces until the context ends, then ends every session and gives back
// what was removed. It returns nil when all of it is back; routes that could
// not be given back stay in the journal and are named in the error.
func (e *Enforcer) Run(ctx context.Context) error {
	defer close(e.ended)
	// Who ends it now wants back what a crash had left, as at any other time.
	if err := e.load(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	watchCtx, stopWatch := context.WithCancel(context.WithoutCancel(ctx))
	watching, watched := make(chan struct{}), make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		defer close(watched)
		failed <- e.sys.Watch(watchCtx, e.edge, e.sink, func() { close(watching) })
	}()
	defer func() {
		stopWatch()
		<-watched // whoever closes the System now finds nobody in it
	}()
	select {
	case err := <-failed:
		return err
	case <-watching:
	}
	e.level(ctx, "start")
	close(e.ready)
	err := e.loop(ctx, failed)
	if err != nil {
		e.opt.OnPolicy = nil // nobody asked for the end: what guards packets, or drops them, goes on
	}
	return errors.Join(err, e.finish(ctx))
}

// load takes over what a crash left in the journal, as far as the interfaces
// are in every respect those that they were.
func (e *Enforcer) load(ctx context.Context) error {
	entries, err := e.journal.Load()
	if err != nil {
		return fmt.Errorf("load journal: %w", err)
	}
	e.marks.load(e.journal)
	e.held.add(entries...)
	for _, h := range entries {
		e.lastID = max(e.lastID, h.ID)
	}
	e.facts, err = e.sys.Facts(ctx)
	if err != nil {
		return fmt.Errorf("read interfaces: %w", err)
	}
	e.dropStrangers(isAnother)
	if err := e.openOwn(ctx); err != nil {
		return err
	}
	return e.reopen()
}

// openOwn opens the sessions that came with the options. It happens before the
// table is first judged, so that after a crash what is held stays out.
func (e *Enforcer) openOwn(ctx context.Context) error {
	for _, s := range e.own {
		if err := e.admit(ctx, &s, e.facts.Links); err != nil {
			return err
		}
		e.sessions = append(e.sessions, &session{Session: s, state: Connecting})
		e.log.info("session", "tunnel", s.Tunnel, "protect", s.Protect, "exclude", s.Exclude, "servers", s.Servers)
	}
	return nil
}

// isAnother is the strict test, for when nobody watched meanwhile.
func isAnother(was LinkID, is *plan.Link) bool {
	return is == nil || was.Name != is.Name || was.HW != is.HW || !is.Type.Fits(was.Type)
}

// reopen reopens the previous process's sessions whose tunnel is still the same
// interface. It happens before the table is first judged, so that what is held stays
// out with no gap.
func (e *Enforcer) reopen() error {
	if e.opt.Sessions == nil {
		return nil
	}
	kept, err := e.opt.Sessions.LoadSessions()
	if err != nil {
		return fmt.Errorf("load sessions: %w", err)
	}
	for _, k := range kept {
		k.Session.Protect = withoutServers(k.Session) // earlier versions took them
		if !k.Own {
			e.fit(&k.Session)
		}
		s := &session{Session: k.Session, asked: k.Session, state: Connecting, id: k.Link, unasked: true}
		same := !isAnother(k.Link, e.link(k.Link.Index))
		guard := e.opt.OnLoss == LossGuard
		switch {
		case k.Own:
			e.recall(&k)
			continue
		case e.rejoin(&k):
			continue
		case slices.ContainsFunc(e.sessions, func(o *session) bool { return o.Tunnel == k.Session.Tunnel }):
			continue // opened anew, perhaps otherwise
		case e.checkKept(&k) != nil || !same && !guard && !k.Session.Rearm:
			e.notReopened(&k)
			continue
		case same:
			s.link = k.Link.Index // known by its index, though it was renamed since it was opened
		case guard && k.Link != LinkID{}: // it vanished while nobody watched: go on guarding
			s.link, s.loss = noLink, true
		}
		e.sessions = append(e.sessions, s)
		e.log.info("session reopened", "tunnel", k.Session.Tunnel, "guard", s.loss)
	}
	return nil
}

// fit takes from a kept session what the others, who were asked first now, have: one
// prefix that two claim does not cost all of it.
func (e *Enforcer) fit(s *Session) {
	for {
		problems := e.problems(*s, e.facts.Links)
		taken := func(p netip.Prefix) bool {
			return slices.ContainsFunc(problems, func(pr plan.Problem) bool { return pr.Prefix == p })
		}
		had := len(s.Protect) + len(s.Exclude)
		s.Protect = slices.DeleteFunc(slices.Clone(s.Protect), taken)
		s.Exclude = slices.DeleteFunc(slices.Clone(s.Exclude), taken)
		s.OtherTable = slices.DeleteFunc(slices.Clone(s.OtherTable), taken)
		if len(s.Protect)+len(s.Exclude) == had {
			return
		}
		for _, pr := range problems {
			e.log.warn("a prefix of a kept session is left out", "tunnel", s.Tunnel, "prefix", pr.Prefix, "reason", pr.Text)
		}
	}
}

// rejoin joins a kept session that a hook had opened with what the configuration
// says of its tunnel, while that is the same interface or guarded.
func (e *Enforcer) rejoin(k *KeptSession) bool {
	o := e.sessionNamed(k.Session.Tunnel)
	if o == nil || !k.Session.Hook || e.ownOn(o.Tunnel) == nil {
		return false
	}
	s := e.joined(k.Session)
	e.fit(&s)
	same := !isAnother(k.Link, e.link(k.Link.Index))
	if !same && e.opt.OnLoss != LossGuard || e.check(s, e.facts.Links) != nil {
		return false
	}
	o.Session, o.asked, o.id = s, k.Session, k.Link
	if !same { // it vanished while nobody watched: go on guarding
		o.link, o.loss = noLink, true
	}
	e.log.info("session reopened", "tunnel", o.Tunnel, "guard", o.loss)
	return true
}

// recall tells a session of the configuration which interface was its tunnel. Under a
// guard it goes on where that is gone: nothing but its tunnel ends the wait.
func (e *Enforcer) recall(k *KeptSession) {
	o := e.sessionNamed(k.Session.Tunnel)
	if o == nil || o.asked.Tunnel != "" {
		return // the configuration has it no longer, or a hook's was joined with it
	}
	if !isAnother(k.Link, e.link(k.Link.Index)) {
		o.link, o.id = k.Link.Index, k.Link // known by its index, though it was renamed
	} else if e.opt.OnLoss == LossGuard {
		o.link, o.loss, o.id = noLink, true, k.Link
		e.log.info("session reopened", "tunnel", o.Tunnel, "guard", true)
	}
}

// checkKept finds what is wrong with a kept session. Its interface is there, perhaps
// by another name than the session was opened with.
func (e *Enforcer) checkKept(k *KeptSession) error {
	s := k.Session
	s.Rearm = true // its presence is known
	return e.check(s, e.facts.Links)
}

// notReopened tells of a session that was open and is no longer: its prefixes are
// not protected from now on.
func (e *Enforcer) notReopened(k *KeptSession) {
	why := "its tunnel is gone, or is another interface now"
	if err := e.checkKept(k); err != nil {
		why = err.Error()
	}
	e.log.warn("session not reopened: it is protected no longer", "tunnel", k.Session.Tunnel, "protect", k.Session.Protect, "reason", why)
	now := time.Now()
	e.incidents.add(Incident{Tunnel: k.Session.Tunnel, What: "ended", Path: "level", Seen: now,
		Reason: "the session was open before the restart and could not be reopened: " + why})
}

// keepSessions writes down which sessions were opened by somebody, as they were
// asked for. The configuration's are opened at every start: of them it writes down
// which interface was the tunnel.
func (e *Enforcer) keepSessions() {
	if e.opt.Sessions == nil {
		return
	}
	var kept []KeptSession
	for _, s := range e.sessions {
		switch {
		case s.asked.Tunnel == "" && s.link != 0:
			kept = append(kept, KeptSession{Session: Session{Tunnel: s.Tunnel}, Link: s.id, Own: true})
		case s.asked.Tunnel != "":
			kept = append(kept, KeptSession{Session: s.wish(), Link: s.id})
		}
	}
	if err := e.opt.Sessions.KeepSessions(kept); err != nil {
		e.log.error("sessions are not kept: a restart will not know them", "err", err)
		e.unkept = true // the next look tries again
	}
}

// slowTick is how often the table is read with nothing having happened.
const slowTick = 30 * time.Second

// loop serves until the context ends or the watch fails.
func (e *Enforcer) loop(ctx context.Context, failed <-chan error) error {
	slow := time.NewTicker(slowTick)
	defer slow.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch ended: %w", err)
		case call := <-e.calls:
			call(ctx)
		case ev := <-e.sink.Events():
			e.serve(ctx, ev)
		case why := <-e.sink.DirtyC():
			if e.sink.hurry.Swap(false) {
				e.pace.hurry(why)
			} else {
				e.wantLevel(why)
			}
		case why := <-e.wakes:
			e.pace.hurry(why)
		case <-slow.C:
			e.wantLevel("timer")
		case <-e.pace.due():
			e.level(ctx, e.pace.why)
		}
	}
}

// looksAtTheEnd is how often the interfaces and the table are read before the routes
// that are still held are left to the next start. What a route needs may go just as it
// is given back; the second look finds that.
const looksAtTheEnd = 2

// finish ends every session and gives back what is held. The sessions stay
// kept: a daemon that is started again, after an upgrade say, goes on with them.
func (e *Enforcer) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	e.drain(ctx)
	for _, s := range e.sessions {
		e.leave(s)
	}
	e.sessions = nil
	for range looksAtTheEnd {
		e.level(ctx, "stop")
		e.drain(ctx) // nothing is answered any more, and what was is told
		if e.tellRest(); e.held.len() == 0 {
			return nil
		}
	}
	return fmt.Errorf("%d routes could not be given back and stay in the journal (first: %s): %w",
		e.held.len(), e.text(&e.held.first().Route), ErrNotNow)
}

// drain takes in what the edge path has done already. What it does meanwhile is not
// waited for: a flood has no end.
func (e *Enforcer) drain(ctx context.Context) {
	for n := len(e.sink.Events()); n > 0; {
		n -= e.serve(ctx, <-e.sink.Events())
	}
}

// do runs f on the loop and waits for it.
func (e *Enforcer) do(ctx context.Context, f func(context.Context)) error {
	done := make(chan struct{})
	call := func(loop context.Context) { defer close(done); f(loop) }
	select {
	case e.calls <- call:
		<-done
		return nil
	case <-e.ended:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errEnded = errors.New("the enforcer has ended")

// Wake asks for the table to be read, because something outside saw a leak.
// It never waits.
func (e *Enforcer) Wake(why string) {
	select {
	case e.wakes <- why:
	default:
	}
}

// tallies returns the tallies of the policy's sessions, in the policy's order. A tally's
// owner and sum are set once and never changed, for the edge path reads them.
func (e *Enforcer) tallies() (out []*tally) {
	for _, s := range e.sessions {
		if s.link == 0 { // as spec puts them
			continue
		}
		if s.tally.owner == nil {
			s.tally.owner, s.tally.all = s, &e.totals
		}
		out = append(out, &s.tally)
	}
	return out
}

// setPolicy makes the edge path judge by p. Until the table has been read by p, the
// edge path deletes at once only what conflicted with the previous policy too.
func (e *Enforcer) setPolicy(p *plan.Policy) {
	now := &view{policy: p, links: e.linkSet, audit: e.opt.Audit, tallies: e.tallies()}
	if p != e.armed {
		now.before = e.armed
	}
	old := e.view.Swap(now)
	if old != nil && old.policy != p && e.opt.OnPolicy != nil {
		e.opt.OnPolicy(e.protection(p))
	}
}

// arm lets the edge path delete at once whatever conflicts: the table has been read
// by the policy, and what stood before is known.
func (e *Enforcer) arm() {
	e.armed = e.policy()
	e.setPolicy(e.armed)
}

// Protection is what is protected at a moment, for whoever watches packets.
type Protection struct {
	Sessions []ProtectedSession
	Gateways []netip.Prefix // next hops to the servers: for neighbour discovery and DHCP alone
}

// ProtectedSession is one session's share.
type ProtectedSession struct {
	Session
	Link      uint32         // the tunnel's interface index; 0 while a guard holds without it
	Type      plan.LinkType  // of that interface, or of the one that is awaited
	Renamed   bool           // the tunnel has another name now: an interface with the old one is not it
	KeepLinks []uint32       // the indices of ExcludeInterfaces
	Reject    []netip.Prefix // no packet to these may leave, but by the tunnel: see OtherFamily
}

func (e *Enforcer) protection(p *plan.Policy) Protection {
	spec := p.Spec()
	out := Protection{Gateways: spec.Gateways}
	for i, ps := range spec.Sessions {
		s := e.sessionAt(i, ps.Tunnel)
		if s == nil {
			continue
		}
		share := ProtectedSession{Session: s.Session, Link: ps.Tunnel, Type: s.id.Type, KeepLinks: ps.KeepLinks, Reject: ps.Reject}
		if ps.Tunnel == noLink {
			share.Link = 0
		}
		share.Renamed = share.Link != 0 && s.name() != s.Tunnel
		out.Sessions = append(out.Sessions, share)
	}
	return out
}

func (e *Enforcer) policy() *plan.Policy { return e.view.Load().policy }
