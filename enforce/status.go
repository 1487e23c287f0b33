package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/culvert-project/culvert/enforce/plan"
)

// Status returns a moment's view.
func (e *Enforcer) Status(ctx context.Context) (st Status, err error) {
	err = e.do(ctx, func(context.Context) {
		held := e.heldBySession()
		st = Status{Sessions: []SessionStatus{}, Totals: e.totals.totals(), Incidents: e.incidents.all(), Waiting: e.waiting()}
		for _, s := range e.sessions {
			st.Sessions = append(st.Sessions, e.statusWith(s, held[s]))
		}
	})
	return st, err
}

// heldBySession tells what is held for each session, all in one pass.
func (e *Enforcer) heldBySession() map[*session][]HeldRoute {
	out := map[*session][]HeldRoute{}
	for h := range e.held.all() {
		if s := e.sessionFor(&h.Route); s != nil {
			out[s] = append(out[s], HeldRoute{Route: e.text(&h.Route), Since: h.Since})
		}
	}
	return out
}

// waiting tells what no session keeps out and is not back.
func (e *Enforcer) waiting() []HeldRoute {
	out := []HeldRoute{}
	for h := range e.held.all() {
		if plan.Judge(e.policy(), &h.Route).Decision != plan.Conflict {
			out = append(out, HeldRoute{Route: e.text(&h.Route), Since: h.Since, Why: e.whyNot(h)})
		}
	}
	return out
}

// whyNot says why a held route is not back.
func (e *Enforcer) whyNot(h *Entry) string {
	for hop := range h.Route.Hops() {
		if l := e.link(hop.Link); l != nil && !l.Up {
			return "interface " + l.Name + " is down"
		}
	}
	if err := e.notBack[h.ID]; err != nil {
		return err.Error()
	}
	return "what it needs is not there"
}

// closedStatus is the last status of a session. What is not back is not called restored.
func (e *Enforcer) closedStatus(s *session) SessionStatus {
	st := e.statusOf(s)
	st.State = Restored
	wait := e.waiting()
	if len(wait) == 0 {
		return st
	}
	st.State = Restoring
	first := wait[0]
	text := fmt.Sprintf("%d held routes cannot come back yet, the first is %s: %s", len(wait), first.Route, first.Why)
	if st.Error != "" {
		text = st.Error + "; " + text
	}
	st.Error = text
	e.log.warn("held routes wait for what they need", "routes", len(wait), "first", first.Route, "reason", first.Why)
	return st
}

func (e *Enforcer) statusOf(s *session) SessionStatus {
	return e.statusWith(s, e.heldBySession()[s])
}

func (e *Enforcer) statusWith(s *session, held []HeldRoute) SessionStatus {
	n := s.tally.totals()
	st := SessionStatus{
		Tunnel: s.Tunnel, State: s.state,
		Protected: s.Protect, Excluded: e.excluded(s),
		Removed: n.Removed, Readded: n.Readded, Restored: n.Restored, Withdrawn: n.Withdrawn,
		Held: []HeldRoute{}, Contested: []Contest{}, Unenforceable: []string{}, Notes: []string{},
	}
	if s.link != 0 && s.id.Name != s.Tunnel {
		st.Interface = s.id.Name
	}
	if s.err != nil {
		st.Error = s.err.Error()
	}
	if s.poser != "" {
		st.Error = strings.TrimSuffix(s.poser+"; "+st.Error, "; ")
	}
	st.Held = append(st.Held, held...)
	st.Contested = append(st.Contested, e.contests.of(s.Tunnel)...)
	st.OneFamily, st.Rejected = s.oneFamily, e.rejectedFor(s)
	st.Unenforceable = append(st.Unenforceable, s.unfit...)
	st.Notes = append(st.Notes, s.notes...)
	return st
}

