package loader

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/culvert-project/culvert/testenv"
)

func (s *stage) iface(name string) Interface {
	s.t.Helper()
	index := s.host.index(name)
	for _, i := range s.status().Interfaces {
		if i.Index == index {
			return i
		}
	}
	return Interface{}
}

// soon waits until ok.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 5000 {
		if ok() {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Error("not in time: ", what)
}

// TestNewInterfaces measures how long an interface is there before its program is.
func TestNewInterfaces(t *testing.T) {
	s := newStage(t, Options{})
	var gaps []time.Duration
	for i := range 20 {
		name := fmt.Sprint("new", i)
		s.host.try(func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "x" + name})
		})
		soon(t, name, func() bool { return s.iface(name).Mode == bestMode() })
		gaps = append(gaps, s.iface(name).Gap)
		s.host.try(func() error { return netlink.LinkDel(byName(name)) })
	}
	soon(t, "forgotten", func() bool { return len(s.status().Interfaces) == 2 })
	slices.Sort(gaps)
	t.Logf("gap from hearing of an interface: median %v, worst %v", gaps[10], gaps[19])
}

// TestEarly watches a device that no program can be attached to: the early hook alone counts it, and drops.
func TestEarly(t *testing.T) {
	s := newStage(t, Options{modes: []Mode{}, PinDir: pinDir(t)})
	if st := s.status(); st.Early != "" {
		testenv.Lacking(t, "%s", st.Early)
	}
	if i := s.iface("h0"); i.Mode != ModeNone || i.Err == nil && len(s.w.opts.modes) > 0 {
		t.Errorf("interface %+v", i)
	}
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	early := func(r Reason) bool { return r == LeakEarly }
	s.cap.settle()
	for _, to := range []string{"10.9.0.2:7", "[fd09::2]:7"} {
		counted, captured := s.measure(func() { s.host.start("udp-unconnected", to).Wait() })
		if counted.Packets != rounds || captured.Packets != rounds || counted.Bytes+14*rounds != captured.Bytes {
			t.Errorf("%s: counted %+v, captured %+v", to, counted, captured)
		}
	}
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...), Action: Drop})
	for _, to := range []string{"10.9.0.2:7", "[fd09::2]:7"} {
		counted, captured := s.measure(func() { s.host.start("udp-unconnected", to).Wait() })
		if counted.Dropped != rounds || captured.Packets != 0 {
			t.Errorf("%s: counted %+v, captured %+v", to, counted, captured)
		}
	}
	s.w.Close() // guarded: the hook outlives us, and is taken over
	s.send(0, false)
	s.w = s.host.open(s.w.opts)
	s.send(0, false)
	if got := leaks(t, s.w, s.dev, early); got.Packets != 6*rounds {
		t.Errorf("counted %+v", got)
	}
}

// TestDropOnNewInterfaces floods a destination that new interface after new interface leads to. Without the early hook
// packets may pass until the interface is watched, and none after that.
func TestDropOnNewInterfaces(t *testing.T) {
	host, peer := newNode(t), newNode(t)
	c := peer.capture("", "10.9.0.0/16")
	w := host.open(Options{})
	set(t, w, Config{Prefixes: protect("10.9.0.0/16"), Action: Drop})
	early, passed := (&stage{t: t, w: w}).status().Early == "", Counter{}
	f := host.flood("10.9.0.2:7")
	const interfaces = 10
	for i := range interfaces {
		name := fmt.Sprint("n", i)
		host.try(func() error {
			veth := &netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "p" + name,
				PeerNamespace: netlink.NsFd(int(peer.ns.file.Fd())),
			}
			if err := netlink.LinkAdd(veth); err != nil {
				return err
			}
			addr, _ := netlink.ParseAddr("10.9.0.1/24")
			return addrThenUp(byName(name), addr)
		})
		peer.try(func() error { return netlink.LinkSetUp(byName("p" + name)) })
		if !early {
			soon(t, name, func() bool { return (&stage{t: t, w: w, host: host}).iface(name).Mode == bestMode() })
			passed = c.settle()
		}
		f.more(1000)
		if got := minus(c.settle(), passed); got.Packets != 0 {
			t.Errorf("%d packets got through on %s", got.Packets, name)
		}
		host.try(func() error { return netlink.LinkDel(byName(name)) })
	}
	sent := f.end()
	list, err := w.Counters()
	if err != nil || len(list) < interfaces {
		t.Errorf("counted on %d interfaces, %v", len(list), err)
	}
	t.Logf("%d sent over %d interfaces, %d through before they were watched", sent, interfaces, passed.Packets)
}

