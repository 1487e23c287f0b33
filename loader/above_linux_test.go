package loader

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridged is a host whose wire to a peer is the port of a bridge, as a container's is.
func bridged(t *testing.T) *stage {
	t.Helper()
	s := &stage{t: t, host: newNode(t), peer: newNode(t)}
	s.host.run("ip link add br0 type bridge")
	wire(s.host, s.peer, "h0", "p0", nil, []string{"10.9.0.2/24"})
	s.host.run("ip link set h0 master br0")
	s.host.up("br0", []string{"10.9.0.1/24"})
	s.host.neighbour("br0", netip.MustParseAddr("10.9.0.2"), mac("p0"))
	s.cap = s.peer.capture("p0", stagePrefixes...)
	s.dev = s.host.index("br0")
	s.serveUDP(":7") // lest the peer answers that nobody is there
	s.w = s.host.open(Options{})
	return s
}

// exemptAll is a policy that drops all but what leaves by an interface.
func exemptAll(index ...int) Config {
	cfg := Config{Prefixes: protect(stagePrefixes...), Action: Drop}
	for i := range cfg.Prefixes {
		cfg.Prefixes[i].Exempt = index
	}
	return cfg
}

// TestExemptBridge: a bridge that is excluded is so with its ports, which carry out what it sends, and hand on frames among
// each other. A port that leaves it is excluded no longer.
func TestExemptBridge(t *testing.T) {
	s := bridged(t)
	guest := newNode(t)
	wire(s.host, guest, "h1", "g0", nil, []string{"10.9.0.3/24"})
	s.host.run("ip link set h1 master br0")
	guest.neighbour("g0", netip.MustParseAddr("10.9.0.2"), mac("p0"))
	set(t, s.w, exemptAll())
	s.send(0, false)
	set(t, s.w, exemptAll(s.dev))
	before := s.reasons()
	s.send(rounds, true)
	there := s.cap.settle()
	soon(t, "the new port is known", func() bool { return s.iface("h1").Mode == bestMode() })
	guest.start("udp-unconnected", "10.9.0.2:7").Wait()
	if got := minus(s.cap.settle(), there); got.Packets != rounds {
		t.Errorf("from port to port %d of %d arrived", got.Packets, rounds)
	}
	after := s.reasons()
	if after[LeakProtected] != before[LeakProtected] || after[ExemptInterface] != 3*rounds {
		t.Errorf("counted %v, before %v", after, before)
	}
	s.host.run("ip link set h0 nomaster")
	s.host.run("ip link set br0 down")
	s.host.up("h0", []string{"10.9.0.1/24"})
	s.host.neighbour("h0", netip.MustParseAddr("10.9.0.2"), mac("p0"))
	soon(t, "the port is on its own", func() bool { return s.w.knows(s.host.index("h0")).Master == 0 })
	s.send(0, false)
}

// knows is what the programs know of a device.
func (w *Witness) knows(index int) (d leakDevice) {
	_ = w.objs.Devices.Lookup(uint32(index), &d)
	return d
}

// TestTunnelIsBridge: what the tunnel sends leaves by its ports.
func TestTunnelIsBridge(t *testing.T) {
	s := bridged(t)
	cfg := Config{Prefixes: protect(stagePrefixes...), Action: Drop, Tunnels: []int{s.dev}}
	for i := range cfg.Prefixes {
		cfg.Prefixes[i].Tunnel = s.dev
	}
	set(t, s.w, cfg)
	s.send(rounds, true)
	if got := s.reasons(); len(got) != 0 {
		t.Errorf("counted %v", got)
	}
	cfg.Prefixes[0].Tunnel = 999
	set(t, s.w, cfg)
	s.send(0, false)
}

