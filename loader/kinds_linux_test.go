package loader

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

var (
	to4 = netip.MustParseAddr("10.9.0.2")
	to6 = netip.MustParseAddr("fd09::2")
)

// frames sends whole frames from the host and returns what was counted and captured of them.
func (s *stage) frames(list ...[]byte) (counted, captured Counter) {
	s.t.Helper()
	return s.measure(func() { s.host.try(func() error { return sendFrames("h0", list) }) })
}

func ext(next byte, size int) []byte {
	b := make([]byte, size)
	b[0], b[1] = next, byte(size/8-1)
	return b
}

func join(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// TestCountFrames covers what sockets above IP cannot be made to send.
func TestCountFrames(t *testing.T) {
	s := newStage(t, Options{})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	v4, v6 := ipv4(to4, 17, udp(5000, 7, 30)), ipv6(to6, 17, 64, udp(5000, 7, 30))
	long := ipv6(to6, 0, 64, join(ext(43, 8), ext(60, 24), ext(51, 16), []byte{135, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, ext(17, 8), udp(5000, 7, 1)))
	to := mac("p0")
	for name, f := range map[string][]byte{
		"tagged 4":           frame(to, []uint16{unix.ETH_P_8021Q}, v4),
		"tagged 6":           frame(to, []uint16{unix.ETH_P_8021Q}, v6),
		"QinQ 4":             frame(to, []uint16{unix.ETH_P_8021AD, unix.ETH_P_8021Q}, v4),
		"QinQ 6":             frame(to, []uint16{unix.ETH_P_8021AD, unix.ETH_P_8021Q}, v6),
		"four tags":          frame(to, []uint16{0x88a8, 0x8100, 0x8100, 0x8100}, v4),
		"eight tags":         frame(to, []uint16{0x88a8, 0x8100, 0x8100, 0x8100, 0x8100, 0x8100, 0x8100, 0x8100}, v6),
		"extension headers":  frame(to, nil, long),
		"options":            frame(to, nil, join([]byte{0x46, 0, 0, 32}, v4[4:20], []byte{1, 1, 1, 0}, udp(1, 2, 0))),
		"header alone 4":     frame(to, nil, ipv4(to4, 59, nil)),
		"header alone 6":     frame(to, nil, ipv6(to6, 59, 64, nil)),
		"unicast to a group": frame(net.HardwareAddr{1, 0, 94, 0, 0, 1}, nil, v4),
	} {
		t.Run(name, func(t *testing.T) {
			s := s.at(t)
			counted, captured := s.frames(f, f, f)
			s.equal(counted, captured, 3)
		})
	}
}

// TestCountAcceleratedTags has another program, before ours, put tags beside the packet.
func TestCountAcceleratedTags(t *testing.T) {
	for _, mode := range []Mode{ModeTCX, ModeClsact} {
		t.Run(mode.String(), func(t *testing.T) { countAcceleratedTags(t, mode) })
	}
}

func countAcceleratedTags(t *testing.T, mode Mode) {
	needMode(t, mode)
	s := newStage(t, Options{modes: []Mode{mode}})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	for tags := 1; tags <= 2; tags++ {
		var objs benchObjects
		if err := loadBenchObjects(&objs, nil); err != nil {
			t.Fatal(err)
		}
		defer objs.Close()
		s.before(mode, objs.BenchTag, uint32(tags))
		counted, captured := s.measure(func() { s.host.start("udp-unconnected", "10.9.0.2:7").Wait() })
		s.equal(counted, captured, rounds)
		if tags > 1 {
			continue // the first is in the packet by now, later than the kernel worked out the segments' headers
		}
		counted, captured = s.measure(func() { s.host.start("udp-gso", "10.9.0.2:7").Wait() })
		s.equal(counted, captured, 11*rounds)
	}
}

// TestCountForwarded routes a third namespace's packets through the host, which has no socket for them.
func TestCountForwarded(t *testing.T) {
	s := newStage(t, Options{})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	guest := newNode(t)
	wire(s.host, guest, "h1", "g0", []string{"10.8.0.1/24", "fd08::1/64"}, []string{"10.8.0.2/24", "fd08::2/64"})
	s.host.sysctl("ipv4/ip_forward", "1")
	s.host.sysctl("ipv6/conf/all/forwarding", "1")
	guest.route("10.9.0.0/24", "10.8.0.1", "g0")
	guest.route("fd09::/64", "fd08::1", "g0")
	ingress := s.host.index("h1")
	for _, to := range []string{"10.9.0.2:7", "[fd09::2]:7"} {
		counted, captured := s.measure(func() { guest.start("udp-unconnected", to).Wait() })
		s.equal(counted, captured, rounds)
	}
	s.serveTCP("10.9.0.2:80")
	s.peer.route("10.8.0.0/24", "10.9.0.1", "p0")
	counted, captured := s.measure(func() { guest.start("tcp-client", "10.9.0.2:80").Wait() })
	s.equal(counted, captured, 4<<20/1460)
	senders, err := s.w.Senders()
	if err != nil {
		t.Fatal(err)
	}
	from := map[netip.Addr]bool{}
	for _, who := range senders {
		if who.Origin != Forwarded || who.Ingress != ingress || who.PID != 0 {
			t.Errorf("forwarded packets put down to %+v", who)
		}
		from[who.Source] = true
	}
	if !from[netip.MustParseAddr("10.8.0.2")] || !from[netip.MustParseAddr("fd08::2")] || len(from) != 2 {
		t.Errorf("sources %v", from)
	}
}

// TestCountKernel looks at what the kernel answers by itself: it must be counted, and put down to nobody.
func TestCountKernel(t *testing.T) {
	s := newStage(t, Options{})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	s.peer.sysctl("ipv4/ping_group_range", "0 65535")
	counted, captured := s.measure(func() {
		s.peer.start("ping-socket", "10.9.0.1:0").Wait() // echo replies
		s.peer.do(func() {
			for range rounds {
				if c, err := net.Dial("tcp", "10.9.0.1:9"); err == nil { // resets
					c.Close()
				}
				if c, err := net.Dial("udp", "[fd09::1]:9"); err == nil { // port unreachable, rate-limited
					c.Write([]byte("x"))
					c.Close()
				}
			}
		})
	})
	s.equal(counted, captured, 2*rounds+1)
	senders, err := s.w.Senders()
	if err != nil {
		t.Fatal(err)
	}
	for _, who := range senders {
		if who.Origin != Unowned || who.PID != 0 {
			t.Errorf("the kernel's packets put down to %+v", who)
		}
	}
}

// TestCountBare does the same on a device without link headers.
func TestCountBare(t *testing.T) {
	host := newNode(t)
	var tun *netlink.Tuntap
	host.try(func() error {
		tun = &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "bare0"}, Mode: netlink.TUNTAP_MODE_TUN, Flags: netlink.TUNTAP_NO_PI, Queues: 1}
		return netlink.LinkAdd(tun)
	})
	fd := tun.Fds[0]
	defer fd.Close()
	host.up("bare0", []string{"10.9.0.1/24", "fd09::1/64"})
	w := host.open(Options{})
	set(t, w, Config{Prefixes: protect(stagePrefixes...)})
	host.start("udp-unconnected", "10.9.0.2:7").Wait()
	host.start("udp-unconnected", "[fd09::2]:7").Wait()
	host.start("udp-large", "10.9.0.2:7").Wait()
	var got Counter
	unix.SetNonblock(int(fd.Fd()), true)
	for packet := make([]byte, 2000); ; {
		n, err := unix.Read(int(fd.Fd()), packet)
		if err != nil {
			break
		}
		if within([]netip.Prefix{netip.MustParsePrefix("10.9.0.0/24"), netip.MustParsePrefix("fd09::/64")}, bareDestination(packet[:n])) {
			got.Packets++
			got.Bytes += uint64(n)
		}
	}
	want := leaks(t, w, host.index("bare0"), Reason.Leak)
	if got.Packets != want.Packets || got.Bytes != want.Bytes || got.Packets != 5*rounds {
		t.Errorf("read %+v, counted %+v", got, want)
	}
}

