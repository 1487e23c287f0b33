package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// run carries out a command in the namespace.
func (n *node) run(line string) {
	n.t.Helper()
	if err := n.runs(line); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) runs(line string) error {
	words := strings.Fields(line)
	var out []byte
	var err error
	n.do(func() { out, err = exec.Command(words[0], words[1:]...).CombinedOutput() })
	if err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return nil
}

// clsact gives a device the qdisc that filters hang from, unless ours made it already.
func (n *node) clsact(dev string) {
	n.t.Helper()
	if err := n.runs("tc qdisc add dev " + dev + " clsact"); err != nil && !strings.Contains(err.Error(), "xclusivity") {
		n.t.Fatal(err)
	}
}

// offer sends frames one by one, whatever becomes of them.
func offer(dev string, list [][]byte) error {
	for _, f := range list {
		if err := sendFrames(dev, [][]byte{f}); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
	return nil
}

// stopped sends frames by a device, each twenty times, and wants each one counted and dropped.
func (s *stage) stopped(n *node, dev string, list map[string][]byte) {
	s.t.Helper()
	for name, f := range list {
		s.t.Run(name, func(t *testing.T) {
			s := s.at(t)
			counted, captured := s.measure(func() { n.try(func() error { return offer(dev, repeated(f)) }) })
			if counted.Packets != rounds || counted.Dropped != rounds || captured.Packets != 0 {
				t.Errorf("counted %+v of %d, captured %+v", counted, rounds, captured)
			}
		})
	}
}

// TestForwardedIsNotOfTheLink has a guest pose as what a link needs: it is let through for this host alone.
func TestForwardedIsNotOfTheLink(t *testing.T) {
	s := newStage(t, Options{})
	cfg := full(9999)
	cfg.Action = Drop
	set(t, s.w, cfg)
	guest := newNode(t)
	wire(s.host, guest, "h1", "g0", []string{"10.8.0.1/24", "fd08::1/64"}, []string{"10.8.0.2/24", "fd08::2/64"})
	s.host.sysctl("ipv4/ip_forward", "1")
	s.host.sysctl("ipv6/conf/all/forwarding", "1")
	near, server := netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("fd09::2")
	const cookie = 0x63825363
	from := func(f []byte, addr string) []byte {
		a := netip.MustParseAddr(addr)
		if a.Is4() {
			copy(f[14+12:], a.AsSlice())
			copy(f[14+10:], []byte{0, 0})
			sum := ipSum(f[14:34])
			f[14+10], f[14+11] = byte(sum>>8), byte(sum)
		} else {
			copy(f[14+8:], a.AsSlice())
		}
		return f
	}
	s.stopped(guest, "g0", map[string][]byte{
		"DHCP":   from(frame(mac("h1"), nil, ipv4(near, 17, dhcp(68, 67, cookie))), "10.8.0.2"),
		"DHCPv6": from(frame(mac("h1"), nil, ipv6(server, 17, 64, udp(546, 547, 9))), "fd08::2"),
	})
}

// TestExemptIsBounded: what looks like the link's own need is let through as often as a link needs it.
func TestExemptIsBounded(t *testing.T) {
	s := newStage(t, Options{})
	set(t, s.w, full(9999))
	const cookie, frames, dhcpBurst, ndBurst = 0x63825363, 400, 10, 128
	near4, near6 := netip.MustParseAddr("10.9.0.77"), netip.MustParseAddr("fd09::77")
	for _, c := range []struct {
		why   Reason
		f     []byte
		burst uint64
	}{
		{ExemptDHCP, frame(mac("p0"), nil, ipv4(near4, 17, dhcp(68, 67, cookie))), dhcpBurst},
		{ExemptND, frame(mac("p0"), nil, ipv6(near6, 58, 255, nd(135, near6, 8))), ndBurst},
	} {
		t.Run(c.why.String(), func(t *testing.T) {
			s := s.at(t)
			before, began := s.reasons(), time.Now()
			var list [][]byte
			for range frames {
				list = append(list, c.f)
			}
			s.host.try(func() error { return sendFrames("h0", list) })
			windows := uint64(time.Since(began)/time.Second) + 2
			got := s.reasons()
			passed, leaked := got[c.why]-before[c.why], got[LeakProtected]-before[LeakProtected]
			if passed < c.burst || passed > c.burst*windows || passed+leaked != frames {
				t.Errorf("%d exempt, %d leaked of %d; at most %d in a window", passed, leaked, frames, c.burst)
			}
		})
	}
}

// TestBroadcastOfAHost: an address may be given any broadcast address, a protected host's too (DHCP option 28). Only that
// of a network on the link is exempt.
func TestBroadcastOfAHost(t *testing.T) {
	s := newStage(t, Options{})
	cfg := full(9999)
	cfg.Action = Drop
	set(t, s.w, cfg)
	s.host.run("ip address add 172.20.1.5/24 broadcast 172.20.1.77 dev h0")
	s.host.run("ip route add default dev h0")
	shout := func(to string) {
		s.host.try(func() error {
			c, err := net.Dial("udp4", to)
			if err != nil {
				return err
			}
			defer c.Close()
			return repeat(func(int) error { return second(c.Write([]byte("anybody"))) })
		})
	}
	before := s.reasons()
	shout("172.20.1.77:7")
	if got := s.reasons(); got[LeakProtected]-before[LeakProtected] != rounds || got[ExemptBroadcast] != before[ExemptBroadcast] {
		t.Errorf("a host's address as broadcast: %v, before %v", got, before)
	}
	shout("10.9.0.255:7")
	soon(t, "the network's own", func() bool { return s.reasons()[ExemptBroadcast] > before[ExemptBroadcast] })
}

// TestKindChanges: an interface may lose its Ethernet header while a program is attached, as LTE modems do.
func TestKindChanges(t *testing.T) {
	for _, mode := range []Mode{ModeTCX, ModeClsact} {
		t.Run(mode.String(), func(t *testing.T) {
			needMode(t, mode)
			kindChanges(t, mode)
		})
	}
}

func kindChanges(t *testing.T, mode Mode) {
	host := newNode(t)
	w := host.open(Options{modes: []Mode{mode}, Recheck: 50 * time.Millisecond}) // older kernels do not announce it of a tun
	fd := host.tunOfKind("wwan0", unix.ARPHRD_ETHER)
	s := &stage{t: t, host: host, w: w}
	soon(t, "attached", func() bool { return s.iface("wwan0").Mode == mode })
	set(t, w, Config{Prefixes: protect(stagePrefixes...), Action: Drop})
	program := func() (p string) {
		w.do(func() error {
			d := w.devices[byName("wwan0").Attrs().Index]
			for name, prog := range map[string]*ebpf.Program{"ether": w.objs.LeakEther, "bare": w.objs.LeakBare} {
				if info, err := prog.Info(); err == nil {
					if id, ok := info.ID(); ok && id == attachedTo(d) {
						p = name
					}
				}
			}
			return nil
		})
		return p
	}
	soon(t, "it is taken for Ethernet", func() bool { return program() == "ether" })
	host.try(func() error { return unix.IoctlSetInt(fd, unix.TUNSETLINK, unix.ARPHRD_RAWIP) })
	host.up("wwan0", []string{"10.9.0.1/24", "fd09::1/64"})
	soon(t, "the kind is followed", func() bool { return program() == "bare" })
	dev := host.index("wwan0")
	for _, to := range []string{"10.9.0.2:7", "[fd09::2]:7"} {
		before := leaks(t, w, dev, Reason.Leak)
		host.start("udp-unconnected", to).Wait()
		if got := minus(leaks(t, w, dev, Reason.Leak), before); got.Packets != rounds || got.Dropped != rounds {
			t.Errorf("%s: counted %+v of %d", to, got, rounds)
		}
	}
	if n := readable(fd); n != 0 {
		t.Errorf("%d packets left", n)
	}
}

// attachedTo is the program that the kernel has on a device for us.
func attachedTo(d *device) ebpf.ProgramID {
	if h, ok := d.hook.(tcx); ok {
		if info, err := h.link.Info(); err == nil {
			return info.Program
		}
	}
	if h, ok := foundClsact(d.index).(clsact); ok {
		return ebpf.ProgramID(h.filter.Id)
	}
	return 0
}

// tunOfKind makes a tun interface that says it is of another kind.
func (n *node) tunOfKind(name string, kind int) int {
	n.t.Helper()
	var fd int
	n.try(func() (err error) {
		fd, err = unix.Open("/dev/net/tun", os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		return unix.IoctlSetInt(fd, unix.TUNSETLINK, kind)
	})
	n.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// readable counts the packets for the stage's prefixes that a tun has let out.
func readable(fd int) (n int) {
	for packet := make([]byte, 2000); ; {
		size, err := unix.Read(fd, packet)
		if err != nil {
			return n
		}
		if size >= 20 && within([]netip.Prefix{netip.MustParsePrefix("10.9.0.0/24"), netip.MustParsePrefix("fd09::/64")}, bareDestination(packet[:size])) {
			n++
		}
	}
}

// TestFrameOfTheWrongKind sends bare packets by an Ethernet device whose program has not been told: what the kernel says of
// them is looked at.
func TestFrameOfTheWrongKind(t *testing.T) {
	s := newStage(t, Options{})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...), Action: Drop})
	fd := s.host.tunOfKind("tun9", unix.ARPHRD_NONE)
	s.host.up("tun9", []string{"10.70.0.1/24"})
	s.host.clsact("tun9")
	s.host.run("tc filter add dev tun9 ingress u32 match u8 0 0 action mirred egress redirect dev h0")
	for name, p := range map[string][]byte{
		"4": ipv4(to4, 17, udp(1, 2, 40)), "6": ipv6(to6, 17, 64, udp(1, 2, 40)),
	} {
		t.Run(name, func(t *testing.T) {
			before := leaks(t, s.w, s.dev, Reason.Leak)
			for range rounds {
				if _, err := unix.Write(fd, p); err != nil {
					t.Fatal(err)
				}
			}
			soon(t, "counted and dropped", func() bool {
				got := minus(leaks(t, s.w, s.dev, Reason.Leak), before)
				return got.Packets == rounds && got.Dropped == rounds
			})
		})
	}
}

