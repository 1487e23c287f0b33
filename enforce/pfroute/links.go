package pfroute

import (
	"net"
	"net/netip"
	"slices"

	"github.com/culvert-project/culvert/enforce/plan"
)

// link is an interface with what plan does not know of it.
type link struct {
	plan.Link
	flags uint32
	peers []netip.Addr // the far ends of point-to-point addresses
}

type links []link

func (ls links) by(index uint32) *link {
	i := slices.IndexFunc(ls, func(l link) bool { return l.Index == index })
	if i < 0 {
		return nil
	}
	return &ls[i]
}

func (ls links) plan() []plan.Link {
	out := make([]plan.Link, len(ls))
	for i := range ls {
		out[i] = ls[i].Link
	}
	return out
}

// parseLinks reads an interface list: of each interface one message, then one
// for each of its addresses.
func parseLinks(b []byte) (ls links, ok bool) {
	for len(b) > 0 {
		m, rest, ok := next(b)
		if !ok || len(m) < offIfIndex+2 {
			return ls, false
		}
		b = rest
		switch m.typ() {
		case rtmIfInfo:
			ok = ls.addLink(m)
		case rtmNewAddr:
			ok = ls.addAddress(m)
		}
		if !ok {
			return ls, false
		}
	}
	return ls, true
}

func (ls *links) addLink(m message) bool {
	if len(m) < ifHeaderLen {
		return false
	}
	addrs, ok := sockaddrs(m[ifHeaderLen:], native.Uint32(m[offIfAddrs:]))
	if !ok {
		return false
	}
	name, hw := addrs[rtaIfp].linkName()
	flags := native.Uint32(m[offIfFlags:])
	*ls = append(*ls, link{flags: flags, Link: plan.Link{
		Index: uint32(native.Uint16(m[offIfIndex:])), Name: name,
		HW: net.HardwareAddr(hw).String(), Up: flags&ifUp != 0,
	}})
	return true
}

func (ls *links) addAddress(m message) bool {
	if len(m) < ifaHeader {
		return false
	}
	addrs, ok := sockaddrs(m[ifaHeader:], native.Uint32(m[offIfAddrs:]))
	l := ls.by(uint32(native.Uint16(m[offIfIndex:])))
	own := addrs[rtaIfa].addr()
	if !ok || l == nil || !own.IsValid() {
		return ok
	}
	bits, ok := addrs[rtaNetmask].maskBits(own.BitLen())
	if addrs[rtaNetmask] == nil {
		bits = own.BitLen()
	}
	if !ok {
		return false
	}
	l.Addrs = append(l.Addrs, netip.PrefixFrom(own, bits))
	if peer := addrs[rtaBrd].addr(); l.flags&ifPoint != 0 && peer.IsValid() {
		l.peers = append(l.peers, peer)
	}
	return true
}

// place settles who put an entry there. It is false for one of the host's own
// addresses, which is delivered locally and is nobody's to take away.
func (ls links) place(e *entry, flags uint32) bool {
	if e.Origin == plan.Own {
		return true
	}
	if e.Dst.IsSingleIP() && ls.has(e.Dst.Addr()) {
		return false
	}
	// The mark of a connected route is what it says and an address that it
	// follows from: configd adds it again with RTF_STATIC.
	derived := flags&(flagCloning|flagGateway|flagHost) == flagCloning && e.Type == plan.Unicast
	if l := ls.by(e.Hop.Link); derived && l != nil && slices.ContainsFunc(l.Addrs, masks(e.Dst)) {
		e.Origin, e.Protocol = plan.Kernel, ProtoKernel
	}
	return true
}

func masks(dst netip.Prefix) func(netip.Prefix) bool {
	return func(a netip.Prefix) bool { return a.Masked() == dst }
}

func (ls links) has(a netip.Addr) bool {
	return slices.ContainsFunc(ls, func(l link) bool { return l.holds(a) })
}

// holds reports whether the address is the interface's own.
func (l *link) holds(a netip.Addr) bool {
	return slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
}

// toward guesses the interface of a gateway: the one with that far end, else the
// one with the longest prefix that it lies in. It is 0 when there is none.
func (ls links) toward(gateway netip.Addr) (index uint32) {
	longest := -1
	for i := range ls {
		if slices.Contains(ls[i].peers, gateway) {
			return ls[i].Index
		}
		for _, a := range ls[i].Addrs {
			if a.Contains(gateway) && a.Bits() > longest {
				index, longest = ls[i].Index, a.Bits()
			}
		}
	}
	return index
}
