package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// The tunnel's own packets have to go outside it. What leads them there may
// conflict and go out, so host routes of our own stand in: to the server, and to
// the gateway that leads to it.

// path is how the transport reaches one server outside the tunnel.
type path struct {
	server  netip.Addr
	tunnel  uint32 // of the server's own session
	cover   *Entry // protected prefix that would take the server's packets, or nil
	best    Route  // longest route outside every tunnel, standing or held
	found   bool
	trusted bool  // best was not put there by whoever adds conflicts
	stays   bool  // one that is longer than cover stays
	rival   Route // the best host route that leads into the server's own tunnel
	loops   bool  // there is one
}

// servers returns one empty path per transport endpoint.
func (p *Policy) servers() []path {
	var out []path
	for i := range p.spec.Sessions {
		for _, a := range p.spec.Sessions[i].Servers {
			if InIgnored(netip.PrefixFrom(a, a.BitLen())) {
				continue // a proxy on this host, say: its packets are let be anyway
			}
			pa := path{server: a, tunnel: p.spec.Sessions[i].Tunnel}
			if e, ok := p.protect.Lookup(a); ok && !e.OtherTable {
				pa.cover = e
			}
			out = append(out, pa)
		}
	}
	return out
}

// follow notes whether r is a better way to a server than the ways seen so far.
func (m *maker) follow(r *Route, v Verdict) {
	for i := range m.paths {
		pa := &m.paths[i]
		if !r.Dst.Contains(pa.server) {
			continue
		}
		if !m.carriesTransport(r) {
			pa.compete(r)
			continue
		}
		if trusted := m.trusted(r, v); trusted && !pa.trusted || trusted == pa.trusted && better(r, &pa.best) {
			pa.best, pa.found, pa.trusted = r.Clone(), true, trusted
		}
		stays := v.Reason == InExcluded || v.Decision == Report
		if stays && pa.cover != nil && r.Dst.Bits() > pa.cover.Prefix.Bits() {
			pa.stays = true
		}
	}
}

// compete notes a host route to the server that leads into the server's own
// tunnel: the VPN pushed it, or the server is the tunnel's peer.
func (pa *path) compete(r *Route) {
	leads := r.Type == Unicast && !r.Dead && r.TOS == 0 && !r.Src.IsValid() && r.Hop.Link == pa.tunnel
	if leads && r.Dst.IsSingleIP() && better(r, &pa.rival) {
		pa.rival, pa.loops = r.Clone(), true
	}
}

// couldStand reports whether a route's interface is in use for its family. A
// held way that was left behind in another network must not be followed.
func (m *maker) couldStand(r *Route) bool {
	l := m.book.links[r.Hop.Link]
	return l != nil && l.Up && slices.ContainsFunc(l.Addrs, func(a netip.Prefix) bool { return a.Addr().Is4() == r.Dst.Addr().Is4() })
}

// trusted reports whether the transport may follow a route if it has the
// choice. A conflict that came while connected may be there to lead it astray,
// and goes at once; it is followed where there is no other way, as after a
// change of networks.
func (m *maker) trusted(r *Route, v Verdict) bool {
	return v.Decision != Conflict || m.stood(r) || (r.Connected() || r.leasedLink()) && m.book.hasAddress(r) || Superseded(m.heldAt(r.Slot()), r) != 0
}

func (m *maker) carriesTransport(r *Route) bool {
	return r.Type == Unicast && !r.Dead && r.TOS == 0 && !r.Src.IsValid() &&
		r.Hop.Link != 0 && !m.p.isTunnel(r.Hop.Link)
}

// better orders the ways to one address as a lookup would, and breaks a tie by
// content so that the answer does not depend on the order of reading. Every route is
// better than the zero one.
func better(a, b *Route) bool {
	return cmp.Or(
		cmp.Compare(b.Dst.Bits(), a.Dst.Bits()),
		cmp.Compare(a.Metric, b.Metric),
		Compare(*a, *b),
	) < 0
}

// want adds the host routes that one server's path needs to the wanted ones.
func (m *maker) want(pa *path) {
	host := netip.PrefixFrom(pa.server, pa.server.BitLen())
	if pa.loops {
		m.ahead[host] = true
	}
	if !pa.found {
		// The way is unknown now: what stands is the best guess, the gateway's too.
		m.lostWay = true
		for _, hop := range m.keepOwn(host) {
			if hop.Via.IsValid() {
				m.keepOwn(netip.PrefixFrom(hop.Via, hop.Via.BitLen()))
			}
		}
		return
	}
	for hop := range pa.best.Hops() {
		m.wantGateway(hop)
	}
	if !pa.loops && (pa.cover == nil || pa.stays && !m.hasOwn(host)) {
		return
	}
	r := Route{Dst: host, Hop: pa.best.Hop, PrefSrc: pa.best.PrefSrc, Origin: Own}
	m.wantRoute(r)
}