// TestShapedIngress: what is on its way in and is shaped by way of an ifb is no leak, wherever it goes; it is judged where
// it leaves.
func TestShapedIngress(t *testing.T) {
	s := newStage(t, Options{})
	if err := s.host.runs("ip link add ifb0 type ifb"); err != nil {
		testenv.Lacking(t, "%v", err)
	}
	s.host.up("ifb0", nil)
	s.host.clsact("h0")
	s.host.run("tc filter add dev h0 ingress protocol ip u32 match u8 0 0 action mirred egress redirect dev ifb0")
	cfg := full(9999)
	cfg.Action = Drop
	set(t, s.w, cfg)
	soon(t, "watched", func() bool { return s.iface("ifb0").Mode == bestMode() })
	var c net.PacketConn
	s.host.try(func() (err error) {
		c, err = net.ListenPacket("udp4", "10.9.0.1:9000")
		return err
	})
	defer c.Close()
	before := s.reasons()
	s.peer.start("udp-unconnected", "10.9.0.1:9000").Wait()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	for i := range rounds {
		if _, _, err := c.ReadFrom(make([]byte, 100)); err != nil {
			t.Fatalf("%d of %d answers arrived: %v", i, rounds, err)
		}
	}
	if got := s.reasons(); got[LeakProtected] != before[LeakProtected] {
		t.Errorf("false leaks: %v, before %v", got, before)
	}
	// The other way round, out by an ifb and on: stopped before it gets there.
	s.host.run("tc filter add dev h0 egress protocol ip u32 match u8 0 0 action mirred egress redirect dev ifb0")
	counted, captured := s.measure(func() { s.host.start("udp-unconnected", "10.9.0.77:7").Wait() })
	if captured.Packets != 0 || counted.Dropped != rounds && counted.Packets != 0 {
		t.Errorf("out by an ifb: counted %+v, captured %+v", counted, captured)
	}
}