func bareDestination(packet []byte) netip.Addr {
	if packet[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(packet[16:]))
	}
	return netip.AddrFrom16([16]byte(packet[24:]))
}

// full is a full tunnel with all that a real one leaves alone.
func full(tunnel int) Config {
	cfg := Config{Tunnels: []int{tunnel}, Prefixes: []Prefix{
		{Prefix: netip.MustParsePrefix("0.0.0.0/0"), ID: 1, Tunnel: tunnel},
		{Prefix: netip.MustParsePrefix("::/0"), ID: 2, Tunnel: tunnel},
		{Prefix: netip.MustParsePrefix("10.9.0.2/32"), ID: 3, Class: Server, Proto: 17, Port: 1194},
		{Prefix: netip.MustParsePrefix("10.9.0.2/32"), ID: 3, Class: Server, Proto: 6, Port: 443},
		{Prefix: netip.MustParsePrefix("fd09::2/128"), ID: 4, Class: Server, Proto: 17, Port: 1194},
		{Prefix: netip.MustParsePrefix("10.64.0.0/10"), ID: 5, Class: Excluded},
		{Prefix: netip.MustParsePrefix("10.64.9.0/24"), ID: 6, Tunnel: tunnel},
		{Prefix: netip.MustParsePrefix("192.168.7.1/32"), ID: 7, Class: Gateway, Tunnel: tunnel},
		{Prefix: netip.MustParsePrefix("2001:db8:7::1/128"), ID: 8, Class: Gateway, Tunnel: tunnel},
	}}
	for _, p := range []string{"127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "::1/128", "fe80::/10", "ff00::/8"} {
		cfg.Prefixes = append(cfg.Prefixes, Prefix{Prefix: netip.MustParsePrefix(p), Class: Ignored})
	}
	return cfg
}

