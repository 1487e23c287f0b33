package enforce

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

// session is the loop's record of an open session.
type session struct {
	Session         // what holds
	asked   Session // by whom it was opened, before it was joined with the configuration's; zero where it is the configuration's alone
	state   State
	err     error // why it is failed, since the last look
	link    uint32
	id      LinkID // of the tunnel, as it was seen last
	up      bool
	mute6   bool     // IPv6 is switched off on the tunnel
	loss    bool     // the tunnel was there and vanished; the guard holds
	poser   string   // what has the name of a tunnel that is away, and is not it
	posed   uint32   // its index, once it was told
	left    []leaves // of Derived: not in Protect while another has it

	unasked bool          // the servers found are another interface's, or another process found them
	split   *netip.Prefix // the Protect that was found to be no full tunnel's, by where it begins

	tally        tally
	unfit, notes []string
	oneFamily    string
	doubts       map[netip.Prefix]doubt // where the kernel said that packets go elsewhere
}

// noLink stands for the interface of a tunnel that is gone while a guard holds
// its prefixes: every route that exists is foreign to it.
const noLink = ^uint32(0)

// Open opens a session, or changes the one that is open on its tunnel. It
// returns when the session is enforcing or has failed; the status says which.
// A session that waits for its tunnel returns at once, connecting. Bad input is
// an *InputError and changes nothing.
func (e *Enforcer) Open(ctx context.Context, s Session) (status SessionStatus, err error) {
	doErr := e.do(ctx, func(ctx context.Context) { status, err = e.open(ctx, s) })
	return status, cmp.Or(doErr, err)
}

func (e *Enforcer) open(ctx context.Context, s Session) (SessionStatus, error) {
	facts, err := e.sys.Facts(ctx)
	if err != nil {
		return SessionStatus{}, fmt.Errorf("open session on %s: %w", s.Tunnel, err)
	}
	asked := tidy(s)
	s = e.joined(asked)
	if err := e.admit(ctx, &s, facts.Links); err != nil {
		return SessionStatus{}, err
	}
	delete(e.waits, s.Tunnel)
	o := e.sessionNamed(s.Tunnel)
	if o == nil {
		o = &session{state: Connecting}
		e.sessions = append(e.sessions, o)
	}
	if named := linkNamed(facts.Links, s.Tunnel); named != nil && named.Index != o.link {
		o.link, o.loss = 0, false // another interface has the name now, and it is the one that is meant
	}
	o.become(s)
	o.asked = asked
	e.log.info("session", "tunnel", s.Tunnel, "protect", s.Protect, "exclude", s.Exclude, "servers", s.Servers)
	e.level(ctx, "session opened")
	e.keepSessions()
	if slices.Contains(e.sessions, o) {
		return e.statusOf(o), nil
	}
	return SessionStatus{}, &InputError{Input: s.Tunnel, Text: "the interface vanished while the session was opened"}
}

// Close ends the session on a tunnel and gives back what it had removed. The
// status is the session's last. It is ErrNoSession when there is none.
func (e *Enforcer) Close(ctx context.Context, tunnel string) (status SessionStatus, err error) {
	doErr := e.do(ctx, func(ctx context.Context) { status, err = e.close(ctx, tunnel) })
	return status, cmp.Or(doErr, err)
}

func (e *Enforcer) close(ctx context.Context, tunnel string) (SessionStatus, error) {
	s := e.sessionNamed(tunnel)
	if s == nil {
		return SessionStatus{}, fmt.Errorf("close session on %s: %w", tunnel, ErrNoSession)
	}
	e.end(s)
	e.level(ctx, "session closed")
	e.keepSessions()
	return e.closedStatus(s), nil
}

// sessionNamed returns the session on a tunnel, by the name that it was opened with
// or, when its interface was renamed since, by the name that it has now.
func (e *Enforcer) sessionNamed(tunnel string) *session {
	for _, by := range []func(*session) bool{
		func(s *session) bool { return s.Tunnel == tunnel },
		func(s *session) bool { return s.link != 0 && !s.loss && s.id.Name == tunnel },
	} {
		if i := slices.IndexFunc(e.sessions, by); i >= 0 {
			return e.sessions[i]
		}
	}
	return nil
}

