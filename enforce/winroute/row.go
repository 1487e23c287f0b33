package winroute

import (
	"net/netip"
	"slices"

	"github.com/culvert-project/culvert/enforce/plan"
)

// row is one MIB_IPFORWARD_ROW2, as the system wrote it.
type row []byte

// rows splits what follows a table's head. It is false when bytes are left.
func rows[T ~[]byte](b []byte, size int) ([]T, bool) {
	out := make([]T, 0, len(b)/size)
	for ; len(b) >= size; b = b[size:] {
		out = append(out, T(b[:size:size]))
	}
	return out, len(b) == 0
}

func (r row) luid() uint64     { return native.Uint64(r[offLUID:]) }
func (r row) index() uint32    { return native.Uint32(r[offIndex:]) }
func (r row) metric() uint32   { return native.Uint32(r[offMetric:]) }
func (r row) protocol() uint32 { return native.Uint32(r[offProtocol:]) }
func (r row) valid() uint32    { return native.Uint32(r[offValid:]) }

// key is what Windows knows a route by.
type key struct {
	dst  netip.Prefix
	via  netip.Addr // zero where the destination is on the link
	luid uint64
}

// key reads what names the route. It is false when that is no destination.
func (r row) key() (k key, ok bool) {
	dst, bits := sockaddr(r[offDst:]), int(r[offDstLen])
	if !dst.IsValid() || bits > dst.BitLen() {
		return k, false
	}
	k = key{dst: netip.PrefixFrom(dst, bits).Masked(), luid: r.luid()}
	if via := sockaddr(r[offNextHop:]); via.IsValid() && !via.IsUnspecified() {
		k.via = via
	}
	return k, true
}

// sockaddr reads a SOCKADDR_INET, its scope left out.
func sockaddr(b []byte) (a netip.Addr) {
	switch native.Uint16(b) {
	case afInet:
		return netip.AddrFrom4([4]byte(b[offAddr4 : offAddr4+4]))
	case afInet6:
		return netip.AddrFrom16([16]byte(b[offAddr6 : offAddr6+16]))
	}
	return a
}

// putSockaddr writes an address. The scope of a link-local one is its interface.
func putSockaddr(b []byte, a netip.Addr, link uint32) {
	if a.Is4() {
		native.PutUint16(b, afInet)
		copy(b[offAddr4:], a.AsSlice())
		return
	}
	native.PutUint16(b, afInet6)
	copy(b[offAddr6:], a.AsSlice())
	if a.IsLinkLocalUnicast() {
		native.PutUint32(b[offScope:], link)
	}
}

// parse makes a plan.Route of the row, with the surroundings' help. Its Raw is
// left to the caller. It is false for what is no entry of the table that is
// enforced: a row that Windows keeps for the host's own addresses.
func (s *scene) parse(r row) (p plan.Route, ok bool) {
	k, ok := r.key()
	if !ok {
		return p, false
	}
	l := s.by(r.index())
	if k.dst.IsSingleIP() && s.kept(k) {
		return p, false
	}
	p = plan.Route{Dst: k.dst, Hop: plan.Hop{Link: r.index(), Via: k.via}, Protocol: protocolByte(r.protocol())}
	p.Metric = sum(r.metric(), s.metric(r.luid(), k.dst))
	if v := r.valid(); v != infinite {
		p.Expires = v // 0 where only the key is known
	}
	switch onLink := !k.via.IsValid(); {
	case r.protocol() == OwnProtocol:
		p.Origin = plan.Own
	case r.protocol() == protoLocal && onLink && l != nil && slices.ContainsFunc(l.Addrs, masks(k.dst)):
		p.Origin = plan.Kernel
	}
	return p, true
}

func masks(dst netip.Prefix) func(netip.Prefix) bool {
	return func(a netip.Prefix) bool { return a.Masked() == dst }
}

// sum adds a route's metric to its interface's; a metric of -1 is "not used".
func sum(a, b uint32) uint32 {
	if a+b < a {
		return infinite
	}
	return a + b
}

func protocolByte(p uint32) uint8 {
	switch {
	case p < ntProtocols:
		return uint8(p)
	case p >= protoNT && p < protoNT+256-ntProtocols:
		return uint8(p - protoNT + ntProtocols)
	}
	return 0
}

// build makes the row of a route that is put: as it was seen when it has Raw,
// else one of ours.
func (s *scene) build(p *plan.Route, l *link) (r row, ok bool) {
	if p.Raw != "" {
		return again(p.Raw)
	}
	r = make(row, rowLen)
	native.PutUint64(r[offLUID:], l.luid)
	native.PutUint32(r[offIndex:], p.Hop.Link)
	putSockaddr(r[offDst:], p.Dst.Addr(), 0)
	r[offDstLen] = byte(p.Dst.Bits())
	via := p.Hop.Via
	if !via.IsValid() {
		via = netip.IPv4Unspecified()
		if p.Dst.Addr().Is6() {
			via = netip.IPv6Unspecified()
		}
	}
	putSockaddr(r[offNextHop:], via, p.Hop.Link)
	native.PutUint32(r[offValid:], infinite)
	native.PutUint32(r[offPreferred:], infinite)
	if base := s.metric(l.luid, p.Dst); p.Metric > base {
		native.PutUint32(r[offMetric:], p.Metric-base)
	}
	native.PutUint32(r[offProtocol:], OwnProtocol)
	return r, true
}

// again makes the row that gives a route back: all of it but its age and
// origin, which are the system's to say.
func again(raw string) (row, bool) {
	if len(raw) != rowLen {
		return nil, false
	}
	r := row(raw)
	clear(r[offAge:])
	_, ok := r.key()
	return r, ok
}

// live sets what is left of the lifetime.
func (r row) live(seconds uint32) {
	native.PutUint32(r[offValid:], seconds)
	native.PutUint32(r[offPreferred:], min(seconds, native.Uint32(r[offPreferred:])))
}

// same reports whether a and b, of one key, are one route in what counts.
func (r row) same(o row) bool { return r.metric() == o.metric() && r.protocol() == o.protocol() }