// addrThenUp makes a device ready to send, without resolving neighbours, in the least time.
func addrThenUp(l netlink.Link, addr *netlink.Addr) error {
	if err := netlink.LinkSetARPOff(l); err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, addr); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// TestTunnels: the tunnel that owns a prefix may carry it, another may not, and a sole one needs no program.
func TestTunnels(t *testing.T) {
	s := newStage(t, Options{})
	if m := s.iface("h0").Mode; m != bestMode() {
		t.Errorf("before any policy: %s", m)
	}
	own := []Prefix{{Prefix: netip.MustParsePrefix("10.9.0.0/24"), ID: 1, Tunnel: s.dev}}
	server := func(tunnel int) []Prefix {
		return []Prefix{{Prefix: netip.MustParsePrefix("10.9.0.2/32"), ID: 4, Class: Server, Tunnel: tunnel, Proto: 17, Port: 1194}}
	}
	for _, c := range []struct {
		name    string
		tunnels []int
		prefix  []Prefix
		mode    Mode
		leaks   uint64
	}{
		{"sole tunnel", []int{s.dev}, own, ModeTunnel, 0},
		{"one of two, its own", []int{s.dev, 999}, own, bestMode(), 0},
		{"one of two, the other's", []int{s.dev, 999}, []Prefix{{Prefix: own[0].Prefix, ID: 2, Tunnel: 999}}, bestMode(), rounds},
		{"shared by two", []int{s.dev, 999}, append([]Prefix{{Prefix: own[0].Prefix, ID: 2, Tunnel: 999}}, own...), bestMode(), 0},
		{"to its own server, by itself", []int{s.dev, 999}, server(s.dev), bestMode(), 0},
		{"to the other's server", []int{s.dev, 999}, server(999), bestMode(), rounds},
		{"no tunnel any more", nil, []Prefix{{Prefix: own[0].Prefix, ID: 3}}, bestMode(), rounds},
		{"back", []int{s.dev}, own, ModeTunnel, 0},
	} {
		set(t, s.w, Config{Tunnels: c.tunnels, Prefixes: c.prefix})
		counted, _ := s.measure(func() { s.host.start("udp-unconnected", "10.9.0.2:7").Wait() })
		if mode := s.iface("h0").Mode; mode != c.mode || counted.Packets != c.leaks {
			t.Errorf("%s: %s, %d leaks; want %s, %d", c.name, mode, counted.Packets, c.mode, c.leaks)
		}
	}
}

// TestExempt: an interface that the operator excluded is shown, and never stopped.
func TestExempt(t *testing.T) {
	s := newStage(t, Options{PinDir: pinDir(t)})
	excluded := Config{Prefixes: protect(stagePrefixes...), Action: Drop}
	for i := range excluded.Prefixes {
		excluded.Prefixes[i].Exempt = []int{s.dev}
	}
	set(t, s.w, excluded)
	s.send(rounds, true)
	s.w.Close()
	s.w = s.host.open(s.w.opts)
	s.send(rounds, true)
	if got := s.reasons(); got[ExemptInterface] != 2*rounds || got[LeakProtected] != 0 {
		t.Errorf("counted %v", got)
	}
	other := excluded
	other.Prefixes = slices.Clone(excluded.Prefixes)
	other.Prefixes[0].Exempt = []int{999} // what excludes an interface is one session's, not another's
	set(t, s.w, other)
	s.send(0, false)
	set(t, s.w, excluded)
	s.send(rounds, true)
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...), Action: Drop})
	s.send(0, false)
	set(t, s.w, Config{})
}

// TestUpper: a packet that passes two watched devices is one leak.
func TestUpper(t *testing.T) {
	s := newStage(t, Options{})
	set(t, s.w, Config{Prefixes: protect("10.5.0.0/24")})
	s.host.try(func() error {
		if err := netlink.LinkAdd(&netlink.Macvlan{
			LinkAttrs: netlink.LinkAttrs{Name: "mac0", ParentIndex: s.dev}, Mode: netlink.MACVLAN_MODE_BRIDGE,
		}); err != nil {
			return err
		}
		addr, _ := netlink.ParseAddr("10.5.0.1/24")
		return addrThenUp(byName("mac0"), addr)
	})
	soon(t, "mac0", func() bool { return s.iface("mac0").Mode == bestMode() })
	s.host.neighbour("mac0", netip.MustParseAddr("10.5.0.2"), mac("p0"))
	s.host.start("udp-unconnected", "10.5.0.2:7").Wait()
	list, err := s.w.Counters()
	if err != nil {
		t.Fatal(err)
	}
	sums := map[bool]uint64{}
	for _, c := range list {
		sums[c.Upper] += c.Packets
	}
	if sums[true] != rounds || sums[false] != rounds {
		t.Errorf("counted %+v", list)
	}
}
