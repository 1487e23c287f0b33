package enforce

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/culvert-project/culvert/enforce/plan"
)

// IPv6 may be switched off on a tunnel, or on the whole host, as in most containers.
// Then the kernel takes no IPv6 route by the tunnel. That does no harm if IPv6 is off on
// all other interfaces too: no packet can leave. If one has it, packets leave by that.

// muted are the prefixes of a session that its tunnel cannot carry.
func (s *session) muted() (out []netip.Prefix) {
	if !s.mute6 {
		return nil
	}
	for _, p := range s.Protect {
		if p.Addr().Is6() && !slices.Contains(s.OtherTable, p) {
			out = append(out, p)
		}
	}
	return out
}

// judgeMute fails the sessions whose tunnels carry no IPv6 while another interface does.
func (e *Enforcer) judgeMute() {
	for _, s := range e.sessions {
		muted := s.muted()
		if len(muted) == 0 || s.err != nil {
			continue
		}
		if l := e.speaks6(s.link); l != nil {
			s.err = fmt.Errorf("there is no IPv6 on %s, and %s has it: packets to %s do not go into the tunnel; switch IPv6 on there (sysctl net.ipv6.conf.%s.disable_ipv6=0) or off everywhere, or protect IPv4 alone",
				s.name(), l.Name, muted[0], s.name())
		}
	}
}

// speaks6 returns an interface beside the tunnel by which IPv6 packets could leave.
func (e *Enforcer) speaks6(tunnel uint32) *plan.Link {
	beyond := func(a netip.Prefix) bool { return a.Addr().Is6() && !a.Addr().IsLoopback() }
	for i := range e.facts.Links {
		if l := &e.facts.Links[i]; l.Index != tunnel && l.Up && !l.Mute6 && slices.ContainsFunc(l.Addrs, beyond) {
			return l
		}
	}
	return nil
}

// muteNotes tells of what a session's tunnel cannot carry, and nothing else does.
func (s *session) muteNotes() (out []string) {
	for _, p := range s.muted() {
		out = append(out, fmt.Sprintf("%s: there is no IPv6 on %s, nor on any other interface: packets to it go nowhere", p, s.name()))
	}
	return out
}