func linkNamed(links []plan.Link, name string) *plan.Link {
	if i := slices.IndexFunc(links, func(l plan.Link) bool { return l.Name == name }); i >= 0 {
		return &links[i]
	}
	return nil
}

// Sessions returns the open sessions as they were asked for.
func (e *Enforcer) Sessions(ctx context.Context) (out []Session, err error) {
	err = e.do(ctx, func(context.Context) {
		for _, s := range e.sessions {
			out = append(out, s.Session)
		}
	})
	return out, err
}

// Gateways returns the next hops to the servers whose host routes are pinholes now: only the link's own needs may go there.
func (e *Enforcer) Gateways() []netip.Prefix { return slices.Clone(e.policy().Spec().Gateways) }

// end takes a session out of the policy. What it held comes back with the next
// level pass.
func (e *Enforcer) end(s *session) {
	e.sessions = slices.DeleteFunc(e.sessions, func(o *session) bool { return o == s })
	e.leave(s)
	s.state = Restored
	e.log.info("session ended", "tunnel", s.Tunnel)
}

// leave notes that a session is in the policy no longer.
func (e *Enforcer) leave(s *session) { e.closing, s.tally.changed = s, time.Now() }

// become makes a session what is asked of it now.
func (s *session) become(wish Session) {
	was := s.Session
	was.Protect = s.whole()
	if !equalWish(wish, was) {
		s.tally.changed = time.Now()
	}
	s.Session, s.left = wish, nil
}

// tidy sorts and merges a session's lists, so that equal sessions are equal.
func tidy(s Session) Session {
	s.Protect = sortedPrefixes(s.Protect)
	s.Derived = sortedPrefixes(s.Derived)
	s.Exclude = sortedPrefixes(s.Exclude)
	s.OtherTable = sortedPrefixes(s.OtherTable)
	return s
}

func sortedPrefixes(in []netip.Prefix) []netip.Prefix {
	out := slices.Clone(in)
	slices.SortFunc(out, plan.ComparePrefix)
	return slices.Compact(out)
}

// check finds what is wrong with a session before anything is changed.
func (e *Enforcer) check(s Session, links []plan.Link) error {
	if err := e.checkAlone(s, links); err != nil {
		return err
	}
	return e.checkTogether(s, links)
}

// checkAlone finds what is wrong with a session whatever the others are.
func (e *Enforcer) checkAlone(s Session, links []plan.Link) error {
	switch {
	case s.Tunnel == "":
		return &InputError{Input: "tunnel", Text: "no interface was named; give the VPN's interface"}
	case len(s.Protect) == 0:
		return &InputError{Input: s.Tunnel, Text: "nothing to protect was named; give at least one prefix"}
	case !s.Rearm && linkNamed(links, s.Tunnel) == nil && !e.watches(s.Tunnel):
		return &InputError{Input: s.Tunnel, Text: "no such interface; is the VPN up?"}
	}
	for _, pattern := range s.ExcludeInterfaces {
		if err := CheckInterfacePattern(pattern); err != nil {
			return err
		}
	}
	for _, word := range s.ServerFrom {
		if _, err := ParseSender(word); err != nil {
			return err
		}
	}
	return checkPrefixes(s)
}

// CheckInterfacePattern says what is wrong with a word of ExcludeInterfaces. Whether
// an interface matches is not asked: bridges come and go.
func CheckInterfacePattern(pattern string) error {
	if _, err := path.Match(pattern, ""); pattern == "" || err != nil {
		return &InputError{Input: pattern, Text: "is neither an interface's name nor a pattern; write docker0, br-* or veth*"}
	}
	return nil
}

// withoutServers returns what a session protects, less its servers' own addresses.
func withoutServers(s Session) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(s.Protect), func(p netip.Prefix) bool {
		return p.IsSingleIP() && slices.ContainsFunc(s.Servers, func(srv Server) bool { return srv.Addr.Addr().Unmap() == p.Addr() })
	})
}

