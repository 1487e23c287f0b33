package pfroute

import (
	"math/bits"
	"net/netip"
)

// Address families, bsd/sys/socket.h.
const (
	afInet  = 2
	afLink  = 18
	afInet6 = 30
)

// Lengths of struct sockaddr_in, sockaddr_in6 (bsd/netinet) and sockaddr_dl
// (bsd/net/if_dl.h), and where their addresses are.
const (
	len4    = 16
	len6    = 28
	lenLink = 20
	off4    = 4
	off6    = 8
)

// sockaddr is one struct sockaddr, sa_len bytes of it.
type sockaddr []byte

// roundup is ROUNDUP32 of bsd/net/rtsock.c: the room that an address takes.
func roundup(n int) int {
	if n == 0 {
		return 4
	}
	return (n + 3) &^ 3
}

// sockaddrs splits the addresses that follow a message's header. It is false
// when one does not fit.
func sockaddrs(b []byte, present uint32) (out [rtaMax]sockaddr, ok bool) {
	for i := range out {
		if present&(1<<i) == 0 {
			continue
		}
		if len(b) == 0 {
			return out, false
		}
		n := int(b[0])
		if n > len(b) {
			return out, false
		}
		out[i] = sockaddr(b[:n:n])
		b = b[min(roundup(n), len(b)):] // the last one need not be filled up
	}
	return out, true
}

func (s sockaddr) family() int {
	if len(s) < 2 {
		return 0
	}
	return int(s[1])
}

// addr returns the address, without a scope. The kernel keeps a link-local
// address's scope in its second group (KAME), which is taken out.
func (s sockaddr) addr() (a netip.Addr) {
	switch s.family() {
	case afInet:
		if len(s) >= off4+4 {
			return netip.AddrFrom4([4]byte(s[off4 : off4+4]))
		}
	case afInet6:
		if len(s) >= off6+16 {
			b := [16]byte(s[off6 : off6+16])
			if a = netip.AddrFrom16(b); scopedAddr(a) {
				b[2], b[3] = 0, 0
				a = netip.AddrFrom16(b)
			}
		}
	}
	return a
}

func scopedAddr(a netip.Addr) bool {
	return a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() || a.IsInterfaceLocalMulticast()
}

// link returns the interface index of a link-level address, or 0.
func (s sockaddr) link() uint32 {
	if s.family() != afLink || len(s) < 4 {
		return 0
	}
	return uint32(native.Uint16(s[2:]))
}

// linkName returns the interface name of a link-level address, and its
// hardware address.
func (s sockaddr) linkName() (name string, hw []byte) {
	if s.family() != afLink || len(s) < 8 {
		return "", nil
	}
	n, a := int(s[5]), int(s[6])
	if 8+n+a > len(s) {
		return "", nil
	}
	return string(s[8 : 8+n]), s[8+n : 8+n+a]
}

// maskBits returns the length of a netmask for addresses of the given length.
// The kernel cuts a mask after its last byte that is not zero, and its family
// byte means nothing. It is false when the mask is no prefix.
func (s sockaddr) maskBits(addrBits int) (int, bool) {
	off := off4
	if addrBits == 128 {
		off = off6
	}
	n, ended := 0, false
	for i := off; i < off+addrBits/8; i++ {
		var b byte
		if i < len(s) {
			b = s[i]
		}
		ones := bits.LeadingZeros8(^b)
		if b<<ones != 0 || (ended && b != 0) {
			return 0, false
		}
		n += ones
		ended = ended || ones < 8
	}
	return n, true
}

// appendAddr appends an address.
func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		b = append(b, len4, afInet, 0, 0)
		b = append(b, a.AsSlice()...)
		return append(b, make([]byte, len4-off4-4)...)
	}
	b = append(b, len6, afInet6, 0, 0, 0, 0, 0, 0)
	b = append(b, a.AsSlice()...)
	return append(b, 0, 0, 0, 0)
}

// appendMask appends a prefix's netmask, whole: the kernel takes one of length
// 0 for the end of the addresses (rt_xaddrs in bsd/net/rtsock.c).
func appendMask(b []byte, p netip.Prefix) []byte {
	mask := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(mask)
	return appendAddr(b, a)
}

// appendLink appends an interface's link-level address, by its index.
func appendLink(b []byte, index uint32) []byte {
	b = append(b, lenLink, afLink)
	b = native.AppendUint16(b, uint16(index))
	return append(b, make([]byte, lenLink-4)...)
}

// appendPadded appends an address as it was read.
func appendPadded(b []byte, s sockaddr) []byte {
	b = append(b, s...)
	return append(b, make([]byte, roundup(len(s))-len(s))...)
}
