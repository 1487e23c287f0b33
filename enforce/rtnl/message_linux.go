package rtnl

import (
	"encoding/binary"
	"net/netip"

	"github.com/culvert-project/culvert/enforce/plan"
	"golang.org/x/sys/unix"
)

// Sizes and attribute numbers of include/uapi/linux/{netlink,rtnetlink}.h that
// x/sys does not name.
const (
	hdrLen   = unix.NLMSG_HDRLEN
	rtmLen   = unix.SizeofRtMsg
	attrLen  = unix.SizeofRtAttr
	hopLen   = unix.SizeofRtNexthop
	rtaNHID  = 30     // RTA_NH_ID
	typeMask = 0x3fff // NLA_TYPE_MASK: less NLA_F_NESTED and NLA_F_NET_BYTEORDER

	// Flags of a leg that may be written; the others are the kernel's to say.
	hopFlags = unix.RTNH_F_ONLINK | unix.RTNH_F_PERVASIVE

	// Ticks of RTA_CACHEINFO's times (USER_HZ is 100 on every architecture Go
	// supports: include/asm-generic/param.h).
	userHZ = 100
)

var native = binary.NativeEndian

// attr is one netlink attribute: all its bytes, and its value.
type attr struct {
	typ   uint16
	bytes []byte
	value []byte
}

