package plan

import "net/netip"

// An excluded prefix bypasses the tunnel by the routes to it, which stay. If there is
// none, because only a wider route led there and had to go, its packets enter the tunnel
// with all others. That is no leak, but it is not what was asked for.

// exclusion is an excluded prefix inside a protected one.
type exclusion struct {
	around *Entry // the protected prefix
	served bool   // a route that stays leads outside
}

// exclusions are the excluded prefixes that only a route of their own can lead to outside
// the tunnel: those inside a protected prefix whose tunnel is up.
func (p *Policy) exclusions() map[netip.Prefix]*exclusion {
	var out map[netip.Prefix]*exclusion
	for i := range p.spec.Sessions {
		for _, x := range p.spec.Sessions[i].Exclude {
			_, around, ok := p.protect.LookupPrefixLPM(x)
			if !ok || around.Reject || !p.spec.Sessions[around.Session].TunnelUp {
				continue
			}
			if out == nil {
				out = map[netip.Prefix]*exclusion{}
			}
			out[x] = &exclusion{around: around}
		}
	}
	return out
}

// readStaying notes which exclusions a route that stays serves. A route as wide as the
// protected prefix around it serves none, for the tunnel's own wins.
func (m *maker) readStaying(r *Route, v Verdict) {
	if len(m.excluded) == 0 || r.Dead || (v.Reason != InExcluded && v.Decision != Report) {
		return
	}
	m.serve(v.Entry.Prefix, r)
	for x := range m.p.trie.Subnets(r.Dst) {
		m.serve(x, r)
	}
}

func (m *maker) serve(x netip.Prefix, r *Route) {
	e := m.excluded[x]
	if e == nil || e.served || r.Dst.Bits() <= e.around.Prefix.Bits() {
		return
	}
	for hop := range r.Hops() {
		e.served = e.served || hop.Link != e.around.Tunnel
	}
}

// strand reports the excluded prefixes that have no way outside.
func (m *maker) strand() {
	for _, w := range m.wanted {
		if e := m.excluded[w.Dst]; e != nil {
			e.served = true // a server's, or a gateway's: its host route is ours
		}
	}
	for i := range m.p.spec.Sessions {
		s := &m.p.spec.Sessions[i]
		for _, x := range s.Exclude {
			if e := m.excluded[x]; e != nil && !e.served {
				m.out.Stranded = append(m.out.Stranded, Finding{Prefix: x, Link: s.Tunnel,
					Text: "has no way outside: no route that stays leads there, so it enters the tunnel as " + e.around.Prefix.String() + " does; exclude the whole network that it is part of, or add a route to it"})
			}
		}
	}
}