// TestInnerVeth: a veth whose other end is here leads back: what it carries to this host itself is no leak, and what it lets
// on to others is counted where that leaves.
func TestInnerVeth(t *testing.T) {
	s := newStage(t, Options{})
	cfg := full(9999)
	cfg.Action = Drop
	set(t, s.w, cfg)
	s.host.run("ip link add in0 type veth peer name in1")
	s.host.up("in0", nil)
	s.host.up("in1", nil)
	soon(t, "watched", func() bool { return s.iface("in0").Mode == bestMode() && s.iface("in0").Upper })
	own, other := frame(mac("p0"), nil, ipv4(hostAddr4, 17, udp(1, 2, 9))), frame(mac("p0"), nil, ipv4(netip.MustParseAddr("10.9.0.77"), 17, udp(1, 2, 9)))
	dev := s.host.index("in0")
	soon(t, "to itself", func() bool { // its networks are known a moment later
		before := leaks(t, s.w, dev, Reason.Leak)
		s.host.try(func() error { return offer("in0", [][]byte{own}) })
		return minus(leaks(t, s.w, dev, Reason.Leak), before).Packets == 0
	})
	before := leaks(t, s.w, dev, Reason.Leak)
	s.host.try(func() error { return offer("in0", [][]byte{other}) })
	if got := minus(leaks(t, s.w, dev, Reason.Leak), before); got.Dropped != 1 {
		t.Errorf("to another: %+v", got)
	}
	guest := newNode(t)
	s.host.try(func() error { return netlink.LinkSetNsFd(byName("in1"), int(guest.ns.file.Fd())) })
	soon(t, "its other end has gone", func() bool { return !s.iface("in0").Upper })
}