// TestExemptMacvlan: the device below lets through what comes from the excluded one, and nothing of its own.
func TestExemptMacvlan(t *testing.T) {
	s := newStage(t, Options{})
	s.host.try(func() error {
		return netlink.LinkAdd(&netlink.Macvlan{
			LinkAttrs: netlink.LinkAttrs{Name: "mac0", ParentIndex: s.dev}, Mode: netlink.MACVLAN_MODE_BRIDGE,
		})
	})
	s.host.up("mac0", []string{"10.64.0.1/24"})
	s.host.neighbour("mac0", netip.MustParseAddr("10.64.0.2"), mac("p0"))
	soon(t, "mac0", func() bool { return s.iface("mac0").Mode == bestMode() })
	above := s.host.index("mac0")
	set(t, s.w, exemptAll(above))
	there := s.cap.settle()
	s.host.start("udp-unconnected", "10.64.0.2:7").Wait()
	if got := minus(s.cap.settle(), there); got.Packets != rounds {
		t.Errorf("by the excluded one %d of %d arrived", got.Packets, rounds)
	}
	if got := s.reasons(); got[ExemptInterface] != 2*rounds || got[LeakProtected] != 0 {
		t.Errorf("counted %v", got)
	}
	s.send(0, false) // by the one below
	if got := leaks(t, s.w, s.dev, Reason.Leak); got.Packets != rounds || got.Dropped != rounds {
		t.Errorf("by the one below: counted %+v", got)
	}
	s.host.run("ip route add 10.64.9.0/24 dev h0 src 10.64.0.1") // with the other's address, and nothing else of it
	s.host.neighbour("h0", netip.MustParseAddr("10.64.9.2"), mac("p0"))
	counted, captured := s.measure(func() { s.host.start("udp-unconnected", "10.64.9.2:7").Wait() })
	if counted.Dropped != rounds || captured.Packets != 0 {
		t.Errorf("with its address: counted %+v, captured %+v", counted, captured)
	}
}

// TestExemptVlan: of an excluded VLAN's frames the device below lets through those with its tag. The VLAN's device is made
// up: there need not be any for the tag to say where a frame goes.
func TestExemptVlan(t *testing.T) {
	s := newStage(t, Options{Recheck: time.Hour})
	const five, inner = 9005, 9056
	s.w.do(func() error {
		for _, d := range []*device{
			{index: five, name: "h0.5", kind: "vlan", lower: s.dev, vlan: vlan{unix.ETH_P_8021Q, 5}, loopback: true},
			{index: inner, name: "h0.5.6", kind: "vlan", lower: five, vlan: vlan{unix.ETH_P_8021Q, 6}, loopback: true},
		} {
			s.w.devices[d.index] = d
			s.w.cover(d, time.Now())
		}
		s.w.relate()
		return nil
	})
	packet := ipv4(netip.MustParseAddr("10.9.0.2"), 17, udp(1, 2, 9))
	tags := func(list ...uint16) []byte {
		var tags []uint16
		for _, id := range list {
			tags = append(tags, unix.ETH_P_8021Q, id)
		}
		return tagged(mac("p0"), packet, tags...)
	}
	for _, c := range []struct {
		name  string
		index int
		frame []byte
		pass  bool
	}{
		{"its tag", five, tags(5), true},
		{"its tag with a priority", five, tags(5 | 0xe000), true},
		{"another's tag", five, tags(6), false},
		{"no tag", five, tags(), false},
		{"its tag within another's", five, tags(6, 5), false},
		{"another's within its", five, tags(5, 6), true},
		{"of another protocol", five, tagged(mac("p0"), packet, unix.ETH_P_8021AD, 5), false},
		{"inner: both tags", inner, tags(5, 6), true},
		{"inner: the outer tag alone", inner, tags(5), false},
		{"inner: the inner tag alone", inner, tags(6), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := s.at(t)
			set(t, s.w, exemptAll(c.index))
			counted, captured := s.measure(func() { s.host.try(func() error { return offer("h0", repeated(c.frame)) }) })
			if pass := captured.Packets == rounds && counted.Packets == 0; pass != c.pass || !pass && (captured.Packets != 0 || counted.Dropped != rounds) {
				t.Errorf("counted %+v, captured %+v", counted, captured)
			}
		})
	}
}

// tagged is a frame with tags: protocol and identifier, the outermost first.
func tagged(to []byte, packet []byte, tags ...uint16) []byte {
	f := frame(to, nil, packet)
	var head []byte
	for i := 0; i+1 < len(tags); i += 2 {
		head = append(head, byte(tags[i]>>8), byte(tags[i]), byte(tags[i+1]>>8), byte(tags[i+1]))
	}
	return join(f[:12], head, f[12:])
}