// nd makes a message of neighbour discovery with so many bytes of options.
func nd(kind byte, target netip.Addr, options int) []byte {
	b := make([]byte, 24+options)
	b[0] = kind
	a := target.As16()
	copy(b[8:], a[:])
	return b
}

func dhcp(from, to uint16, cookie uint32) []byte {
	b := udp(from, to, 300)
	binary.BigEndian.PutUint32(b[8+236:], cookie)
	return b
}

func fragment4(to netip.Addr, proto byte, offset uint16, more bool, id uint16, payload []byte) []byte {
	b := ipv4(to, proto, payload)
	binary.BigEndian.PutUint16(b[4:], id)
	if more {
		offset |= 0x2000
	}
	binary.BigEndian.PutUint16(b[6:], offset)
	return b
}

func fragment6(to netip.Addr, offset uint16, more uint16, id uint32, payload []byte) []byte {
	h := []byte{17, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(h[2:], offset<<3|more)
	binary.BigEndian.PutUint32(h[4:], id)
	return ipv6(to, 44, 64, join(h, payload))
}

// TestRules sends, one by one, what is a leak and what only looks like one.
func TestRules(t *testing.T) {
	s := newStage(t, Options{})
	set(t, s.w, full(9999))
	lan4, lan6 := netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("2001:db8::7")
	to, all := mac("p0"), net.HardwareAddr{255, 255, 255, 255, 255, 255}
	const cookie = 0x63825363
	near4, near6 := netip.MustParseAddr("10.9.0.77"), netip.MustParseAddr("fd09::77")
	gate4, gate6 := netip.MustParseAddr("192.168.7.1"), netip.MustParseAddr("2001:db8:7::1")
	f6 := func(p netip.Addr, proto, hops byte, payload []byte) []byte {
		return frame(to, nil, ipv6(p, proto, hops, payload))
	}
	probe := func(p netip.Addr, hops byte) []byte { return f6(p, 58, hops, nd(135, p, 8)) }
	f4 := func(p netip.Addr, proto byte, payload []byte) []byte { return frame(to, nil, ipv4(p, proto, payload)) }
	for _, c := range []struct {
		name  string
		frame []byte
		why   Reason // 0: not even counted
	}{
		{"protected", f4(lan4, 17, udp(1, 2, 9)), LeakProtected},
		{"protected 6", frame(to, nil, ipv6(lan6, 17, 64, udp(1, 2, 9))), LeakProtected},
		{"protected within excluded", f4(netip.MustParseAddr("10.64.9.1"), 17, udp(1, 2, 9)), LeakProtected},
		{"excluded", f4(netip.MustParseAddr("10.64.8.1"), 17, udp(1, 2, 9)), 0},
		{"ignored", f4(netip.MustParseAddr("169.254.7.7"), 17, udp(1, 2, 9)), 0},
		{"transport UDP", f4(to4, 17, udp(1, 1194, 9)), 0},
		{"transport UDP 6", frame(to, nil, ipv6(to6, 17, 64, udp(1, 1194, 9))), 0},
		{"transport TCP", f4(to4, 6, join([]byte{0, 1, 1, 187}, make([]byte, 16))), 0},
		{"transport behind options", frame(to, nil, ipv6(to6, 60, 64, join(ext(17, 8), udp(1, 1194, 9)))), 0},
		{"server, other port", f4(to4, 17, udp(1194, 53, 9)), LeakServer},
		{"server, other protocol", f4(to4, 6, join([]byte{0, 1, 4, 170}, make([]byte, 16))), LeakServer},
		{"server, ping", f4(to4, 1, []byte{8, 0, 0, 0, 0, 0, 0, 0}), LeakServer},
		{"server, ESP", f4(to4, 50, make([]byte, 20)), LeakServer},
		{"later fragment without a first", frame(to, nil, fragment4(to4, 17, 100, false, 77, udp(1, 1194, 9))), ExemptFragment},
		{"later fragment of another protocol", frame(to, nil, fragment4(to4, 1, 100, false, 77, udp(1, 1194, 9))), LeakServer},
		{"first fragment to another port", frame(to, nil, fragment4(to4, 17, 0, true, 80, udp(1, 53, 9))), LeakServer},
		{"later fragment to another port", frame(to, nil, fragment4(to4, 17, 100, false, 80, udp(1, 1194, 9))), LeakServer},
		{"first fragment", frame(to, nil, fragment4(to4, 17, 0, true, 78, udp(1, 1194, 9))), 0},
		{"later fragment", frame(to, nil, fragment4(to4, 17, 100, false, 78, udp(9, 9, 9))), 0},
		{"later fragment of another", frame(to, nil, fragment4(to4, 17, 100, false, 79, udp(9, 9, 9))), ExemptFragment},
		{"first fragment 6", frame(to, nil, fragment6(to6, 0, 1, 78, udp(1, 1194, 9))), 0},
		{"later fragment 6", frame(to, nil, fragment6(to6, 100, 0, 78, udp(9, 9, 9))), 0},
		{"later fragment of another 6", frame(to, nil, fragment6(to6, 100, 0, 79, udp(9, 9, 9))), ExemptFragment},
		{"DHCP renewal", f4(near4, 17, dhcp(68, 67, cookie)), ExemptDHCP},
		{"DHCP answer", f4(near4, 17, dhcp(67, 68, cookie)), ExemptDHCP},
		{"DHCP renewal with the server", f4(to4, 17, dhcp(68, 67, cookie)), ExemptDHCP},
		{"DHCP from afar", f4(lan4, 17, dhcp(68, 67, cookie)), LeakProtected},
		{"DHCP without cookie", f4(near4, 17, dhcp(68, 67, 1)), LeakProtected},
		{"DHCP too short", f4(near4, 17, udp(68, 67, 20)), LeakProtected},
		{"DHCP too long", f4(near4, 17, append(dhcp(68, 67, cookie), make([]byte, 800)...)), LeakProtected},
		{"DHCP port alone", f4(near4, 17, dhcp(1068, 67, cookie)), LeakProtected},
		{"DHCP to all", frame(all, nil, ipv4(netip.MustParseAddr("255.255.255.255"), 17, dhcp(68, 67, cookie))), 0},
		{"DHCPv6", f6(near6, 17, 1, udp(546, 547, 9)), ExemptDHCP},
		{"DHCPv6 from afar", f6(lan6, 17, 1, udp(546, 547, 9)), LeakProtected},
		{"DHCPv6 behind a header", f6(near6, 60, 1, join(ext(17, 8), udp(546, 547, 9))), LeakProtected},
		{"neighbour probe", probe(near6, 255), ExemptND},
		{"neighbour probe of the server", probe(to6, 255), ExemptND},
		{"neighbour probe of the gateway", probe(gate6, 255), ExemptND},
		{"neighbour answer", f6(near6, 58, 255, nd(136, hostAddr6, 8)), ExemptND},
		{"neighbour probe that came far", probe(near6, 254), LeakProtected},
		{"neighbour probe off the link", probe(lan6, 255), LeakProtected},
		{"neighbour probe of another", f6(near6, 58, 255, nd(135, lan6, 8)), LeakProtected},
		{"neighbour probe with a load", f6(near6, 58, 255, nd(135, near6, 600)), LeakProtected},
		{"neighbour answer with a load", f6(near6, 58, 255, nd(136, hostAddr6, 600)), LeakProtected},
		{"neighbour probe that is longer than it says", join(probe(near6, 255), make([]byte, 600)), LeakProtected},
		{"neighbour probe cut short", f6(near6, 58, 255, []byte{135, 0, 0, 0, 0, 0, 0, 0}), LeakProtected},
		{"neighbour probe with a code", f6(near6, 58, 255, join([]byte{135, 1}, nd(135, near6, 8)[2:])), LeakProtected},
		{"neighbour probe behind a header", f6(near6, 0, 255, join(ext(58, 8), nd(135, near6, 8))), LeakProtected},
		{"router solicitation", f6(near6, 58, 255, nd(133, near6, 8)), LeakProtected},
		{"router advertisement", f6(near6, 58, 255, nd(134, near6, 8)), LeakProtected},
		{"redirect", f6(near6, 58, 255, nd(137, near6, 24)), LeakProtected},
		{"router solicitation to all", f6(netip.MustParseAddr("ff02::2"), 58, 255, []byte{133, 0, 0, 0, 0, 0, 0, 0}), 0},
		{"IGMP", f4(netip.MustParseAddr("224.0.0.22"), 2, make([]byte, 16)), 0},
		{"gateway, UDP", f4(gate4, 17, udp(1, 2, 9)), LeakGateway},
		{"gateway, DNS", f4(gate4, 17, udp(5353, 53, 40)), LeakGateway},
		{"gateway, TCP", f4(gate4, 6, join([]byte{0, 1, 1, 187}, make([]byte, 16))), LeakGateway},
		{"gateway, ping", f4(gate4, 1, []byte{8, 0, 0, 0, 0, 0, 0, 0}), LeakGateway},
		{"gateway, fragment", frame(to, nil, fragment4(gate4, 17, 100, false, 91, dhcp(68, 67, cookie))), LeakGateway},
		{"gateway, DHCP", f4(gate4, 17, dhcp(68, 67, cookie)), ExemptDHCP},
		{"gateway 6, UDP", f6(gate6, 17, 64, udp(1, 2, 9)), LeakGateway},
		{"gateway 6, echo", f6(gate6, 58, 255, []byte{128, 0, 0, 0, 0, 0, 0, 0}), LeakGateway},
		{"gateway 6, load", f6(gate6, 58, 255, nd(135, gate6, 600)), LeakGateway},
		{"echo 6", f6(lan6, 58, 255, []byte{128, 0, 0, 0, 0, 0, 0, 0}), LeakProtected},
		{"mDNS", frame(net.HardwareAddr{1, 0, 94, 0, 0, 251}, nil, ipv4(netip.MustParseAddr("224.0.0.251"), 17, udp(5353, 5353, 9))), 0},
		{"mDNS 6", frame(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 251}, nil, ipv6(netip.MustParseAddr("ff02::fb"), 17, 255, udp(5353, 5353, 9))), 0},
		{"forged broadcast", frame(all, nil, ipv4(netip.MustParseAddr("10.9.0.255"), 17, udp(1, 2, 9))), LeakProtected},
		{"ARP", join(all, mac("h0"), []byte{8, 6}, make([]byte, 28)), 0},
		{"cut short", join(to, mac("h0"), []byte{8, 0, 0x45, 0, 0}), 0},
	} {
		t.Run(c.name, func(t *testing.T) { s.at(t).rule(c.frame, c.why) })
	}
}

