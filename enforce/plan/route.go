package plan

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strings"
)

// Type says what a route does with a packet. The names are iproute2's.
type Type uint8

// The route types. Other stands for anything a kernel may add later; it is
// judged like a route that leaves elsewhere.
const (
	Unicast Type = iota
	Local
	Broadcast
	Anycast
	Multicast
	Blackhole
	Unreachable
	Prohibit
	Throw
	Other
)

var typeNames = [...]string{
	"unicast", "local", "broadcast", "anycast", "multicast",
	"blackhole", "unreachable", "prohibit", "throw", "other",
}

// String returns iproute2's word for the type.
func (t Type) String() string {
	if int(t) < len(typeNames) {
		return typeNames[t]
	}
	return typeNames[Other]
}

// Origin says who put a route there, as far as the decision needs to know.
type Origin uint8

// The origins. Own routes carry culvert's mark (on Linux a route protocol
// number); Kernel routes follow from an interface's address; Leased ones were made
// by the network's client, of a DHCP lease or a router advertisement.
const (
	Foreign Origin = iota
	Kernel
	Own
	Leased
)

// Pref is an IPv6 router preference (RFC 4191), ordered as it wins.
type Pref int8

// The preferences, worst first.
const (
	PrefLow    Pref = -1
	PrefMedium Pref = 0
	PrefHigh   Pref = 1
)

// Hop is one leg of a route.
type Hop struct {
	Link uint32     // interface index; 0 when the leg names none
	Via  netip.Addr // gateway; invalid when the destination is on the link
}

// Route is one entry of the main table. It is comparable, but two readings of
// one kernel route may differ in Raw and Expires: compare with [Route.Same]. A journal
// writes it down as JSON, by the hundred thousand: what says nothing is left out.
type Route struct {
	Dst       netip.Prefix // masked; a default route is the family's /0
	Src       netip.Prefix `json:",omitzero"` // IPv6 source prefix; the zero Prefix means any
	PrefSrc   netip.Addr   `json:",omitzero"` // preferred source address, or invalid
	Hop       Hop          // the first leg
	More      string       `json:",omitzero"` // further legs, packed; see Hops and WithHops
	Raw       string       `json:",omitzero"` // the adapter's own bytes for this route, opaque here
	Metric    uint32       `json:",omitzero"` // lower wins
	Expires   uint32       `json:",omitzero"` // seconds of life left, 0 for ever
	NexthopID uint32       `json:",omitzero"` // nexthop object that the route uses, or 0
	TOS       uint8        `json:",omitzero"` // 0 matches every packet
	Type      Type         `json:",omitzero"`
	Protocol  uint8        `json:",omitzero"` // who says it was, in the platform's numbers; for people
	Origin    Origin       `json:",omitzero"`
	Pref      Pref         `json:",omitzero"`
	Dead      bool         `json:",omitzero"` // no leg can carry a packet now; lookups skip it

	// AnyGateway says that the gateway was never asked to be on the link (Linux's
	// onlink flag). Nothing is decided by it but what comes back.
	AnyGateway bool `json:",omitzero"`
}

// hopSize is the packed length of a leg: link, address length, address.
const hopSize = 4 + 1 + 16

// WithHops returns r with the given legs in place of its own.
func (r Route) WithHops(hops ...Hop) Route {
	r.Hop, r.More = Hop{}, ""
	if len(hops) == 0 {
		return r
	}
	r.Hop = hops[0]
	packed := make([]byte, 0, hopSize*len(hops[1:]))
	for _, h := range hops[1:] {
		packed = append(packed, packHop(h)...)
	}
	r.More = string(packed)
	return r
}

func packHop(h Hop) []byte {
	b := make([]byte, hopSize)
	b[0], b[1], b[2], b[3] = byte(h.Link>>24), byte(h.Link>>16), byte(h.Link>>8), byte(h.Link)
	b[4] = byte(copy(b[5:], h.Via.AsSlice()))
	return b
}

func unpackHop(s string) Hop {
	h := Hop{Link: uint32(s[0])<<24 | uint32(s[1])<<16 | uint32(s[2])<<8 | uint32(s[3])}
	if n := int(s[4]); n <= hopSize-5 { // a leg of a damaged journal may say anything
		h.Via, _ = netip.AddrFromSlice([]byte(s[5 : 5+n]))
	}
	return h
}

