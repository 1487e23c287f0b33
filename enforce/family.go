package enforce

import (
	"fmt"
	"net/netip"

	"github.com/culvert-project/culvert/enforce/plan"
)

// OtherFamily says what is done with the family that a full tunnel leaves out.
type OtherFamily string

// The ways to treat it. The zero value is OtherAllow.
const (
	OtherAllow OtherFamily = "allow" // it goes as it went before, and the status says so
	OtherBlock OtherFamily = "block" // packets to its Internet are rejected, and dropped where they leave all the same
)

// oneFamily returns the family that is not protected while all of the other is,
// by the sessions together. It is not ok when there is none.
func oneFamily(all []Session, s *Session) (left plan.Family, ok bool) {
	var protect, exclude []netip.Prefix
	for i := range all {
		protect = append(protect, all[i].Protect...)
		exclude = append(exclude, all[i].Exclude...)
	}
	for _, f := range []plan.Family{plan.IPv4, plan.IPv6} {
		if isFull(s, f) && !plan.Full(f.Other(), protect, exclude) {
			return f.Other(), true
		}
	}
	return 0, false
}

// Rejected returns what is rejected for one session of all: the Internet of the
// family that it leaves out, when it asks for that and no other session protects it.
func Rejected(all []Session, s *Session) []netip.Prefix {
	if s.OtherFamily != OtherBlock {
		return nil
	}
	left, ok := oneFamily(all, s)
	if !ok {
		return nil
	}
	return plan.GlobalPrefixes(left)
}

// familyFinding tells of a session that protects all of one family while packets of
// the other leave by a default route outside.
func (e *Enforcer) familyFinding(s *session, pl *plan.Plan) string {
	if s.isSplit() || s.OtherFamily == OtherBlock {
		return ""
	}
	var all []Session
	for _, o := range e.sessions {
		all = append(all, o.Session)
	}
	left, ok := oneFamily(all, &s.Session)
	if !ok {
		return ""
	}
	for i := range pl.Defaults {
		r := &pl.Defaults[i]
		if plan.FamilyOf(r.Dst) != left || r.Type != plan.Unicast {
			continue
		}
		return fmt.Sprintf("all of %s is protected, %s of %s: packets to it leave by %s; protect %s or use --other-family block",
			left.Other(), e.share(all, left), left, e.name(r.Hop.Link), r.Dst)
	}
	return ""
}

// share says how much of a family that is not full is protected.
func (e *Enforcer) share(all []Session, f plan.Family) string {
	for i := range all {
		for _, p := range all[i].Protect {
			if plan.FamilyOf(p) == f {
				return "only a part"
			}
		}
	}
	return "none"
}

// isSplit reports whether a session protects all of no family. It remembers, for
// policies may be long.
func (s *session) isSplit() bool {
	if len(s.Protect) == 0 {
		return true
	}
	if s.split != &s.Protect[0] && !isFull(&s.Session, plan.IPv4) && !isFull(&s.Session, plan.IPv6) {
		s.split = &s.Protect[0]
	}
	return s.split == &s.Protect[0]
}

// tellFamily notes what was found of the other family, and logs what is new.
func (e *Enforcer) tellFamily(s *session, text string) {
	if text != "" && text != s.oneFamily {
		e.log.warn(text, "tunnel", s.Tunnel)
	}
	s.oneFamily = text
}

// rejectedFor returns what is rejected for a session in the policy as it is.
func (e *Enforcer) rejectedFor(s *session) []netip.Prefix {
	for i, ps := range e.policy().Spec().Sessions {
		if e.sessionAt(i, ps.Tunnel) == s {
			return ps.Reject
		}
	}
	return nil
}