// TestByWayOf sends packets to free addresses that hand them on to protected ones.
func TestByWayOf(t *testing.T) {
	s := newStage(t, Options{})
	cfg := Config{Action: Drop, Prefixes: append(protect(stagePrefixes...), Prefix{Prefix: netip.MustParsePrefix("10.9.0.9/32"), Class: Excluded},
		Prefix{Prefix: netip.MustParsePrefix("10.9.0.8/32"), Class: Server, Proto: unix.IPPROTO_UDP, Port: 2},
		Prefix{Prefix: netip.MustParsePrefix("fd09::8/128"), Class: Server, Proto: AnyProto})}
	set(t, s.w, cfg)
	server4, server6 := netip.MustParseAddr("10.9.0.8"), netip.MustParseAddr("fd09::8")
	hop4, hop6, free := netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9"), netip.MustParseAddr("192.0.2.77")
	option := func(kind byte, list ...netip.Addr) []byte {
		b := []byte{kind, byte(3 + 4*len(list)), 4}
		for _, a := range list {
			b = append(b, a.AsSlice()...)
		}
		return b
	}
	source := func(hop netip.Addr, options []byte) []byte {
		for len(options)%4 != 0 {
			options = append(options, 0)
		}
		b := ipv4(hop, 17, join(options, udp(1, 2, 9)))
		b[0] = 0x45 + byte(len(options)/4)
		return frame(mac("p0"), nil, b)
	}
	routing := func(kind, left byte, list ...netip.Addr) []byte {
		b := []byte{17, byte(2 * len(list)), kind, left, byte(len(list) - 1), 0, 0, 0}
		for _, a := range list {
			b = append(b, a.AsSlice()...)
		}
		return join(b, udp(1, 2, 9))
	}
	by6 := func(hop netip.Addr, next byte, payload []byte) []byte {
		return frame(mac("p0"), nil, ipv6(hop, next, 64, payload))
	}
	v6 := func(next byte, payload []byte) []byte { return by6(hop6, next, payload) }
	noops := make([]byte, 29)
	for i := range noops {
		noops[i] = 1
	}
	for name, f := range map[string][]byte{
		"LSRR":                    source(hop4, option(131, to4)),
		"SSRR, three hops":        source(hop4, option(137, free, free, to4)),
		"LSRR behind others":      source(hop4, join([]byte{1, 7, 3, 0, 1}, option(131, to4))),
		"LSRR behind much":        source(hop4, join(noops, option(131, to4))),
		"LSRR by an excluded hop": source(netip.MustParseAddr("10.9.0.9"), option(131, to4)),
		"segments":                v6(43, routing(4, 1, to6, hop6)),
		"routing 0":               v6(43, routing(0, 2, hop6, to6)),
		"home address":            v6(43, routing(2, 1, to6)),
		"behind hop-by-hop":       v6(0, join(ext(43, 8), routing(4, 1, to6, hop6))),
		"LSRR by the server":      source(server4, option(131, to4)),
		"SSRR by the server":      source(server4, option(137, free, to4)),
		"segments by the server":  by6(server6, 43, routing(4, 1, to6, server6)),
		"hop-by-hop, the server":  by6(server6, 0, join(ext(43, 8), routing(4, 1, to6, server6))),
	} {
		t.Run(name, func(t *testing.T) {
			before := leaks(t, s.w, s.dev, Reason.Leak)
			s.host.try(func() error { return offer("h0", repeated(f)) })
			if got := minus(leaks(t, s.w, s.dev, Reason.Leak), before); got.Packets != rounds || got.Dropped != rounds {
				t.Errorf("counted %+v of %d", got, rounds)
			}
		})
	}
	for name, f := range map[string][]byte{
		"free in the end":    source(hop4, option(131, free)),
		"no route":           source(hop4, []byte{7, 7, 4, 10, 9, 0, 2}),
		"LSRR at its end":    source(hop4, join([]byte{131, 7, 8}, to4.AsSlice())),
		"segments used up":   v6(43, routing(4, 0, to6)),
		"options alone":      v6(60, join(ext(17, 8), udp(1, 2, 9))),
		"of a kind unknown":  v6(43, routing(99, 1, to6)),
		"transport, options": source(server4, noops),
		"transport, no LSRR": source(server4, []byte{7, 7, 4, 10, 9, 0, 2}),
		"transport, ended":   source(server4, join([]byte{131, 7, 8}, to4.AsSlice())),
		"transport 6":        by6(server6, 0, join(ext(17, 8), udp(1, 2, 9))),
	} {
		t.Run(name, func(t *testing.T) { s.at(t).rule(f, 0) })
	}
}