// Flaw says what is wrong with a route that came from a file and cannot be one,
// or "". One that was parsed from the system's own words has none.
func (r *Route) Flaw() string {
	switch {
	case !r.Dst.IsValid() || r.Dst != r.Dst.Masked():
		return "its destination is no prefix"
	case r.Src.IsValid() && (r.Src != r.Src.Masked() || r.Src.Addr().Is4() != r.Dst.Addr().Is4()):
		return "its source is no prefix"
	case r.Type > Other || r.Origin > Leased:
		return "its type is not known"
	case r.WithHops(slices.Collect(r.Hops())...) != *r:
		return "its legs cannot be told apart"
	}
	return ""
}

// Hops yields every leg, the first one first.
func (r *Route) Hops() iter.Seq[Hop] {
	return func(yield func(Hop) bool) {
		if !yield(r.Hop) {
			return
		}
		for s := r.More; len(s) >= hopSize; s = s[hopSize:] {
			if !yield(unpackHop(s)) {
				return
			}
		}
	}
}

// Multipath reports whether the route has more than one leg.
func (r *Route) Multipath() bool { return r.More != "" }

// Connected reports whether the kernel derived the route from an address.
func (r *Route) Connected() bool {
	return r.Origin == Kernel && r.Type == Unicast && !r.Hop.Via.IsValid()
}

// leasedLink reports whether the network's client derived the route from a lease
// as the kernel derives a connected route from an address: dhcpcd's route to the
// subnet, networkd's to the gateway or to an advertised prefix. Lose one, and a
// laptop that changed networks while connected is left without one.
func (r *Route) leasedLink() bool {
	return r.Origin == Leased && r.OnLink() &&
		(r.Dst.IsSingleIP() || r.Dst.Contains(r.PrefSrc) || r.Dst.Addr().Is6() && !r.PrefSrc.IsValid())
}

// leasedHost reports whether the route is one that a client made to its gateway.
func (r *Route) leasedHost() bool { return r.leasedLink() && r.Dst.IsSingleIP() }

// OnLink reports whether the route reaches its destination with no gateway.
func (r *Route) OnLink() bool {
	return r.Type == Unicast && !r.Hop.Via.IsValid() && !r.Multipath()
}

// gated reports whether any leg goes by a gateway.
func (r *Route) gated() bool {
	for h := range r.Hops() {
		if h.Via.IsValid() {
			return true
		}
	}
	return false
}

// Slot is the place in the table for which routes compete: within a slot the
// order of the list decides.
type Slot struct {
	Dst, Src netip.Prefix
	Metric   uint32
	TOS      uint8
}

// Slot returns the place that r competes for.
func (r *Route) Slot() Slot {
	return Slot{Dst: r.Dst, Src: r.Src, Metric: r.Metric, TOS: r.TOS}
}

// Clone returns r with bytes of its own: a table reader may hand out routes
// whose Raw is a view of a buffer that it uses again.
func (r *Route) Clone() Route {
	c := *r
	c.Raw = strings.Clone(r.Raw)
	return c
}

// Same reports whether a and b are one kernel route, whenever they were read.
func (r Route) Same(o Route) bool { return r.Identity() == o.Identity() }

// Identity returns r without what differs between two readings of one route.
func (r Route) Identity() Route {
	r.Raw, r.Expires, r.Dead, r.AnyGateway = "", 0, false, false
	return r
}

// Replaces reports whether r is a newer copy of o by the same owner: the same
// place, protocol, interface and gateway, with other attributes. By another gateway
// it may be a rival's, which must not take the place of a route that comes back: a
// rogue DHCP server's through the same client looks so. One leg is no copy of several.
func (r *Route) Replaces(o *Route) bool {
	return r.Slot() == o.Slot() && r.Hop == o.Hop && r.More == "" && o.More == "" &&
		r.Protocol == o.Protocol && r.Type == o.Type
}

// Compare orders routes by place and content, so that what is computed from a
// set of routes does not depend on the order they came in.
func Compare(a, b Route) int {
	return cmp.Or(
		ComparePrefix(a.Dst, b.Dst),
		ComparePrefix(a.Src, b.Src),
		cmp.Compare(a.TOS, b.TOS),
		cmp.Compare(a.Metric, b.Metric),
		cmp.Compare(a.Type, b.Type),
		cmp.Compare(a.Protocol, b.Protocol),
		cmp.Compare(a.Hop.Link, b.Hop.Link),
		a.Hop.Via.Compare(b.Hop.Via),
		cmp.Compare(a.NexthopID, b.NexthopID),
		cmp.Compare(a.More, b.More),
		a.PrefSrc.Compare(b.PrefSrc),
	)
}

// ComparePrefix orders prefixes by family, address and length.
func ComparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
