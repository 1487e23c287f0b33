package plan

import (
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// A held route is forgotten when the kernel itself would have dropped it by now,
// or when the network that it belonged to was left: put back there, it would send
// traffic to a gateway that does not exist.

// fate is what judgeHeld found of one held route.
type fate struct {
	why  string // why it must not come back, or ""
	rest Route  // what comes back of it
}

// addressBook answers questions about the interfaces' addresses.
type addressBook struct {
	links map[uint32]*Link
	own   map[netip.Addr]bool // every address of the host
}

func newAddressBook(links []Link) addressBook {
	b := addressBook{links: map[uint32]*Link{}, own: map[netip.Addr]bool{}}
	for i := range links {
		b.links[links[i].Index] = &links[i]
		for _, a := range links[i].Addrs {
			b.own[a.Addr()] = true
		}
	}
	return b
}

// hasAddress reports whether the address that a connected route follows from
// is still on its interface.
func (b *addressBook) hasAddress(r *Route) bool {
	l := b.links[r.Hop.Link]
	if l == nil {
		return false
	}
	return slices.ContainsFunc(l.Addrs, func(a netip.Prefix) bool {
		return a.Addr() == r.PrefSrc || (!r.PrefSrc.IsValid() && a.Masked() == r.Dst)
	}) || (!r.PrefSrc.IsValid() && slices.Contains(l.Peers, r.Dst))
}

// leads reports whether an address of the link puts its gateway on the link.
func (b *addressBook) leads(hop Hop) bool {
	l := b.links[hop.Link]
	contains := func(p netip.Prefix) bool { return p.Contains(hop.Via) }
	return l != nil && (slices.ContainsFunc(l.Addrs, contains) || slices.ContainsFunc(l.Peers, contains))
}

// Nets returns the networks of a route's interfaces, of its family: what they are
// when it is removed tells later whether they were left. Link-local ones are the
// same in every network.
func Nets(r *Route, link func(uint32) *Link) (out []netip.Prefix) {
	for hop := range r.Hops() {
		l := link(hop.Link)
		if l == nil {
			continue
		}
		for _, a := range l.Addrs {
			if a.Addr().Is4() == r.Dst.Addr().Is4() && !a.Addr().IsLinkLocalUnicast() && !slices.Contains(out, a.Masked()) {
				out = append(out, a.Masked())
			}
		}
	}
	return out
}

// moved reports whether a held route's interfaces had networks and are in none of
// them now.
func (m *maker) moved(h *Held) bool {
	now := Nets(&h.Route, func(index uint32) *Link { return m.book.links[index] })
	return len(h.Nets) > 0 && !slices.ContainsFunc(now, func(p netip.Prefix) bool { return slices.Contains(h.Nets, p) })
}

// judgeHeld decides the fate of every held route, once the table was read.
func (m *maker) judgeHeld() {
	m.fates = make([]fate, len(m.in.Held))
	for i := range m.in.Held {
		h, f := &m.in.Held[i], &m.fates[i]
		f.rest, f.why = m.survivors(&h.Route)
		if f.why == "" {
			f.why = m.dropped(h)
		}
		if f.why == "" {
			m.ways.take(&f.rest)
		}
	}
}

// unwelcome says why a held route that conflicts no more must not come back all
// the same, or "". While it conflicts it is kept: its gateway's network and the
// routes that go by it may be about to come back.
func (m *maker) unwelcome(r *Route) string {
	switch {
	case !m.ways.lead(r, &m.book):
		return "nothing leads to its gateway any more"
	case r.leasedHost() && !m.ways.used[Hop{Link: r.Hop.Link, Via: r.Dst.Addr()}]:
		return "no route goes by it any more"
	}
	return ""
}

// survivors returns what is left of a route whose interfaces went. IPv6 drops the
// legs by an interface that goes, IPv4 the whole route; a nexthop group loses the
// member and stays.
func (m *maker) survivors(r *Route) (rest Route, why string) {
	var gone, down, legs int
	for hop := range r.Hops() {
		if hop.Link == 0 {
			continue
		}
		legs++
		if l := m.book.links[hop.Link]; l == nil {
			gone++
		} else if !l.Up {
			down++
		}
	}
	whole := r.Dst.Addr().Is4() && r.NexthopID == 0
	switch {
	case legs > 0 && (gone == legs || whole && gone > 0):
		return *r, "its interface is gone"
	case legs > 0 && gone+down == legs:
		return *r, "its interface went down"
	case gone > 0 && r.NexthopID == 0:
		return withLegs(*r, func(h Hop) bool { return h.Link == 0 || m.book.links[h.Link] != nil }), ""
	}
	return *r, ""
}

// dropped says why the kernel would have dropped a held route by now although
// its interface stands, or "".
func (m *maker) dropped(h *Held) string {
	r := &h.Route
	has := m.book.hasAddress(r)
	switch {
	case r.Expires != 0 && h.Age >= r.Expires:
		return "its lifetime ended"
	case (r.Connected() || r.leasedLink()) && r.Expires == 0 && !has && m.addressWent(h):
		return "its address was removed"
	case r.Dst.Addr().Is4() && r.PrefSrc.IsValid() && !m.book.own[r.PrefSrc]:
		return "its source address was removed"
	case r.Dst.Addr().Is4() && !r.Connected() && m.moved(h):
		return "its interface is in another network now"
	}
	return ""
}

// addressWent reports whether the address that a connected route followed from
// has gone. Some follow from no network of the host's (a router advertises an
// IPv6 prefix that is on the link, the host has a single address of it): they go
// with the last address inside them.
func (m *maker) addressWent(h *Held) bool {
	r := &h.Route
	if len(h.Nets) == 0 || r.PrefSrc.IsValid() || slices.Contains(h.Nets, r.Dst) {
		return true
	}
	l := m.book.links[r.Hop.Link]
	return l == nil || !slices.ContainsFunc(l.Addrs, func(a netip.Prefix) bool { return r.Dst.Contains(a.Addr()) })
}

// ways knows which gateways of held routes can be reached on their links, and
// which host routes lead to a gateway that a route goes by.
type ways struct {
	missing map[uint32]*bart.Table[struct{}] // gateways by link that no on-link route holds, so far
	used    map[Hop]bool                     // gateways that held host routes lead to: whether a route uses them
}

// newWays notes what the held routes need.
func newWays(held []Held) ways {
	w := ways{missing: map[uint32]*bart.Table[struct{}]{}, used: map[Hop]bool{}}
	for i := range held {
		r := &held[i].Route
		if r.leasedHost() {
			w.used[Hop{Link: r.Hop.Link, Via: r.Dst.Addr()}] = false
		}
		for hop := range r.Hops() {
			if !needsWay(r, hop) {
				continue
			}
			if w.missing[hop.Link] == nil {
				w.missing[hop.Link] = &bart.Table[struct{}]{}
			}
			w.missing[hop.Link].Insert(netip.PrefixFrom(hop.Via, hop.Via.BitLen()), struct{}{})
		}
	}
	return w
}

// needsWay reports whether the kernel asks for an on-link route to the leg's
// gateway before it adds the route.
func needsWay(r *Route, hop Hop) bool {
	return hop.Via.IsValid() && hop.Link != 0 && !r.AnyGateway && r.NexthopID == 0 &&
		!(hop.Via.Is6() && hop.Via.IsLinkLocalUnicast())
}

// take takes in a route that stands or will: what it leads to, and what it uses.
// Our own do not count: they stand in for what is out.
func (w *ways) take(r *Route) {
	if r.Origin == Own {
		return
	}
	if len(w.used) > 0 {
		for hop := range r.Hops() {
			if _, asked := w.used[hop]; asked {
				w.used[hop] = true
			}
		}
	}
	t := w.missing[r.Hop.Link]
	if t == nil || t.Size() == 0 || !r.OnLink() {
		return
	}
	var led []netip.Prefix
	for p := range t.Subnets(r.Dst) {
		led = append(led, p)
	}
	for _, p := range led {
		t.Delete(p)
	}
}

// lead reports whether one of the route's gateways can be reached, or it needs
// none.
func (w *ways) lead(r *Route, book *addressBook) bool {
	for hop := range r.Hops() {
		if !needsWay(r, hop) {
			return true
		}
		_, missing := w.missing[hop.Link].Get(netip.PrefixFrom(hop.Via, hop.Via.BitLen()))
		if !missing || book.leads(hop) {
			return true
		}
	}
	return false
}