// TestTransports: what is not UDP or TCP can carry a tunnel too.
func TestTransports(t *testing.T) {
	s := newStage(t, Options{})
	any4, esp4, ah4 := netip.MustParseAddr("10.9.0.3"), netip.MustParseAddr("10.9.0.4"), netip.MustParseAddr("10.9.0.5")
	esp6, ah6 := netip.MustParseAddr("fd09::4"), netip.MustParseAddr("fd09::5")
	cfg := Config{Prefixes: protect(stagePrefixes...)}
	gate := func(a netip.Addr, proto uint8, port uint16) {
		cfg.Prefixes = append(cfg.Prefixes, Prefix{Prefix: netip.PrefixFrom(a, a.BitLen()), ID: 9, Class: Server, Proto: proto, Port: port})
	}
	for _, a := range []netip.Addr{esp4, esp6} {
		gate(a, unix.IPPROTO_ESP, 0)
		gate(a, unix.IPPROTO_UDP, 500)
		gate(a, unix.IPPROTO_UDP, 4500)
	}
	for _, a := range []netip.Addr{ah4, ah6} {
		gate(a, unix.IPPROTO_AH, 0)
	}
	gate(any4, AnyProto, 0)
	gate(to4, unix.IPPROTO_GRE, 0)
	gate(to4, unix.IPPROTO_IPIP, 0)
	gate(to4, unix.IPPROTO_IPV6, 0)
	gate(to4, 115, 0)
	gate(to4, unix.IPPROTO_SCTP, 9899)
	set(t, s.w, cfg)
	f4 := func(a netip.Addr, proto byte, payload []byte) []byte {
		return frame(mac("p0"), nil, ipv4(a, proto, payload))
	}
	f6 := func(a netip.Addr, next byte, payload []byte) []byte {
		return frame(mac("p0"), nil, ipv6(a, next, 64, payload))
	}
	load := make([]byte, 40)
	sealed := join([]byte{17, 4, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1}, make([]byte, 12), udp(1, 2, 9))
	piece := func(next byte, offset, more byte, id byte, payload []byte) []byte {
		return join([]byte{next, 0, offset, more, 0, 0, 0, id}, payload)
	}
	for _, c := range []struct {
		name  string
		frame []byte
		why   Reason
	}{
		{"ESP", f4(esp4, 50, load), 0},
		{"ESP 6", f6(esp6, 50, load), 0},
		{"IKE", f4(esp4, 17, udp(500, 500, 40)), 0},
		{"IKE behind NAT", f6(esp6, 17, udp(4500, 4500, 40)), 0},
		{"not IKE", f4(esp4, 17, udp(500, 53, 40)), LeakServer},
		{"not ESP", f4(esp4, 6, load), LeakServer},
		{"AH for ESP", f4(esp4, 51, load), LeakServer},
		{"AH", f4(ah4, 51, sealed), 0},
		{"AH 6", f6(ah6, 51, sealed), 0},
		{"AH 6 behind hop-by-hop", f6(ah6, 0, join(ext(51, 8), sealed)), 0},
		{"AH 6, first fragment", f6(ah6, 44, piece(51, 0, 1, 7, sealed)), 0},
		{"AH 6, later fragment", f6(ah6, 44, piece(51, 1, 0, 7, load)), 0},
		{"no AH 6", f6(ah6, 17, udp(1, 2, 9)), LeakServer},
		{"ESP, first fragment", frame(mac("p0"), nil, fragment4(esp4, 50, 0, true, 5, load)), 0},
		{"ESP, later fragment", frame(mac("p0"), nil, fragment4(esp4, 50, 5, false, 5, load)), 0},
		{"ESP 6, first fragment", f6(esp6, 44, piece(50, 0, 1, 8, load)), 0},
		{"ESP 6, later fragment", f6(esp6, 44, piece(50, 1, 0, 8, load)), 0},
		{"GRE", f4(to4, 47, load), 0},
		{"IPIP", f4(to4, 4, ipv4(any4, 17, udp(1, 2, 9))), 0},
		{"SIT", f4(to4, 41, ipv6(to6, 17, 64, udp(1, 2, 9))), 0},
		{"L2TP", f4(to4, 115, load), 0},
		{"SCTP", f4(to4, 132, udp(9899, 9899, 40)), 0},
		{"SCTP, other port", f4(to4, 132, udp(9899, 80, 40)), LeakServer},
		{"not one of five", f4(to4, 17, udp(9899, 9899, 40)), LeakServer},
		{"any, UDP", f4(any4, 17, udp(1, 2, 9)), 0},
		{"any, ping", f4(any4, 1, load), 0},
		{"any, later fragment", frame(mac("p0"), nil, fragment4(any4, 50, 5, false, 6, load)), 0},
	} {
		t.Run(c.name, func(t *testing.T) { s.at(t).rule(c.frame, c.why) })
	}
}