// rule sends one frame and compares the reasons that moved.
func (s *stage) rule(f []byte, why Reason) {
	s.t.Helper()
	before := s.reasons()
	s.host.try(func() error { return sendBy(s.raw, "h0", [][]byte{f}) })
	for r, n := range s.reasons() {
		want := before[r]
		if r == why {
			want++
		}
		if n != want {
			s.t.Errorf("%s: %d packets, want %d", r, n, want)
		}
	}
	if why != 0 && s.reasons()[why] == 0 {
		s.t.Errorf("%s: not counted", why)
	}
}

func (s *stage) reasons() map[Reason]uint64 {
	s.t.Helper()
	list, err := s.w.Counters()
	if err != nil {
		s.t.Fatal(err)
	}
	sums := map[Reason]uint64{}
	for _, c := range list {
		sums[c.Reason] += c.Packets
	}
	return sums
}

// TestBroadcast: a subnet's broadcast is the link's own affair only where the kernel routed it so.
func TestBroadcast(t *testing.T) {
	s := newStage(t, Options{})
	set(t, s.w, full(9999))
	s.host.try(func() error {
		c, err := net.ListenPacket("udp4", "10.9.0.1:0")
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.WriteTo([]byte("who is there"), &net.UDPAddr{IP: net.IPv4(10, 9, 0, 255), Port: 137})
		return err
	})
	if got := s.reasons(); got[ExemptBroadcast] != 1 || got[LeakProtected] != 0 {
		t.Errorf("counted %v", got)
	}
	s.host.neighbour("h0", netip.MustParseAddr("10.9.0.77"), net.HardwareAddr{1, 0, 94, 0, 0, 77}) // a cluster's
	s.host.start("udp-unconnected", "10.9.0.77:7").Wait()
	if got := s.reasons(); got[ExemptBroadcast] != 1 || got[LeakProtected] != rounds {
		t.Errorf("counted %v", got)
	}
}