// Excludes reports whether the session leaves an interface of this name alone.
func (s *Session) Excludes(name string) bool { return matchesInterface(s.ExcludeInterfaces, name) }

// matchesInterface reports whether one of the patterns names the interface. A name
// is meant literally too: the kernel allows all of "*?[" in names.
func matchesInterface(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		matched, err := path.Match(p, name)
		return p == name || matched && err == nil
	})
}

func checkPrefixes(s Session) error {
	for _, p := range slices.Concat(s.Protect, s.Exclude, s.OtherTable) {
		if !p.IsValid() {
			return &InputError{Input: s.Tunnel, Text: "one of the prefixes is not a prefix; write 10.0.0.0/8"}
		}
	}
	for _, p := range s.OtherTable {
		if !slices.Contains(s.Protect, p) {
			return &InputError{Input: p.String(), Text: "is said to be in another table but is not protected; protect it too"}
		}
	}
	if kept := withoutServers(s); len(kept) < len(s.Protect) {
		own := slices.DeleteFunc(slices.Clone(s.Protect), func(p netip.Prefix) bool { return slices.Contains(kept, p) })
		return &InputError{Input: own[0].String(), Text: "is the VPN server's own address, which the tunnel's packets reach outside it; leave it out of what is protected"}
	}
	for _, srv := range s.Servers {
		_, ports, ok := Transport(srv.Proto)
		if !ok || !srv.Addr.IsValid() || ports != (srv.Addr.Port() != 0) {
			return &InputError{Input: srv.Addr.String() + "/" + srv.Proto,
				Text: "is not a server; write ADDR:PORT/udp, ADDR:PORT/tcp or ADDR:PORT/sctp, or ADDR/PROTOCOL for one without ports (of " + TransportNames() + ")"}
		}
	}
	return nil
}

// watches reports whether a session's interface was opened by this name and is
// there, under whatever name now.
func (e *Enforcer) watches(tunnel string) bool {
	s := e.sessionNamed(tunnel)
	return s != nil && s.link != 0 && !s.loss && e.link(s.link) != nil
}

// checkTogether builds the policy that the session would make with the others.
func (e *Enforcer) checkTogether(s Session, links []plan.Link) error {
	if problems := e.problems(s, links); len(problems) > 0 {
		return &InputError{Input: problems[0].Prefix.String(), Text: problems[0].Text}
	}
	return nil
}

// problems are what the policy of all sessions and this one would lack.
func (e *Enforcer) problems(s Session, links []plan.Link) []plan.Problem {
	all := []*session{}
	self := e.sessionNamed(s.Tunnel)
	for _, o := range e.sessions {
		if o != self {
			all = append(all, &session{Session: o.Session, left: o.left, link: uint32(len(all)) + 1})
		}
	}
	all = append(all, &session{Session: s, link: uint32(len(all)) + 1, up: true})
	_, problems := plan.Build(e.spec(all, links))
	return problems
}

// spec is what the policy of the given sessions is built from.
func (e *Enforcer) spec(sessions []*session, links []plan.Link) plan.Spec {
	spec := plan.Spec{KeepUnreachable: e.opt.KeepUnreachable, RestoreAll: e.opt.RestoreAll}
	var all []Session
	for _, s := range sessions {
		all = append(all, s.Session)
	}
	for i, s := range sessions {
		if s.link == 0 {
			continue
		}
		protect, _ := divide(sessions, i)
		ps := plan.Session{Tunnel: s.link, TunnelUp: s.up, Mute6: s.mute6, Protect: protect, Exclude: s.Exclude, OtherTable: s.OtherTable}
		ps.Reject = Rejected(all, &s.Session)
		for _, srv := range s.Servers {
			ps.Servers = append(ps.Servers, srv.Addr.Addr().Unmap())
		}
		for _, l := range links {
			if matchesInterface(s.ExcludeInterfaces, l.Name) {
				ps.KeepLinks = append(ps.KeepLinks, l.Index)
			}
		}
		spec.Sessions = append(spec.Sessions, ps)
	}
	return spec
}

