package testenv

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
)

// Preference is a router's or a route's (RFC 4191). The zero value is medium.
type Preference int8

// Preferences.
const (
	Low    Preference = -1
	Medium Preference = 0
	High   Preference = 1
)

// bits is the preference's place in a flags octet.
func (p Preference) bits() byte { return byte(p) & 3 << 3 }

// RouterAdvert is a router advertisement to all nodes of a link, sent exactly
// as given: what a hostile router would say. All lifetimes are rounded down
// to seconds.
type RouterAdvert struct {
	NS         *NS
	Device     string
	From       netip.Addr    // a link-local address of the device; the zero Addr is its first one
	Lifetime   time.Duration // as a default router; 0 is "I am none" (and takes it back)
	Preference Preference    // as a default router
	Prefixes   []RAPrefix
	Routes     []RARoute
}

// RAPrefix is a prefix information option: hosts take the prefix to be on the
// link and, if it is a /64, make themselves an address in it.
type RAPrefix struct {
	Prefix   netip.Prefix
	Lifetime time.Duration // valid and preferred; 0 takes it back
	NoOnLink bool          // do not claim that it is on the link
	NoAuto   bool          // not for making addresses
}

// RARoute is a route information option (RFC 4191). Hosts heed it where
// [NS.AcceptRA] was called.
type RARoute struct {
	Prefix     netip.Prefix
	Lifetime   time.Duration // 0 takes it back
	Preference Preference
}

// AcceptRA makes an interface of the namespace heed router advertisements
// in full, route information of any length included, even if it forwards.
func (n *NS) AcceptRA(t TB, device string) {
	t.Helper()
	conf := "net.ipv6.conf." + sysctlName(device) + "."
	for _, s := range [][2]string{
		{"accept_ra", "2"}, {"accept_ra_defrtr", "1"}, {"accept_ra_pinfo", "1"}, {"autoconf", "1"},
		{"accept_ra_rtr_pref", "1"}, {"accept_ra_rt_info_max_plen", "128"},
	} {
		n.Sysctl(t, conf+s[0], s[1])
	}
}

// Send sends the advertisement once.
func (r RouterAdvert) Send(t TB) {
	t.Helper()
	from := r.From
	if !from.IsValid() {
		from = r.NS.LinkLocal(t, r.Device)
	}
	from = from.WithZone(r.Device)
	if err := r.NS.Do(func() error { return r.send(from) }); err != nil {
		t.Fatalf("router advertisement on %s in %s: %v", r.Device, r.NS, err)
	}
}

// send acts in the calling thread's namespace.
func (r RouterAdvert) send(from netip.Addr) error {
	conn, err := icmp.ListenPacket("ip6:ipv6-icmp", from.String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	p := conn.IPv6PacketConn()
	if err := p.SetMulticastHopLimit(255); err != nil { // others are ignored by receivers
		return fmt.Errorf("hop limit: %w", err)
	}
	_, err = p.WriteTo(r.marshal(), &ipv6.ControlMessage{HopLimit: 255},
		&net.IPAddr{IP: net.IPv6linklocalallnodes, Zone: r.Device})
	return err
}

// marshal is the ICMPv6 message (RFC 4861 section 4.2), without its checksum,
// which the kernel adds.
func (r RouterAdvert) marshal() []byte {
	b := make([]byte, 16)
	b[0] = byte(ipv6.ICMPTypeRouterAdvertisement)
	b[4] = 64 // the hop limit that hosts shall use
	b[5] = r.Preference.bits()
	binary.BigEndian.PutUint16(b[6:], uint16(r.Lifetime/time.Second))
	for _, p := range r.Prefixes {
		b = append(b, p.marshal()...)
	}
	for _, route := range r.Routes {
		b = append(b, route.marshal()...)
	}
	return b
}

// marshal is option 3 (RFC 4861 section 4.6.2).
func (p RAPrefix) marshal() []byte {
	b := make([]byte, 32)
	b[0], b[1], b[2] = 3, 4, byte(p.Prefix.Bits())
	if !p.NoOnLink {
		b[3] |= 0x80
	}
	if !p.NoAuto {
		b[3] |= 0x40
	}
	seconds := uint32(p.Lifetime / time.Second)
	binary.BigEndian.PutUint32(b[4:], seconds)
	binary.BigEndian.PutUint32(b[8:], seconds)
	copy(b[16:], p.Prefix.Addr().AsSlice())
	return b
}

// marshal is option 24 (RFC 4191 section 2.3), at its full length.
func (r RARoute) marshal() []byte {
	b := make([]byte, 24)
	b[0], b[1], b[2], b[3] = 24, 3, byte(r.Prefix.Bits()), r.Preference.bits()
	binary.BigEndian.PutUint32(b[4:], uint32(r.Lifetime/time.Second))
	copy(b[8:], r.Prefix.Addr().AsSlice())
	return b
}