// TestToMany: what is sent to many is no leak, even if a policy forgets to ignore it.
func TestToMany(t *testing.T) {
	s := newStage(t, Options{})
	set(t, s.w, Config{Prefixes: protect("0.0.0.0/0", "::/0")})
	for _, dst := range []string{"224.0.0.251", "239.1.2.3", "255.255.255.255", "ff02::fb"} {
		s.rule(udpFrame(netip.MustParseAddr(dst)), 0)
	}
	s.rule(udpFrame(netip.MustParseAddr("223.255.255.255")), LeakProtected)
	s.rule(udpFrame(netip.MustParseAddr("fe00::1")), LeakProtected)
}

// TestCountUntrusted sends a buffer whose sender, as a guest would, does not say how many segments it has.
func TestCountUntrusted(t *testing.T) {
	s := newStage(t, Options{})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	tcp := make([]byte, 20, 2020)
	tcp[12], tcp[13] = 5<<4, 0x10
	header := []byte{1, 1, 0, 0, 0, 0, 0, 0, 0, 0} // checksum wanted; TCP over IPv4
	binary.NativeEndian.PutUint16(header[2:], 14+20+20)
	binary.NativeEndian.PutUint16(header[4:], 600) // of a segment
	binary.NativeEndian.PutUint16(header[6:], 14+20)
	binary.NativeEndian.PutUint16(header[8:], 16)
	f := frame(mac("p0"), nil, ipv4(to4, 6, append(tcp, make([]byte, 2000)...)))
	binary.BigEndian.PutUint16(f[24:], ipSum(f[14:34]))
	counted, captured := s.measure(func() {
		s.host.try(func() error { return sendFrames("h0", [][]byte{append(header, f...)}, unix.PACKET_VNET_HDR) })
	})
	s.equal(counted, captured, 4)
}

