package plan

import "net/netip"

// What is excluded bypasses the tunnel by the routes that stay there. Where none does,
// because it was part of a wider route that had to go, it enters the tunnel with
// everything else. Nothing leaks by that, but it is not what was asked for.

// exclusion is an excluded prefix inside a protected one.
type exclusion struct {
	around *Entry // the protected prefix
	served bool   // a route that stays leads outside
}

// exclusions are what the sessions exclude, as far as only a route of its own leads
// there outside the tunnel.
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

// readStaying notes what a route that stays serves. One that is as wide as what is
// protected around loses to the tunnel's.
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

// strand reports what is excluded and has no way outside.
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