// look reads the facts and brings sessions and policy up to them.
func (e *Enforcer) look(ctx context.Context) error {
	facts, err := e.sys.Facts(ctx)
	if err != nil {
		return fmt.Errorf("read interfaces: %w", err)
	}
	e.facts, e.lookedAt = facts, time.Now()
	for _, l := range facts.Links {
		e.names[l.Index] = l.Name
	}
	e.dropStrangers(replaced)
	for _, s := range slices.Clone(e.sessions) {
		e.follow(s)
	}
	e.await()
	e.completeServers(ctx)
	e.judgeMute()
	e.doubt(ctx)
	e.rebuild()
	e.meetLinks()
	if e.unkept {
		e.unkept = false
		e.keepSessions()
	}
	return nil
}

// meetLinks lets the edge path know the interfaces that were looked at. It comes after
// the policy: by then a tunnel that is back is known for what it is.
func (e *Enforcer) meetLinks() {
	links := e.facts.Links
	if len(links) == len(e.linkSet) && !slices.ContainsFunc(links, func(l plan.Link) bool { return !e.linkSet[l.Index] }) {
		return
	}
	e.linkSet = make(map[uint32]bool, len(links))
	for i := range links {
		e.linkSet[links[i].Index] = true
	}
	e.setPolicy(e.policy())
}

// follow brings a session up to its tunnel interface. One that is watched is known
// by its index, whatever its name has become. When that is gone the tunnel vanished,
// also where another has its name already.
func (e *Enforcer) follow(s *session) {
	s.err, s.poser = e.insecure, "" // another look at the interfaces does not mend the first
	if s.watched() {
		if l := e.link(s.link); l != nil && !replaced(s.id, l) {
			e.stand(s, l)
			return
		}
		if !e.vanish(s) {
			return
		}
	}
	l := linkNamed(e.facts.Links, s.Tunnel)
	switch {
	case l == nil && !s.loss:
		s.state = Connecting
	case l == nil:
	case s.loss && !l.Type.Fits(s.id.Type):
		e.pose(s, l)
	default:
		e.stand(s, l)
	}
}

// watched reports whether a session's tunnel was there at the last look.
func (s *session) watched() bool { return s.link != 0 && !s.loss }

// vanish does what is to be done about a tunnel that went without notice: a guard
// holds, or else the connection ends. It reports whether the session goes on.
func (e *Enforcer) vanish(s *session) bool {
	s.up, s.mute6 = false, false
	if e.opt.OnLoss == LossGuard {
		e.log.warn("tunnel vanished: the guard holds", "tunnel", s.Tunnel, "index", s.link)
		s.link, s.loss = noLink, true
		return true
	}
	e.log.warn("tunnel vanished: it is protected no longer", "tunnel", s.Tunnel, "index", s.link)
	s.link = 0
	if !s.Rearm {
		e.end(s)
		e.keepSessions()
		return false
	}
	e.leave(s)
	e.forgetHook(s)
	return true
}

// pose notes an interface of another kind under the name of a tunnel that is away:
// what goes out by it is in no tunnel.
func (e *Enforcer) pose(s *session, l *plan.Link) {
	s.poser = fmt.Sprintf("the interface %s is a %v, and the tunnel was a %v: it is not taken for the tunnel, and the guard goes on; open the session anew to take it",
		l.Name, l.Type, s.id.Type)
	if s.posed != l.Index {
		e.log.warn("an interface of another kind has the tunnel's name: it is not the tunnel", "tunnel", s.Tunnel, "index", l.Index, "is", l.Type.String(), "was", s.id.Type.String())
	}
	s.posed = l.Index
}

// stand notes the interface that is a session's tunnel, and tells of a change.
func (e *Enforcer) stand(s *session, l *plan.Link) {
	was := s.id
	watched := s.watched()
	s.unasked = s.unasked || !watched
	s.link, s.up, s.mute6, s.loss = l.Index, l.Up, l.Mute6, false
	s.id = LinkID{Index: l.Index, Name: l.Name, HW: l.HW, Type: l.Type}
	s.posed = 0
	if s.id == was {
		return
	}
	if watched && was.Name != l.Name {
		e.log.info("tunnel renamed", "tunnel", s.Tunnel, "name", l.Name, "was", was.Name)
	}
	e.unkept = true // a restart must know the interface by what it is now
}