func ipSum(header []byte) uint16 {
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// TestJoin: a subflow that the kernel opens by itself is its MPTCP connection's.
func TestJoin(t *testing.T) {
	s := newStage(t, Options{})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	s.host.try(func() error { return addrAdd("h0", "10.9.0.11/24") })
	for n, lines := range map[*node][]string{
		s.host: {"limits set subflow 2 add_addr_accepted 2", "endpoint add 10.9.0.11 dev h0 subflow"},
		s.peer: {"limits set subflow 2 add_addr_accepted 2"},
	} {
		for _, line := range lines {
			var out []byte
			var err error
			n.do(func() {
				out, err = exec.Command("ip", append([]string{"mptcp"}, strings.Fields(line)...)...).CombinedOutput()
			})
			if err != nil {
				testenv.Lacking(t, "ip mptcp %s: %v: %s", line, err, out)
			}
		}
	}
	s.serveTCP("10.9.0.2:80")
	for range 3 {
		s.try(traffic{kind: "mptcp-client", to: "10.9.0.2:80", origin: Socket, atMost: 4, min: 1000})
	}
}

// TestQuiet lets an ordinary host live on a link whose every address is protected, and expects no leak.
func TestQuiet(t *testing.T) {
	host, peer := newNode(t), newNode(t)
	w := host.open(Options{})
	set(t, w, full(9999))
	host.try(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "h0", HardwareAddr: mac("h0")}, PeerName: "p0",
			PeerHardwareAddr: mac("p0"), PeerNamespace: netlink.NsFd(int(peer.ns.file.Fd())),
		})
	})
	for n, dev := range map[*node]string{host: "h0", peer: "p0"} { // DAD, RS and MLD on
		n.try(func() error { return netlink.LinkSetUp(byName(dev)) })
	}
	peer.try(func() error { return addrAdd("p0", "10.9.0.2/24", "fd09::2/64") })
	host.try(func() error { return addrAdd("h0", "10.9.0.1/24", "fd09::1/64") })
	peer.try(func() error { // somebody to send to
		c, err := net.ListenPacket("udp", ":1194")
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	})
	peer.try(func() error { // resolving the host makes it answer, and probe back
		c, err := net.Dial("udp", "[fd09::1%p0]:1194")
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = io.WriteString(c, "x")
		return err
	})
	for range 10 { // the tunnel's transport, after resolving the server
		host.start("udp-unconnected", "10.9.0.2:1194").Wait()
		host.start("udp-large", "[fd09::2]:1194").Wait()
	}
	list, err := w.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if c.Reason.Leak() {
			t.Errorf("false count: %+v", c)
		}
	}
}

func addrAdd(dev string, addrs ...string) error {
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(byName(dev), a); err != nil {
			return err
		}
	}
	return nil
}