// excluded is what the operator excluded, and the server's own addresses.
func (e *Enforcer) excluded(s *session) []netip.Prefix {
	out := append([]netip.Prefix{}, s.Exclude...)
	for _, srv := range s.Servers {
		a := srv.Addr.Addr().Unmap()
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return sortedPrefixes(out)
}

// settle gives each session the state that a finished pass found.
func (e *Enforcer) settle(missing []netip.Prefix) {
	for _, s := range e.sessions {
		before := s.state
		s.state = e.stateOf(s, missing)
		if s.state != before {
			e.log.info("session state", "tunnel", s.Tunnel, "state", s.state, "was", before)
		}
	}
	e.closing = nil
}

func (e *Enforcer) stateOf(s *session, missing []netip.Prefix) State {
	switch {
	case s.link == 0:
		return Connecting
	case s.err != nil:
		return Failed
	case s.loss || !s.up:
		return Reconnecting
	case e.opt.Audit:
		return Auditing
	case lacks(s, missing):
		return Reconnecting
	}
	return Enforcing
}

// lacks reports whether a prefix of a session had no tunnel route.
func lacks(s *session, missing []netip.Prefix) bool {
	return slices.ContainsFunc(without(s.Protect, s.muted()), func(p netip.Prefix) bool { return slices.Contains(missing, p) })
}

// fail notes why the session of a verdict is not what it should be.
func (e *Enforcer) fail(v plan.Verdict, err error) {
	if s := e.sessionOf(v); s != nil && s.err == nil {
		s.err = err
	}
}

// swallowed fails the sessions whose servers are reached through their own tunnels
// alone: such a VPN is dead.
func (e *Enforcer) swallowed(routes []plan.Route) {
	for i := range routes {
		r := &routes[i]
		s := e.sessionOn(r.Hop.Link)
		if s == nil || s.err != nil || e.opt.Audit {
			continue
		}
		s.err = fmt.Errorf("the VPN server %v is reached through its own tunnel: %s stands, and no route of culvert's can lead past it; delete it, and keep the VPN from adding it",
			r.Dst.Addr(), e.text(r))
	}
}

func (e *Enforcer) failAll(err error) {
	e.log.error("table cannot be judged", "err", err)
	for _, s := range e.sessions {
		s.err, s.state = err, Failed
	}
}

// note records what became of one action.
func (e *Enforcer) note(a *plan.Action, err error, on occasion) {
	already := errors.Is(err, ErrAlready)
	if err != nil && !already {
		if a.Kind == plan.Restore {
			e.notBack[a.Held] = err
		}
		e.noteFailure(a, err)
		return
	}
	if e.done != nil {
		e.done(a)
	}
	if already {
		return
	}
	switch a.Kind {
	case plan.Put:
		e.log.info("put", "route", e.text(&a.Route), "reason", a.Why)
	case plan.Remove:
		e.tellRemoval(a, on)
	case plan.Restore:
		e.log.info("restore", "route", e.text(&a.Route))
	default:
		e.log.info(a.Kind.String(), "route", e.text(&a.Route), "reason", a.Why)
	}
}

func (e *Enforcer) noteFailure(a *plan.Action, err error) {
	if harmless(err) || errors.Is(err, context.Canceled) { // the state says it: the tunnel or an interface is down; or finish does it
		e.log.debug(a.Kind.String(), "route", e.text(&a.Route), "err", err)
		return
	}
	e.log.error(a.Kind.String(), "route", e.text(&a.Route), "err", err)
	if s := e.owner(e.tallyFor(a)); s != nil && s.err == nil {
		s.err = fmt.Errorf("%s %s: %w", a.Kind, e.text(&a.Route), err)
	}
}

// auditPlan reports what enforcing would have done.
func (e *Enforcer) auditPlan(pl *plan.Plan) {
	for i := range pl.Actions {
		a := &pl.Actions[i]
		switch a.Kind {
		case plan.Remove:
			e.report(&a.Route, a.Verdict, Event{Route: a.Route, Seen: e.lookedAt})
		case plan.Put:
			e.reportText(a.Kind, &a.Route, a.Why)
		}
	}
	e.tellUntold()
}