// nextAttr splits the first attribute off b; ok is false at the end and when
// what is left is no whole attribute.
func nextAttr(b []byte) (a attr, rest []byte, ok bool) {
	if len(b) < attrLen {
		return attr{}, nil, false
	}
	n := int(native.Uint16(b))
	if n < attrLen || n > len(b) {
		return attr{}, nil, false
	}
	a = attr{typ: native.Uint16(b[2:]) & typeMask, bytes: b[:n], value: b[attrLen:n]}
	return a, b[min(align(n), len(b)):], true
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

func appendAttr(b []byte, typ uint16, value []byte) []byte {
	b = native.AppendUint16(b, uint16(attrLen+len(value)))
	b = native.AppendUint16(b, typ)
	b = append(b, value...)
	return pad(b)
}

func appendUint32(b []byte, typ uint16, v uint32) []byte {
	b = native.AppendUint16(b, attrLen+4)
	b = native.AppendUint16(b, typ)
	return native.AppendUint32(b, v)
}

func pad(b []byte) []byte {
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// u32 reads a 32-bit attribute; a short one reads as 0.
func u32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return native.Uint32(b)
}

func addr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// nexthops resolves nexthop objects: the legs behind an id.
type nexthops map[uint32][]plan.Hop

// parseStatus says what a route message turned out to be.
type parseStatus uint8

const (
	parsed     parseStatus = iota
	otherTable             // not in main, or not a table entry at all
	unresolved             // names a nexthop object that is not known
	malformed
)

var routeTypes = [...]plan.Type{
	unix.RTN_UNSPEC: plan.Other, unix.RTN_UNICAST: plan.Unicast, unix.RTN_LOCAL: plan.Local,
	unix.RTN_BROADCAST: plan.Broadcast, unix.RTN_ANYCAST: plan.Anycast, unix.RTN_MULTICAST: plan.Multicast,
	unix.RTN_BLACKHOLE: plan.Blackhole, unix.RTN_UNREACHABLE: plan.Unreachable,
	unix.RTN_PROHIBIT: plan.Prohibit, unix.RTN_THROW: plan.Throw,
}

// parseRoute reads a route message (struct rtmsg and attributes, no header)
// into r, Raw excepted. It does not allocate unless the route has many legs.
func parseRoute(msg []byte, r *plan.Route, nh nexthops) parseStatus {
	if len(msg) < rtmLen {
		return malformed
	}
	family, flags := msg[0], native.Uint32(msg[8:])
	if flags&unix.RTM_F_CLONED != 0 || (family != unix.AF_INET && family != unix.AF_INET6) {
		return otherTable
	}
	*r = plan.Route{TOS: msg[3], Protocol: msg[5], Type: plan.Other,
		Dead: flags&unix.RTNH_F_DEAD != 0, AnyGateway: flags&unix.RTNH_F_ONLINK != 0}
	if int(msg[7]) < len(routeTypes) {
		r.Type = routeTypes[msg[7]]
	}
	r.Origin = origin(r.Protocol)
	a := routeAttrs{table: uint32(msg[4])}
	if !a.read(msg[rtmLen:], r) {
		return malformed
	}
	if a.table != unix.RT_TABLE_MAIN {
		return otherTable
	}
	if !prefixes(msg, a, r) || !a.legs(r) {
		return malformed
	}
	if r.Origin == plan.Own && !a.ourShape(msg, r) {
		r.Origin = plan.Foreign
	}
	relabel(r)
	return resolve(r, a, nh)
}

// ourShape reports whether a route with our protocol number can be one that
// appendOwn built: others may use the number too, and theirs must not be taken
// away as ours. IPv6 may have made it a leg of another's route.
func (ra *routeAttrs) ourShape(msg []byte, r *plan.Route) bool {
	if ra.strange || r.TOS != 0 || r.Src.IsValid() || r.NexthopID != 0 || r.Expires != 0 {
		return false
	}
	if r.Type != plan.Unicast {
		return r.Type == plan.Unreachable && msg[6] == unix.RT_SCOPE_UNIVERSE // what the other family is rejected by
	}
	if len(ra.multipath) > 0 {
		return r.Dst.Addr().Is6()
	}
	scope := uint8(unix.RT_SCOPE_UNIVERSE)
	if r.Dst.Addr().Is4() && !r.Hop.Via.IsValid() {
		scope = unix.RT_SCOPE_LINK
	}
	return msg[6] == scope && r.AnyGateway == r.Hop.Via.IsValid()
}

func origin(protocol uint8) plan.Origin {
	switch protocol {
	case OwnProtocol:
		return plan.Own
	case unix.RTPROT_KERNEL:
		return plan.Kernel
	case unix.RTPROT_DHCP, unix.RTPROT_RA:
		return plan.Leased
	}
	return plan.Foreign
}

// routeAttrs are the attributes of a route message that need the whole message
// to be understood.
type routeAttrs struct {
	table     uint32
	dst, src  []byte
	multipath []byte
	strange   bool // it has an attribute that no route of ours has
}

func (ra *routeAttrs) read(b []byte, r *plan.Route) bool {
	for len(b) > 0 {
		a, rest, ok := nextAttr(b)
		if !ok {
			return false
		}
		b = rest
		ra.take(a, r)
	}
	return true
}

func (ra *routeAttrs) take(a attr, r *plan.Route) {
	switch a.typ {
	case unix.RTA_TABLE:
		ra.table = u32(a.value)
	case unix.RTA_DST:
		ra.dst = a.value
	case unix.RTA_SRC:
		ra.src = a.value
	case unix.RTA_OIF:
		r.Hop.Link = u32(a.value)
	case unix.RTA_GATEWAY:
		r.Hop.Via = addr(a.value)
	case unix.RTA_VIA:
		r.Hop.Via = via(a.value)
	case unix.RTA_PRIORITY:
		r.Metric = u32(a.value)
	case unix.RTA_PREFSRC:
		r.PrefSrc = addr(a.value)
	case unix.RTA_MULTIPATH:
		ra.multipath = a.value
	case unix.RTA_CACHEINFO:
		var over bool
		r.Expires, over = expires(a.value)
		r.Dead = r.Dead || over
	case unix.RTA_PREF:
		r.Pref = pref(a.value)
	case rtaNHID:
		r.NexthopID = u32(a.value)
	default:
		ra.strange = true
	}
}

// via reads struct rtvia: a family and an address of it.
func via(b []byte) netip.Addr {
	if len(b) < 2 {
		return netip.Addr{}
	}
	return addr(b[2:])
}

// expires reads the lifetime out of struct rta_cacheinfo, rounded up so that
// what still lives does not read as living for ever. The kernel shows a route
// whose life is over, until it clears it away: lookups pass over it.
func expires(b []byte) (seconds uint32, over bool) {
	const offset = 8 // rta_clntref, rta_lastuse
	if len(b) < offset+4 {
		return 0, false
	}
	ticks := int32(native.Uint32(b[offset:]))
	switch {
	case ticks == 0:
		return 0, false
	case ticks < 0:
		return 1, true
	}
	return uint32((int64(ticks) + userHZ - 1) / userHZ), false
}

// pref reads RTA_PREF (ICMPV6_ROUTER_PREF_*: 0 medium, 1 high, 3 low).
func pref(b []byte) plan.Pref {
	if len(b) < 1 {
		return plan.PrefMedium
	}
	switch b[0] {
	case 1:
		return plan.PrefHigh
	case 3:
		return plan.PrefLow
	}
	return plan.PrefMedium
}

func prefixes(msg []byte, a routeAttrs, r *plan.Route) bool {
	var ok bool
	if r.Dst, ok = prefix(msg[0], msg[1], a.dst); !ok {
		return false
	}
	if msg[2] == 0 {
		return true
	}
	r.Src, ok = prefix(msg[0], msg[2], a.src)
	return ok
}

// prefix makes a masked prefix; no address at all is the family's default.
func prefix(family, bits uint8, b []byte) (netip.Prefix, bool) {
	a := addr(b)
	if len(b) == 0 {
		a = netip.IPv4Unspecified()
		if family == unix.AF_INET6 {
			a = netip.IPv6Unspecified()
		}
	}
	if !a.IsValid() || a.Is4() != (family == unix.AF_INET) || int(bits) > a.BitLen() {
		return netip.Prefix{}, false
	}
	p, err := a.Prefix(int(bits))
	return p, err == nil
}

// legs reads RTA_MULTIPATH, when there is one, over the single leg.
func (ra *routeAttrs) legs(r *plan.Route) bool {
	if len(ra.multipath) == 0 {
		return true
	}
	var hops []plan.Hop
	alive, anyGateway := false, false
	ok := eachLeg(ra.multipath, func(leg []byte) {
		h, flags := parseLeg(leg)
		hops = append(hops, h)
		alive = alive || flags&unix.RTNH_F_DEAD == 0
		anyGateway = anyGateway || flags&unix.RTNH_F_ONLINK != 0
	})
	*r = r.WithHops(hops...)
	r.Dead, r.AnyGateway = !alive, anyGateway
	return ok && len(hops) > 0 // a list of no legs says nothing of where it leads
}

// eachLeg calls f with the bytes of each struct rtnexthop and its attributes.
func eachLeg(b []byte, f func(leg []byte)) bool {
	for len(b) >= hopLen {
		n := int(native.Uint16(b))
		if n < hopLen || n > len(b) {
			return false
		}
		f(b[:n])
		b = b[min(align(n), len(b)):]
	}
	return true
}

func parseLeg(leg []byte) (h plan.Hop, flags uint8) {
	h.Link, flags = native.Uint32(leg[4:]), leg[2]
	for b := leg[hopLen:]; len(b) > 0; {
		a, rest, ok := nextAttr(b)
		if !ok {
			break
		}
		switch b = rest; a.typ {
		case unix.RTA_GATEWAY:
			h.Via = addr(a.value)
		case unix.RTA_VIA:
			h.Via = via(a.value)
		}
	}
	return h, flags
}

// resolve fills in the legs of a route that names a nexthop object alone, as
// dumps do under net.ipv4.nexthop_compat_mode=0.
func resolve(r *plan.Route, a routeAttrs, nh nexthops) parseStatus {
	if r.NexthopID == 0 || r.Hop.Link != 0 || len(a.multipath) > 0 {
		return parsed
	}
	hops, ok := nh[r.NexthopID]
	if !ok {
		return unresolved
	}
	if len(hops) > 0 {
		*r = r.WithHops(hops...)
	}
	return parsed
}