// TestKernelsOwnDiscovery: a neighbour may have an address of no network of the link. The kernel answers it, and that is no
// leak; a process that does the same is one.
func TestKernelsOwnDiscovery(t *testing.T) {
	s := newStage(t, Options{})
	cfg := full(9999)
	cfg.Action = Drop
	set(t, s.w, cfg)
	far := netip.MustParseAddr("2001:db8:9::7")
	before := s.reasons()
	s.peer.run("ip -6 address add 2001:db8:9::7/128 dev p0 nodad")
	s.peer.run("ip -6 neighbour del fd09::1 dev p0")
	s.peer.try(func() error { // resolving the host makes it answer to the address that asks
		from := &net.UDPAddr{IP: net.ParseIP("2001:db8:9::7")}
		c, err := net.DialUDP("udp", from, &net.UDPAddr{IP: net.ParseIP("fd09::1"), Port: 1194})
		if err != nil {
			return err
		}
		defer c.Close()
		return second(c.Write([]byte("x")))
	})
	soon(t, "the kernel's answer is exempt", func() bool { return s.reasons()[ExemptND] > before[ExemptND] })
	forged := frame(mac("p0"), nil, ipv6(far, 58, 255, nd(136, hostAddr6, 8)))
	s.stopped(s.host, "h0", map[string][]byte{"a process": forged})
}