// TestUpperKinds: a device counts by the one below it only where that one can read its frames, and is watched.
func TestUpperKinds(t *testing.T) {
	seen := clsact{}
	port := func(kind string, master int) *device {
		return &device{index: 2, kind: kind, master: master, hook: seen}
	}
	for _, c := range []struct {
		name string
		d    *device // number 1
		rest []*device
		want bool
	}{
		{"VLAN", &device{kind: "vlan", lower: 2}, []*device{port("", 0)}, true},
		{"macvlan", &device{kind: "macvlan", lower: 2}, []*device{port("", 0)}, true},
		{"VLAN on what is not watched", &device{kind: "vlan", lower: 2}, []*device{{index: 2}}, false},
		{"VLAN of another namespace's", &device{kind: "vlan"}, []*device{port("", 0)}, false},
		{"bridge", &device{kind: "bridge"}, []*device{port("veth", 1)}, true},
		{"bridge without a port", &device{kind: "bridge"}, []*device{port("veth", 0)}, false},
		{"bridge, its port not watched", &device{kind: "bridge"}, []*device{{index: 2, master: 1}}, false},
		{"bond", &device{kind: "bond"}, []*device{port("", 1)}, true},
		{"team", &device{kind: "team"}, []*device{port("", 1)}, true},
		{"VRF", &device{kind: "vrf"}, []*device{port("", 1)}, true},
		{"switch port", &device{kind: "dsa", conduit: 2}, []*device{port("", 0)}, false},
		{"HSR", &device{kind: "hsr", lower: 0}, []*device{port("", 1)}, false},
		{"batman-adv", &device{kind: "batadv"}, []*device{port("", 1)}, false},
		{"Open vSwitch, internal", &device{kind: "openvswitch", master: 3}, []*device{{index: 3, kind: "openvswitch"}, port("", 3)}, true},
		{"Open vSwitch, nothing leaves", &device{kind: "openvswitch", master: 3}, []*device{{index: 3, kind: "openvswitch"}, port("openvswitch", 3)}, false},
		{"port of Open vSwitch", &device{kind: "", master: 3}, []*device{{index: 3, kind: "openvswitch"}, port("openvswitch", 3)}, false},
	} {
		c.d.index = 1
		w := &Witness{devices: map[int]*device{1: c.d}}
		for _, d := range c.rest {
			w.devices[d.index] = d
		}
		if got := w.upper(c.d); got != c.want {
			t.Errorf("%s: upper is %t", c.name, got)
		}
	}
}

// TestFramesOfOtherKinds: what switches and meshes write before the IP header is not read below them, and so is counted
// where it is sent.
func TestFramesOfOtherKinds(t *testing.T) {
	host := newNode(t)
	w := host.open(Options{})
	set(t, w, Config{Prefixes: protect("10.9.0.0/16")})
	plain := frame(mac("p0"), nil, ipv4(netip.MustParseAddr("10.9.0.2"), 17, udp(1, 2, 9)))
	if _, counted := judged(t, w, plain); !counted {
		t.Fatal("a plain frame is not counted")
	}
	for name, head := range map[string][]byte{
		"DSA":        {0x40, 0x08, 0x00, 0x00},
		"EDSA":       {0xda, 0xda, 0, 0, 0x40, 0x08, 0, 0},
		"Mediatek":   {0x00, 0x01, 0x00, 0x00},
		"Broadcom":   {0x88, 0x74, 0x20, 0, 0, 1},
		"HSR":        {0x89, 0x2f, 0, 60, 0, 1},
		"batman-adv": {0x43, 0x05, 64, 15, 50, 0, 2, 0, 0, 0, 0, 3},
	} {
		if key, counted := judged(t, w, join(plain[:12], head, plain[12:])); counted {
			t.Errorf("%s: counted as %+v: its upper device must count no longer", name, key)
		}
	}
}

// TestConduit: what a switch's port sends is judged there, and not once more at the conduit, where the kernel knows still
// what it is though the frame does not say it.
func TestConduit(t *testing.T) {
	s := newStage(t, Options{Recheck: time.Hour})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	plain := frame(mac("p0"), nil, ipv4(netip.MustParseAddr("10.9.0.2"), 17, udp(1, 2, 9)))
	counted := func() uint64 {
		before := leaks(t, s.w, s.dev, Reason.Leak)
		s.host.try(func() error {
			return sendAs("h0", unix.ETH_P_IP, join(plain[:12], []byte{0x40, 0x08, 0, 0}, plain[12:]))
		})
		s.host.try(func() error { return offer("h0", [][]byte{plain}) })
		return minus(leaks(t, s.w, s.dev, Reason.Leak), before).Packets
	}
	port := &device{index: 9001, name: "lan1", kind: kindSwitchPort, conduit: s.dev, loopback: true}
	s.w.do(func() error {
		s.w.devices[port.index] = port
		s.w.relate()
		return nil
	})
	if n := counted(); n != 1 {
		t.Errorf("%d counted of the one that is the conduit's own", n)
	}
}

// sendAs sends a frame and says what is in it.
func sendAs(dev string, proto uint16, frame []byte) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Protocol: htons(proto), Ifindex: byName(dev).Attrs().Index})
}
