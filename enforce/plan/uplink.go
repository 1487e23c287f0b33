package plan

import (
	"iter"
	"net/netip"
	"slices"
)

// LinkKind says whether an interface can be a VPN's tunnel, as far as the system
// tells.
type LinkKind uint8

// The kinds of interfaces.
const (
	KindUnknown LinkKind = iota // may be either
	KindTunnel                  // carries packets inside others: tun, WireGuard, XFRM, GRE and the like
	KindPlain                   // a network card, VLAN, bridge or the like: what networks are reached by
)

// Uplink is what shows that an interface is no tunnel, but what the network is
// reached by.
type Uplink struct {
	Route  Route      // leads by the interface
	Server netip.Addr // reached by that alone; invalid where Route is a default route
}

// FindUplink looks in the main table for what shows that an interface is no
// tunnel: it is the only way to one of its own servers, or it is plain and has a
// default route. A tunnel may well have a default route, and be the only way to
// its server while the network is away, so one that is sure to be a tunnel is
// never suspected. An unknown one is suspected for its server alone.
func FindUplink(l *Link, servers []netip.Addr, table iter.Seq[Route]) (found Uplink, ok bool) {
	if l.Kind == KindTunnel {
		return found, false
	}
	all := make([]serverWays, len(servers))
	for r := range table {
		if r.Type != Unicast || r.Dead || r.Origin == Own {
			continue
		}
		by := slices.Collect(r.Hops())
		whole := !slices.ContainsFunc(by, func(h Hop) bool { return h.Link != l.Index })
		if whole && l.Kind == KindPlain && r.Dst.Bits() == 0 && !ok {
			found, ok = Uplink{Route: r.Clone()}, true
		}
		for i, a := range servers {
			if r.Dst.Contains(a) {
				all[i].take(&r, whole)
			}
		}
	}
	for i, a := range servers {
		if w := &all[i]; w.through && !w.around && !InIgnored(netip.PrefixFrom(a, a.BitLen())) {
			return Uplink{w.route, a}, true
		}
	}
	return found, ok
}

// serverWays are what the table has for one server.
type serverWays struct {
	through, around bool  // by the interface; by another
	route           Route // the best one through
}

func (w *serverWays) take(r *Route, through bool) {
	switch {
	case !through:
		w.around = true
	case better(r, &w.route):
		w.through, w.route = true, r.Clone()
	}
}