// TestKernelsOwnErrors: the kernel tells the server that a packet found nobody, and that is part of the transport; a process
// that does the same leaks.
func TestKernelsOwnErrors(t *testing.T) {
	s := newStage(t, Options{})
	cfg := full(9999)
	cfg.Action = Drop
	for _, peer := range []netip.Addr{netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("fd09::2")} {
		cfg.Prefixes = append(cfg.Prefixes, Prefix{Prefix: netip.PrefixFrom(peer, peer.BitLen()), ID: 9, Class: Server, Proto: 17, Port: 1194})
	}
	set(t, s.w, cfg)
	before := s.reasons()
	for _, host := range []string{"10.9.0.1", "fd09::1"} {
		s.peer.try(func() error {
			c, err := net.DialUDP("udp", &net.UDPAddr{Port: 1194}, &net.UDPAddr{IP: net.ParseIP(host), Port: 57251})
			if err != nil {
				return err
			}
			defer c.Close()
			soon(t, "the host's kernel answers to "+host, func() bool {
				_, err := c.Write([]byte("x"))
				return errors.Is(err, unix.ECONNREFUSED)
			})
			return nil
		})
	}
	if n := s.reasons()[LeakServer] - before[LeakServer]; n != 0 {
		t.Errorf("%d answers of the kernel are said to have leaked", n)
	}
	unreachable := []byte{3, 3, 0, 0, 0, 0, 0, 0}
	s.stopped(s.host, "h0", map[string][]byte{
		"a process":    frame(mac("p0"), nil, ipv4(netip.MustParseAddr("10.9.0.2"), 1, unreachable)),
		"a process, 6": frame(mac("p0"), nil, ipv6(netip.MustParseAddr("fd09::2"), 58, 64, []byte{1, 4, 0, 0, 0, 0, 0, 0})),
	})
}

// TestUnseen: what may pass unseen on this very host is told, and no more when it has gone.
func TestUnseen(t *testing.T) {
	s := newStage(t, Options{Recheck: 50 * time.Millisecond})
	if st := s.status(); len(st.Unseen) != 0 {
		t.Errorf("on a clean host: %q", st.Unseen)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	s.host.try(func() error { return netlink.LinkSetXdpFd(byName("h0"), prog.FD()) })
	s.host.run("nft add table netdev other")
	s.host.run("nft add chain netdev other in0 { type filter hook ingress device h0 priority 0 ; }")
	want := []string{"XDP program", "on h0 may send"}
	if err := s.host.runs("nft add chain netdev other out0 { type filter hook egress device h0 priority 0 ; }"); err != nil {
		t.Logf("no egress hook here (Linux 5.16): %v", err)
	} else {
		want = append(want, `nft chain "out0" of table netdev "other" is before the witness on the way out of h0`)
	}
	soon(t, "both are told", func() bool {
		all := strings.Join(s.status().Unseen, "\n")
		return !slices.ContainsFunc(want, func(part string) bool { return !strings.Contains(all, part) })
	})
	if all := strings.Join(s.status().Unseen, "\n"); strings.Contains(all, "in0") {
		t.Errorf("a chain on the way in: %s", all)
	}
	s.host.run("nft delete table netdev other")
	s.host.try(func() error { return netlink.LinkSetXdpFd(byName("h0"), -1) })
	soon(t, "they have gone", func() bool { return len(s.status().Unseen) == 0 })
}

// TestUnseenRoutes: a route that wraps its packets is told, of whatever table, until it has gone.
func TestUnseenRoutes(t *testing.T) {
	s := newStage(t, Options{Recheck: 20 * time.Millisecond})
	s.host.run("ip -6 route add 2001:db8:5::/48 dev h0")
	if err := s.host.runs("ip -6 route add 2001:db8:6::/48 table 77 encap seg6 mode encap segs fd00::1 dev h0"); err != nil {
		testenv.Lacking(t, "%v", err)
	}
	soon(t, "it is told", func() bool {
		list := s.status().Unseen
		return len(list) == 1 && strings.Contains(list[0], "route 2001:db8:6::/48 (seg6)")
	})
	s.host.run("ip -6 route del 2001:db8:6::/48 table 77")
	soon(t, "it has gone", func() bool { return len(s.status().Unseen) == 0 })
}

// TestRedirectedOut: what another program leads from the way in of one interface to the way out of another leaves the host.
func TestRedirectedOut(t *testing.T) {
	s := newStage(t, Options{})
	cfg := full(9999)
	cfg.Action = Drop
	set(t, s.w, cfg)
	guest := newNode(t)
	wire(s.host, guest, "h1", "g0", []string{"10.8.0.1/24"}, []string{"10.8.0.2/24"})
	s.host.clsact("h1")
	s.host.run("tc filter add dev h1 ingress protocol ip u32 match u8 0 0 action mirred egress redirect dev h0")
	s.stopped(guest, "g0", map[string][]byte{
		"to a neighbour": frame(mac("h1"), nil, ipv4(netip.MustParseAddr("10.9.0.77"), 17, udp(1, 2, 9))),
		"to this host":   frame(mac("h1"), nil, ipv4(hostAddr4, 17, udp(1, 2, 9))),
	})
}
