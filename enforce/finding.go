package enforce

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/culvert-project/culvert/enforce/plan"
)

// takeIn notes what a plan found that routing cannot settle, and reports the routes
// that stay by the operator's word.
func (e *Enforcer) takeIn(pl *plan.Plan) {
	for _, s := range e.sessions {
		s.unfit = slices.Concat(leftFindings(s), e.localFindings(s), e.ruleFindings(s), e.facts.Bypasses)
		s.notes = nil
		if s.err == nil {
			s.notes = s.muteNotes()
		}
		e.tellFamily(s, e.familyFinding(s, pl))
	}
	for _, f := range pl.Unfit {
		if _, en := pl.Policy.Lookup(f.Prefix.Addr()); en != nil {
			if s := e.sessionAt(en.Session, en.Tunnel); s != nil {
				s.notes = append(s.notes, f.Prefix.Addr().String()+" "+f.Text)
			}
		}
	}
	for _, f := range pl.Stranded {
		if s := e.sessionOn(f.Link); s != nil {
			s.unfit = append(s.unfit, "excluded "+f.Prefix.String()+" "+f.Text)
		}
	}
	e.noteGateways(pl.Policy)
	for i := range pl.Reported {
		r := &pl.Reported[i]
		e.report(r, plan.Judge(pl.Policy, r), Event{Route: *r, Seen: e.lookedAt})
	}
	e.tellUntold()
}

// noteGateways tells of the next hops whose host routes stay: they are no way around the tunnel.
func (e *Enforcer) noteGateways(p *plan.Policy) {
	for en := range p.Entries() {
		if en.Class != plan.Gateway {
			continue
		}
		if s := e.sessionAt(en.Session, p.Spec().Sessions[en.Session].Tunnel); s != nil {
			s.notes = append(s.notes, fmt.Sprintf("%s is the next hop to the VPN server: only neighbour discovery and DHCP may go there outside %s; "+
				"all else is a leak, DNS too (exclude %s to let it pass)", en.Prefix.Addr(), s.Tunnel, en.Prefix))
		}
	}
}

// foreignLocal returns the routes of table local that lead a session's traffic
// outside. The table is asked before every other and is never touched.
func (e *Enforcer) foreignLocal(s *session) []plan.Route {
	var out []plan.Route
	for i := range e.facts.Local {
		if r := &e.facts.Local[i]; r.Type == plan.Unicast && e.takes(s, r, netip.Prefix{}) {
			out = append(out, *r)
		}
	}
	return out
}

// localFindings tells of the routes in table local that are not this host's addresses.
func (e *Enforcer) localFindings(s *session) (out []string) {
	for i := range e.facts.Local {
		if r := &e.facts.Local[i]; e.takes(s, r, netip.Prefix{}) {
			out = append(out, "table local, which is asked before main, has "+r.Type.String()+" "+strings.TrimPrefix(e.text(r), r.Type.String()+" "))
		}
	}
	return out
}

// ruleFindings tells of the rules that let another table take a session's traffic
// before main is asked. A rule that stands in both families is told once.
func (e *Enforcer) ruleFindings(s *session) (out []string) {
	families := map[string]string{}
	var order []string
	for _, family := range []int{4, 6} {
		before, _ := BeforeMain(e.facts.Rules, family)
		for _, r := range before {
			what := e.ruleTakes(s, &r)
			if what == "" {
				continue
			}
			text := "rule " + r.Text + " is asked before main" + what
			if families[text] == "" {
				order = append(order, text)
				families[text] = fmt.Sprintf("IPv%d", family)
			} else if !strings.HasSuffix(families[text], fmt.Sprint(family)) {
				families[text] = "IPv4 and IPv6"
			}
		}
	}
	for _, text := range order {
		out = append(out, text+" ("+families[text]+")")
	}
	return out
}

// ruleTakes says what of a session a rule takes, or "" when it takes nothing.
func (e *Enforcer) ruleTakes(s *session, r *Rule) string {
	overlaps := func(p netip.Prefix) bool {
		return int(plan.FamilyOf(p)) == r.Family && (!r.Dst.IsValid() || p.Overlaps(r.Dst))
	}
	if !slices.ContainsFunc(s.Protect, overlaps) {
		return ""
	}
	if r.Table == "" {
		return " and asks no table"
	}
	content, known := e.facts.Tables[r.Table]
	if !known || content.Cut {
		return ", and table " + r.Table + " is too long to be read for it"
	}
	for i := range content.Routes {
		o := &content.Routes[i]
		if int(plan.FamilyOf(o.Dst)) == r.Family && o.Dst.Bits() > r.Suppress && o.Type != plan.Throw && e.takes(s, o, r.Dst) {
			return ", and table " + r.Table + " takes protected addresses by " + e.text(o)
		}
	}
	return ""
}

// takes reports whether a route of another table, asked for the destinations in
// only, leads a session's traffic elsewhere than into its tunnel.
func (e *Enforcer) takes(s *session, r *plan.Route, only netip.Prefix) bool {
	if r.Type == plan.Unicast && byTunnel(r, s.link) {
		return false
	}
	if only.IsValid() && !only.Overlaps(r.Dst) {
		return false
	}
	class, en := e.policy().Lookup(r.Dst.Addr())
	if class == plan.Protected && en.Tunnel == s.link && en.Prefix.Bits() <= r.Dst.Bits() {
		return true
	}
	return slices.ContainsFunc(s.Protect, func(p netip.Prefix) bool {
		return p.Bits() > r.Dst.Bits() && r.Dst.Overlaps(p) && (!only.IsValid() || only.Overlaps(p))
	})
}

func byTunnel(r *plan.Route, tunnel uint32) bool {
	for hop := range r.Hops() {
		if hop.Link != tunnel {
			return false
		}
	}
	return true
}
