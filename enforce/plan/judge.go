package plan

import "slices"

// Decision is what a verdict says to do with a route.
type Decision uint8

// The decisions. Only Conflict removes anything.
const (
	Keep     Decision = iota // none of our business, or it never wins
	Ours                     // leaves by the tunnel
	Report                   // takes protected traffic, and stays by the operator's word
	Conflict                 // takes protected traffic: remove
)

var decisionNames = [...]string{"keep", "ours", "report", "conflict"}

// String returns the word for the decision.
func (d Decision) String() string { return decisionNames[d] }

// Reason is why a verdict was reached.
type Reason uint8

// The reasons. They print by way of [Verdict.Explain].
const (
	NotProtected  Reason = iota // no protected prefix contains it
	InExcluded                  // the longest policy prefix excludes it
	NeverTouched                // inside an ignored range
	ByTunnel                    // every leg is the tunnel
	Shadowed                    // the tunnel's route has the lower metric
	OtherTableOwn               // the VPN routes this prefix in a table of its own
	KeptLink                    // its interface is excluded by the operator
	KeptReject                  // keep_unreachable
	Longer                      // longer than the protected prefix
	EqualMetric                 // equal to it, metric not higher than the tunnel route's
	ExactTOS                    // equal to it, but with a TOS
	FromSource                  // equal to it, but for a source prefix
	HigherPref                  // equal to it, with a higher router preference
	Rejects                     // our own, which rejects a family that the tunnel leaves out
)

// Verdict is what the policy says of one route, and why.
type Verdict struct {
	Decision Decision
	Reason   Reason
	Type     Type   // of the route judged
	Link     uint32 // the interface that takes the traffic, or 0
	Partly   bool   // other legs of the route are the tunnel's
	Shared   bool   // and they are the tunnel's route for the prefix
	Entry    *Entry // the policy prefix that decided, or nil
}

// Judge says what the policy makes of one route. It looks at nothing else,
// waits for nothing and does not allocate.
func Judge(p *Policy, r *Route) Verdict {
	class, e := p.classify(r.Dst)
	v := Verdict{Type: r.Type, Entry: e}
	switch class {
	case Unlisted:
		v.Reason = NotProtected
	case Ignored:
		v.Reason = NeverTouched
	case Excluded, Gateway:
		v.Reason = InExcluded
	case Protected:
		p.judgeProtected(r, e, &v)
	}
	return v
}

func (p *Policy) judgeProtected(r *Route, e *Entry, v *Verdict) {
	if e.rejects(r) {
		v.Decision, v.Reason = Ours, Rejects
		return
	}
	foreign, shared := foreignLeg(r, e.Tunnel)
	// A longer route's tunnel leg is not the tunnel's route: it goes too.
	v.Link, v.Partly = foreign, shared
	v.Shared = shared && r.Dst == e.Prefix && !hides(r, e)
	if r.Type == Unicast && foreign == e.Tunnel && !hides(r, e) {
		v.Decision, v.Reason, v.Link = Ours, ByTunnel, e.Tunnel
		return
	}
	v.Reason = competes(r, e)
	switch {
	case v.Reason == Shadowed || v.Reason == OtherTableOwn: // it stays
	case hides(r, e):
		v.Decision = Conflict // whoever may keep it, others would pay
	case p.spec.KeepUnreachable && rejects(r.Type):
		v.Decision, v.Reason = Report, KeptReject
	case r.Type == Unicast && onKeptLinks(r, e):
		v.Decision, v.Reason = Report, KeptLink
	default:
		v.Decision = Conflict
	}
}

// hides reports whether a route must go although it is the tunnel's own, or one
// that the operator keeps. Where Linux finds routes for source prefixes, it passes
// over the destination's other routes for every source that none of them
// matches: such packets go on to a shorter prefix, outside. Default routes are
// not passed over: there is no shorter prefix.
func hides(r *Route, e *Entry) bool {
	return r.Src.IsValid() && r.Dst == e.Prefix && r.Dst.Bits() > 0 && !e.OtherTable
}

// foreignLeg returns the first leg's interface that is not the tunnel, or the
// tunnel when there is none, and whether legs of both kinds exist.
func foreignLeg(r *Route, tunnel uint32) (link uint32, shared bool) {
	if !r.Multipath() {
		return r.Hop.Link, false
	}
	link = tunnel
	ours := false
	for h := range r.Hops() {
		if h.Link == tunnel {
			ours = true
		} else if link == tunnel {
			link = h.Link
		}
	}
	return link, ours && link != tunnel
}

// competes says how a route that leaves elsewhere beats the tunnel's route for
// the protected prefix, or that it does not.
func competes(r *Route, e *Entry) Reason {
	switch {
	case r.Dst.Bits() > e.Prefix.Bits():
		return Longer
	case e.OtherTable:
		return OtherTableOwn
	case r.TOS != e.Route.TOS:
		return ExactTOS
	case r.Src.IsValid():
		return FromSource
	case r.Metric <= e.Route.Metric:
		return EqualMetric
	case r.Pref > e.Route.Pref:
		return HigherPref
	}
	return Shadowed
}

func rejects(t Type) bool { return t == Blackhole || t == Unreachable || t == Prohibit }

func onKeptLinks(r *Route, e *Entry) bool {
	if len(e.keepLinks) == 0 {
		return false
	}
	for h := range r.Hops() {
		if h.Link != e.Tunnel && !slices.Contains(e.keepLinks, h.Link) {
			return false
		}
	}
	return true
}

// Explain says the verdict in words, for example "longer than 172.31.0.0/16,
// leaves by eth0". Name gives an interface's name for its index.
func (v Verdict) Explain(name func(uint32) string) string {
	prefix := ""
	if v.Entry != nil {
		prefix = v.Entry.Prefix.String()
	}
	switch v.Reason {
	case NotProtected:
		return "not inside a protected prefix"
	case NeverTouched:
		return "inside a range that is never touched"
	case InExcluded:
		return "inside excluded " + prefix
	case ByTunnel:
		return "leaves by the tunnel " + name(v.Link)
	case Rejects:
		return "rejects " + prefix + ", which the tunnel leaves out"
	case Shadowed:
		return "equal to " + prefix + " with a higher metric than the tunnel's: never wins while that stands"
	case OtherTableOwn:
		return "equal to " + prefix + ", which the VPN routes in a table of its own"
	}
	return v.how(prefix) + ", " + v.outcome(name)
}

func (v Verdict) how(prefix string) string {
	switch v.Reason {
	case EqualMetric:
		return "equal to " + prefix + " with a metric no higher than the tunnel's"
	case ExactTOS:
		return "equal to " + prefix + " for a TOS of its own"
	case FromSource:
		return "equal to " + prefix + " for a source prefix of its own"
	case HigherPref:
		return "equal to " + prefix + " with a higher router preference"
	case KeptLink:
		return "inside " + prefix + " on an interface excluded by configuration"
	case KeptReject:
		return "inside " + prefix + ", kept by keep_unreachable"
	}
	return "longer than " + prefix
}

func (v Verdict) outcome(name func(uint32) string) string {
	switch {
	case v.Type == Throw:
		return "falls through to other tables (throw)"
	case v.Type != Unicast:
		return "cuts the traffic off (" + v.Type.String() + ")"
	case v.Link == v.Entry.Tunnel:
		return "hides the tunnel's route from every other source"
	case v.Partly:
		return "leaves partly by " + name(v.Link)
	case v.Link == 0:
		return "leaves by no interface that is known"
	}
	return "leaves by " + name(v.Link)
}