// readExcluded notes the gateways of routes that are excluded: they have to stay
// reachable as a server's do, for the tunnel may lean on such a route (a proxy on
// this host, whose far end is excluded).
func (m *maker) readExcluded(r *Route, v Verdict) {
	if v.Reason != InExcluded || r.Type != Unicast {
		return
	}
	for hop := range r.Hops() {
		m.nextHops[hop] = true
	}
}

// wantNextHops keeps those gateways reachable, in an order of their own.
func (m *maker) wantNextHops() {
	for _, hop := range slices.SortedFunc(maps.Keys(m.nextHops), func(a, b Hop) int {
		return cmp.Or(a.Via.Compare(b.Via), cmp.Compare(a.Link, b.Link))
	}) {
		m.wantGateway(hop)
	}
}

// wantGateway keeps a gateway reachable whose on-link route is or goes out.
// Without it a strict reverse-path filter stops answering the gateway's ARP.
func (m *maker) wantGateway(hop Hop) {
	host := netip.PrefixFrom(hop.Via, hop.Via.BitLen())
	if !hop.Via.IsValid() || InIgnored(host) || m.p.isTunnel(hop.Link) {
		return
	}
	if c, ok := m.lostCover(hop); ok {
		m.wantRoute(Route{Dst: host, Hop: Hop{Link: hop.Link}, PrefSrc: c.PrefSrc, Origin: Own})
		m.gateways = append(m.gateways, host)
	}
}

// lostCover returns the on-link route that held the gateway and conflicts.
func (m *maker) lostCover(hop Hop) (best Route, ok bool) {
	try := func(r *Route) {
		if r.OnLink() && r.Hop.Link == hop.Link && r.Dst.Contains(hop.Via) && better(r, &best) {
			best, ok = *r, true
		}
	}
	for _, i := range m.onLink {
		// A host route to the gateway counts although the pinhole spares it: it
		// must call for the same pinhole after the pinhole stands as before.
		r := &m.candidates[i].route
		if v := Judge(m.p, r); (r.Dst.IsSingleIP() || v.Decision == Conflict) && m.trusted(r, v) {
			try(r)
		}
	}
	for i := range m.fates {
		if m.fates[i].why == "" {
			try(&m.fates[i].rest)
		}
	}
	return best, ok
}

func (m *maker) wantRoute(r Route) {
	if r.Dst.Addr().Is6() {
		r.Metric = ownMetric6
	}
	if !slices.ContainsFunc(m.wanted, r.Same) {
		m.wanted = append(m.wanted, r)
	}
}

// keepOwn wants our own standing routes to a host, and returns where they lead.
func (m *maker) keepOwn(dst netip.Prefix) (hops []Hop) {
	for i := range m.own {
		if m.own[i].Dst == dst && !m.p.isTunnel(m.own[i].Hop.Link) {
			m.wantRoute(m.own[i].asWanted())
			hops = append(hops, m.own[i].Hop)
		}
	}
	return hops
}

func (m *maker) hasOwn(dst netip.Prefix) bool {
	return slices.ContainsFunc(m.own, func(r Route) bool { return r.Dst == dst })
}

// asWanted reduces one of our own standing routes to what we would ask for.
func (r Route) asWanted() Route {
	return Route{Dst: r.Dst, Hop: r.Hop, PrefSrc: r.PrefSrc, Origin: Own}
}

// stands reports whether a wanted host route is there. IPv6 does not tell ours
// from another's that goes the same way, and makes one multipath route of those
// of one metric: there is no order among these, so that none has to stand ahead.
func (m *maker) stands(w Route) bool {
	return slices.ContainsFunc(m.own, func(o Route) bool { return o.serves(w) && !m.behind[o] }) ||
		slices.ContainsFunc(m.twins, func(o Route) bool {
			return o.Slot() == w.Slot() && slices.Contains(slices.Collect(o.Hops()), w.Hop)
		})
}

// serves reports whether a standing route of ours is the wanted one.
func (r Route) serves(w Route) bool {
	return r.Dst == w.Dst && r.Hop == w.Hop && (!w.PrefSrc.IsValid() || r.PrefSrc == w.PrefSrc)
}

// swallowed reports the routes that send a server's packets into the server's
// own tunnel and that nothing of ours leads round.
func (m *maker) swallowed() {
	for i := range m.paths {
		if pa := &m.paths[i]; pa.loops && !m.leadsOut(pa) {
			m.out.Swallowed = append(m.out.Swallowed, pa.rival)
		}
	}
}

// leadsOut reports whether a host route of ours wins over the rival, or will when
// it is put. IPv4 takes the first of a slot; IPv6 has no order among routes of one
// metric.
func (m *maker) leadsOut(pa *path) bool {
	if pa.rival.Dst.Addr().Is6() && pa.rival.Metric <= ownMetric6 {
		return false
	}
	return slices.ContainsFunc(m.wanted, func(w Route) bool { return w.Dst == pa.rival.Dst })
}
