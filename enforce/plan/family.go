package plan

import (
	"net/netip"
	"slices"
)

// Family is an address family.
type Family int

// The families, by the names that people give them.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// FamilyOf returns the family of a prefix.
func FamilyOf(p netip.Prefix) Family {
	if p.Addr().Is4() {
		return IPv4
	}
	return IPv6
}

// Other returns the other family.
func (f Family) Other() Family { return IPv4 + IPv6 - f }

// String returns "IPv4" or "IPv6".
func (f Family) String() string {
	if f == IPv4 {
		return "IPv4"
	}
	return "IPv6"
}

// notGlobal4 are the parts of IPv4 that no packet to the Internet is for.
var notGlobal4 = parsePrefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
	"172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3")

// global6 are the parts of IPv6 that packets to the Internet are for: what is
// given out, and what a network translates into IPv4 (RFC 6052).
var global6 = parsePrefixes("64:ff9b::/96", "2000::/3")

func parsePrefixes(words ...string) (out []netip.Prefix) {
	for _, w := range words {
		out = append(out, netip.MustParsePrefix(w))
	}
	return out
}

// GlobalPrefixes returns prefixes that hold the addresses of the Internet, and
// none of the others, in order.
func GlobalPrefixes(f Family) []netip.Prefix {
	if f == IPv6 {
		return slices.Clone(global6)
	}
	return without(netip.PrefixFrom(netip.IPv4Unspecified(), 0), notGlobal4)
}

// without returns what is left of a prefix when others are taken out.
func without(p netip.Prefix, out []netip.Prefix) []netip.Prefix {
	switch {
	case slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) }):
		return nil
	case !slices.ContainsFunc(out, p.Overlaps):
		return []netip.Prefix{p}
	}
	low, high := halves(p)
	return append(without(low, inside(low, out)), without(high, inside(high, out))...)
}

// inside returns the prefixes of a list that overlap p. It keeps the work of without
// to the length of the list, times that of an address.
func inside(p netip.Prefix, list []netip.Prefix) (out []netip.Prefix) {
	for _, o := range list {
		if p.Overlaps(o) {
			out = append(out, o)
		}
	}
	return out
}

// halves divides a prefix that is no single address.
func halves(p netip.Prefix) (low, high netip.Prefix) {
	bytes := p.Addr().AsSlice()
	bytes[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	other, _ := netip.AddrFromSlice(bytes)
	return netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(other, p.Bits()+1)
}

// Full reports whether all of a family's Internet is protected, but for what is
// excluded: lists that spare private networks or the server count as full.
func Full(f Family, protect, exclude []netip.Prefix) bool {
	covered := func(by []netip.Prefix) bool {
		for _, g := range internet(f) {
			if len(without(g, by)) > 0 {
				return false
			}
		}
		return true
	}
	return covered(slices.Concat(protect, exclude)) && !covered(exclude)
}

// internet is GlobalPrefixes less what only a translator serves.
func internet(f Family) []netip.Prefix {
	if f == IPv6 {
		return global6[1:]
	}
	return GlobalPrefixes(f)
}
