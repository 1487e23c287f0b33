package winroute

import (
	"net"
	"net/netip"
	"slices"
	"unicode/utf16"

	"github.com/culvert-project/culvert/enforce/plan"
)

// link is an interface with what plan does not know of it.
type link struct {
	plan.Link
	luid uint64
}

// scene is what routes are read against: interfaces, their addresses and their
// metrics.
type scene struct {
	links   []link
	metrics map[metricKey]uint32
}

// metricKey: an interface has a metric for each family.
type metricKey struct {
	luid uint64
	six  bool
}

func (s *scene) by(index uint32) *link {
	i := slices.IndexFunc(s.links, func(l link) bool { return l.Index == index })
	if i < 0 {
		return nil
	}
	return &s.links[i]
}

func (s *scene) metric(luid uint64, dst netip.Prefix) uint32 {
	return s.metrics[metricKey{luid, dst.Addr().Is6()}]
}

func (s *scene) plan() []plan.Link {
	out := make([]plan.Link, len(s.links))
	for i := range s.links {
		out[i] = s.links[i].Link
	}
	return out
}

// kept reports whether a host route is one that Windows keeps for an interface:
// to one of the host's addresses, or to a subnet's broadcast address.
func (s *scene) kept(k key) bool {
	a := k.dst.Addr()
	return slices.ContainsFunc(s.links, func(l link) bool {
		return slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool {
			return p.Addr() == a || (!k.via.IsValid() && broadcast(p) == a)
		})
	})
}

// broadcast returns the IPv4 subnet's last address, or an invalid one where a
// subnet has none.
func broadcast(p netip.Prefix) netip.Addr {
	if !p.Addr().Is4() || p.Bits() > 30 {
		return netip.Addr{}
	}
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// parseScene reads MIB_IF_ROW2, MIB_UNICASTIPADDRESS_ROW and
// MIB_IPINTERFACE_ROW rows.
func parseScene(links, addresses, interfaces []byte) (s scene, ok bool) {
	ls, ok1 := rows[[]byte](links, linkLen)
	as, ok2 := rows[[]byte](addresses, addressLen)
	is, ok3 := rows[[]byte](interfaces, ifaceLen)
	for _, b := range ls {
		s.links = append(s.links, parseLink(b))
	}
	for _, b := range as {
		a, bits := sockaddr(b[offAddress:]), int(b[offOnLink])
		if l := s.by(native.Uint32(b[offAddressIndex:])); l != nil && a.IsValid() && bits <= a.BitLen() {
			l.Addrs = append(l.Addrs, netip.PrefixFrom(a, bits))
		}
	}
	s.metrics = make(map[metricKey]uint32, len(is))
	for _, b := range is {
		at := metricKey{native.Uint64(b[offIfaceLUID:]), native.Uint16(b[offIfaceFamily:]) == afInet6}
		s.metrics[at] = native.Uint32(b[offIfaceMetric:])
	}
	return s, ok1 && ok2 && ok3
}

func parseLink(b []byte) link {
	alias := make([]uint16, 0, aliasLen)
	for i := range aliasLen {
		c := native.Uint16(b[offAlias+2*i:])
		if c == 0 {
			break
		}
		alias = append(alias, c)
	}
	n := min(native.Uint32(b[offHWLen:]), hwMax)
	return link{luid: native.Uint64(b[offLinkLUID:]), Link: plan.Link{
		Index: native.Uint32(b[offLinkIndex:]),
		Name:  string(utf16.Decode(alias)),
		HW:    net.HardwareAddr(b[offHW : offHW+n]).String(),
		Up:    native.Uint32(b[offOper:]) == operUp,
	}}
}
