package main

import (
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/culvert-project/culvert/cmd/culvert/internal/plain"
	"github.com/culvert-project/culvert/cmd/culvert/internal/witness"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/culvert-project/culvert/loader"
)

// explanation joins what policy and system say of one packet.
type explanation struct {
	query
	answer answer
	links  []plan.Link
	names  map[uint32]string

	policy  string // what should be
	right   bool
	verdict string
	note    string // what holds besides
}

func (e *explanation) err() error {
	if e.right {
		return nil
	}
	return errQuiet
}

// judge compares the system's answer with the policy.
func (e *explanation) judge(policy asked) {
	st := witness.Classify(e.protection(policy), e.dst)
	e.right = true
	switch {
	case st.Listed && st.Class == loader.Ignored:
		e.policy, e.verdict = "inside a range that is never touched", "right: nothing is asked of it"
	case e.isTransport(policy, st):
		e.judgeTransport(policy, st)
	case !st.Listed:
		e.policy, e.verdict = "no session protects it", "right: nothing is asked of it"
	case st.Class == loader.Excluded:
		e.policy, e.verdict = "excluded by "+st.Prefix.String(), "right: it may bypass the tunnel"
	case st.Class == loader.Server:
		e.policy = "address of the VPN server: all but the tunnel's own transport must leave through " + st.Tunnel
		e.right, e.verdict = e.through(policy, st.Tunnel)
	case st.Class == loader.Gateway:
		e.policy = "next hop to the VPN server: only neighbour discovery and DHCP may go there outside " + st.Tunnel
		e.right, e.verdict = e.through(policy, st.Tunnel)
		e.note = "its host route keeps it reachable for ARP and for the reverse-path filter; what else is sent there is a leak"
	case rejects(policy.sessions, st.Prefix):
		e.policy = "in " + st.Prefix.String() + ", which " + st.Tunnel + " leaves out: rejected (--other-family block)"
		if e.right, e.verdict = e.through(policy, st.Tunnel); e.answer.refused != nil {
			e.right, e.verdict = true, "right: it is rejected"
		}
	default:
		e.policy = "protected by " + st.Prefix.String() + ": must leave through " + st.Tunnel
		e.right, e.verdict = e.through(policy, st.Tunnel)
	}
}

// isTransport reports whether the question is about a tunnel's own packets.
func (e *explanation) isTransport(policy asked, st witness.Standing) bool {
	srv, _ := e.server(policy)
	return srv != nil && (e.proto == 0 || st.Class == loader.Server && st.Passes(e.proto, e.port))
}

// server finds the session whose server has the address, and its transports
// there.
func (e *explanation) server(policy asked) (*enforce.Session, []string) {
	var found *enforce.Session
	var transports []string
	for i := range policy.sessions {
		s := &policy.sessions[i]
		for _, srv := range s.Servers {
			if srv.Addr.Addr().Unmap() == e.dst && (found == nil || found == s) {
				found, transports = s, append(transports, srv.String())
			}
		}
	}
	return found, transports
}

// judgeTransport wants the tunnel's own packets outside the tunnel.
func (e *explanation) judgeTransport(policy asked, st witness.Standing) {
	s, transports := e.server(policy)
	e.policy = "VPN server of " + s.Tunnel + ": the tunnel's own transport (" + strings.Join(transports, ", ") + ") must bypass it"
	if e.proto == 0 && st.Class == loader.Server && st.Listed {
		e.note = "any other packet to it must leave through " + s.Tunnel + "; ask about one with --proto and --port"
	}
	var into bool
	for hop := range e.answer.route.Hops() {
		into = into || e.name(hop.Link) == s.Tunnel
	}
	switch {
	case e.answer.refused != nil:
		e.right, e.verdict = false, "wrong: the server cannot be reached ("+e.answer.refused.Error()+")"
	case into:
		e.right, e.verdict = false, "wrong: the tunnel's own packets would enter the tunnel"
	default:
		e.verdict = "right: it bypasses the tunnel"
	}
}