// rebuild makes the policy of the sessions as they are, when it is another.
func (e *Enforcer) rebuild() {
	old := e.policy().Spec()
	e.divideAll()
	spec := e.spec(e.sessions, e.facts.Links)
	transports := e.transports()
	if slices.EqualFunc(spec.Sessions, old.Sessions, equalSession) && slices.Equal(transports, e.carried) &&
		slices.Equal(e.tallies(), e.view.Load().tallies) {
		return
	}
	e.carried = transports
	spec.Pinholes, spec.Gateways, spec.Seen = old.Pinholes, old.Gateways, old.Seen
	p, problems := plan.Build(spec)
	for _, pr := range problems { // check let none through
		e.log.error("policy", "prefix", pr.Prefix, "err", pr.Text)
	}
	// A session that ended counts too: its tunnel's routes may lie inside
	// another's prefix and conflict with that from now on.
	e.baseline = e.baseline || grew(old, spec) || grew(spec, old)
	e.reported = reports{}
	e.markPolicy(p)
	e.setPolicy(p)
}

// transports is what a policy does not hold of its sessions, and those who watch
// packets must know.
func (e *Enforcer) transports() (out []string) {
	for _, s := range e.sessions {
		if s.link != 0 {
			out = append(out, fmt.Sprint(s.Tunnel, s.name(), s.id.Type, s.Servers))
		}
	}
	return out
}

func equalSession(a, b plan.Session) bool {
	return a.Tunnel == b.Tunnel && a.TunnelUp == b.TunnelUp && a.Mute6 == b.Mute6 &&
		slices.Equal(a.Protect, b.Protect) && slices.Equal(a.Exclude, b.Exclude) &&
		slices.Equal(a.Servers, b.Servers) && slices.Equal(a.KeepLinks, b.KeepLinks) &&
		slices.Equal(a.OtherTable, b.OtherTable) && slices.Equal(a.Reject, b.Reject)
}

// grew reports whether anything may be a conflict now that was none before:
// what stands then was there before.
func grew(old, now plan.Spec) bool {
	return slices.ContainsFunc(now.Sessions, func(s plan.Session) bool {
		return !slices.ContainsFunc(old.Sessions, func(o plan.Session) bool {
			return s.Tunnel == o.Tunnel && slices.Equal(s.Protect, o.Protect) &&
				slices.Equal(s.Exclude, o.Exclude) && slices.Equal(s.KeepLinks, o.KeepLinks) &&
				slices.Equal(s.Servers, o.Servers) && slices.Equal(s.Reject, o.Reject)
		})
	})
}

// sessionOf returns the open session that a verdict by the policy was reached for, or
// nil. One by an older policy, where its place may have been another's, has its answer's
// tally.
func (e *Enforcer) sessionOf(v plan.Verdict) *session { return e.owner(e.view.Load().tallyOf(v.Entry)) }

// sessionAt returns the session with a place in the policy, or nil. The interface
// alone tells no two apart whose tunnels are both gone: guards hold them without one.
func (e *Enforcer) sessionAt(place int, link uint32) *session {
	for _, s := range e.sessions {
		if s.link == 0 { // as spec puts them
			continue
		}
		if place == 0 && s.link == link {
			return s
		}
		place--
	}
	return e.sessionOn(link)
}

func (e *Enforcer) sessionOn(link uint32) *session {
	for _, s := range e.sessions {
		if s.link == link && link != 0 {
			return s
		}
	}
	return nil
}

// sessionFor returns the session that a route belongs to: by its destination,
// else the one that is being closed.
func (e *Enforcer) sessionFor(r *plan.Route) *session {
	if s := e.sessionOf(plan.Judge(e.policy(), r)); s != nil {
		return s
	}
	return e.closing
}