// rejects reports whether a session rejects the prefix, which none protects.
func rejects(sessions []enforce.Session, p netip.Prefix) bool {
	rejected := false
	for i := range sessions {
		if slices.Contains(sessions[i].Protect, p) {
			return false
		}
		rejected = rejected || slices.Contains(enforce.Rejected(sessions, &sessions[i]), p)
	}
	return rejected
}

// protection is the policy as the witness takes it.
func (e *explanation) protection(policy asked) enforce.Protection {
	p := enforce.Protection{Gateways: policy.gateways}
	for _, s := range policy.sessions {
		ps := enforce.ProtectedSession{Session: s, Reject: enforce.Rejected(policy.sessions, &s)}
		for _, l := range e.links {
			if l.Name == s.Tunnel {
				ps.Link = l.Index
			}
		}
		p.Sessions = append(p.Sessions, ps)
	}
	return p
}

// through says whether the answer leads through the tunnel and nowhere else, but
// for interfaces that the tunnel's session excludes.
func (e *explanation) through(policy asked, tunnel string) (bool, string) {
	r := &e.answer.route
	index := e.index(tunnel)
	switch {
	case e.answer.refused != nil:
		return false, "wrong: it reaches nothing, the tunnel included (" + e.answer.refused.Error() + ")"
	case r.Type == plan.Local && e.owns(index):
		return true, "right: it is this host's own address on the tunnel"
	case r.Type == plan.Local:
		return false, "wrong: it is this host's own address, packets to it stay here; routes cannot change that"
	case r.Type != plan.Unicast:
		return false, "wrong: the route cuts it off (" + r.Type.String() + ")"
	}
	var outside, excluded []string
	for hop := range r.Hops() {
		switch name := e.name(hop.Link); {
		case hop.Link == index:
		case excludes(policy.sessions, tunnel, name):
			excluded = append(excluded, name)
		default:
			outside = append(outside, name)
		}
	}
	switch {
	case slices.Contains(outside, ""):
		return false, "wrong: it leaves by an interface that is not known"
	case len(outside) > 0:
		return false, "wrong: it leaves by " + strings.Join(outside, ", ")
	case len(excluded) > 0:
		return true, "right: it leaves by " + strings.Join(excluded, ", ") + ", which is excluded"
	}
	return true, "right: it leaves through " + tunnel
}

// excludes reports whether the session on a tunnel excludes an interface.
func excludes(sessions []enforce.Session, tunnel, name string) bool {
	return slices.ContainsFunc(sessions, func(s enforce.Session) bool {
		return s.Tunnel == tunnel && s.Excludes(name)
	})
}

// index is the tunnel's, or one that no interface has where it is away.
func (e *explanation) index(tunnel string) uint32 {
	for index, name := range e.names {
		if name == tunnel {
			return index
		}
	}
	return ^uint32(0)
}

// owns reports whether the address is one of the interface's own.
func (e *explanation) owns(index uint32) bool {
	return slices.ContainsFunc(e.links, func(l plan.Link) bool {
		return l.Index == index && slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr() == e.dst })
	})
}

func (e *explanation) name(index uint32) string { return e.names[index] }

func (e *explanation) print(w io.Writer) {
	plain.Fprintf(w, "address  %s\n", e.dst)
	plain.Fprintf(w, "policy   %s\n", e.policy)
	route := enforce.RouteText(&e.answer.route, e.name, protocolName)
	switch {
	case e.answer.refused != nil:
		plain.Fprintf(w, "kernel   no way: %v\n", e.answer.refused)
	case e.answer.onLink:
		plain.Fprintf(w, "kernel   no route leads there; it is taken to be on the link of %s\n", e.device)
	default:
		plain.Fprintf(w, "kernel   %s\n", route)
	}
	if e.answer.table != "" {
		plain.Fprintf(w, "table    %s\n", e.answer.table)
	}
	if e.answer.rule != "" {
		plain.Fprintf(w, "rule     %s\n", e.answer.rule)
	}
	for _, rule := range e.answer.unless {
		plain.Fprintf(w, "unless   %s\n", rule)
	}
	plain.Fprintf(w, "verdict  %s\n", e.verdict)
	if e.note != "" {
		plain.Fprintf(w, "note     %s\n", e.note)
	}
}
