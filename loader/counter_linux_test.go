package loader

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// TestGoneInterfaces starts and stops more containers than there is room for counters, in several ways of reading. No packet
// is lost of sight, and nothing is kept of each.
func TestGoneInterfaces(t *testing.T) {
	host := newNode(t)
	w := host.open(Options{Recheck: time.Hour})
	const devices, packets, limit = 20000, 3, 2000
	row := make([]leakCounter, ebpf.MustPossibleCPU())
	row[0], row[len(row)-1] = leakCounter{Packets: 1, Bytes: 60}, leakCounter{Packets: packets - 1, Bytes: 120, Dropped: 1}
	var all, most uint64
	for i := range devices {
		index := 1000 + i
		err := w.do(func() error {
			w.devices[index] = &device{index: index, name: "veth", loopback: true}
			for _, why := range []leakReason{leakReasonREASON_PROTECTED, leakReasonREASON_EXEMPT_ND} {
				key := leakCounterKey{Ifindex: uint32(index), Prefix: 1, Reason: uint32(why)}
				if err := w.objs.Counters.Put(key, row); err != nil {
					return err
				}
			}
			w.vanish(index)
			return nil
		})
		if err != nil {
			t.Fatalf("interface %d: %v", i, err)
		}
		if i > devices/2 && i%1000 != 0 {
			continue // from here on hardly anybody reads
		}
		if i%50 == 0 {
			list, err := w.Counters()
			if err != nil {
				t.Fatal(err)
			}
			most = max(most, uint64(len(list)))
		}
	}
	sums := map[Reason]Counter{}
	for range 2 {
		list, err := w.Counters()
		if err != nil {
			t.Fatal(err)
		}
		clear(sums)
		for _, c := range list {
			sums[c.Reason] = Counter{Packets: sums[c.Reason].Packets + c.Packets, Bytes: sums[c.Reason].Bytes + c.Bytes, Dropped: sums[c.Reason].Dropped + c.Dropped}
		}
		all = uint64(len(list))
	}
	want := Counter{Packets: devices * packets, Bytes: devices * 180, Dropped: devices}
	if sums[LeakProtected] != want || sums[ExemptND] != want {
		t.Errorf("sums %+v, want %+v", sums, want)
	}
	if all != 2 || most > limit {
		t.Errorf("%d counters are left; at most there were %d", all, most)
	}
}

// TestGoneIsReadOnce: an interface's last packets are told as its own, whenever it goes, and then as those of all that are
// gone. One that gets its index begins at nothing.
func TestGoneIsReadOnce(t *testing.T) {
	s := newStage(t, Options{Recheck: time.Hour})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	s.host.start("udp-unconnected", "10.9.0.2:7").Wait()
	index := s.dev
	s.host.try(func() error { return netlink.LinkDel(byName("h0")) })
	soon(t, "it is gone", func() bool { return s.w.past.has(index) })
	of := func(when string, own, gone uint64) {
		t.Helper()
		a := leaks(t, s.w, index, Reason.Leak)
		if a.Packets != own {
			t.Errorf("%s: its own are %d, want %d", when, a.Packets, own)
		}
	}
	of("at first", rounds, 0)
	of("then", 0, rounds)
	if got := leaks(t, s.w, ofGone, Reason.Leak); got.Packets != rounds {
		t.Errorf("of all that are gone: %d", got.Packets)
	}
	s.host.try(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "h0", Index: index, HardwareAddr: mac("h0")}, PeerName: "h1"})
	})
	soon(t, "another has its index", func() bool { return s.iface("h0").Mode == bestMode() })
	send := func() {
		s.host.try(func() error { return sendFrames("h0", repeated(frame(mac("p0"), nil, ipv4(to4, 17, udp(1, 2, 9))))) })
	}
	s.host.up("h0", nil)
	s.host.up("h1", nil)
	send()
	s.host.try(func() error { return netlink.LinkDel(byName("h0")) })
	soon(t, "that is gone too", func() bool { return s.w.past.has(index) })
	s.host.try(func() error { // nobody has read meanwhile
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "h0", Index: index, HardwareAddr: mac("h0")}, PeerName: "h1"})
	})
	soon(t, "a third has its index", func() bool { return s.iface("h0").Mode == bestMode() })
	if got := leaks(t, s.w, ofGone, Reason.Leak); got.Packets != 2*rounds {
		t.Errorf("of both that are gone: %d", got.Packets)
	}
	of("of the third", 0, 2*rounds)
}

// TestGoneWhileNobodyLooked: what leaked by an interface that went between two processes of a guard is kept.
func TestGoneWhileNobodyLooked(t *testing.T) {
	s := newStage(t, Options{PinDir: pinDir(t)})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...), Guard: true})
	s.host.start("udp-unconnected", "10.9.0.2:7").Wait()
	s.w.Close()
	s.host.try(func() error { return netlink.LinkDel(byName("h0")) })
	s.w = s.host.open(s.w.opts)
	if own, gone := leaks(t, s.w, s.dev, Reason.Leak), leaks(t, s.w, ofGone, Reason.Leak); own.Packets != 0 || gone.Packets != rounds {
		t.Errorf("its own %d, of all that are gone %d", own.Packets, gone.Packets)
	}
}

// TestBridgeLosesItsPort: what the last port has counted is not counted again by its bridge, and what the bridge counts
// alone is not taken out when it gets another.
func TestBridgeLosesItsPort(t *testing.T) {
	s := bridged(t)
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	total := func() (n uint64) {
		list, err := s.w.Counters()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			if !c.Upper && c.Reason.Leak() {
				n += c.Packets
			}
		}
		return n
	}
	want := func(when string, n uint64) {
		t.Helper()
		if got := total(); got != n {
			t.Errorf("%s: %d are counted, the capture has %d", when, got, n)
		}
	}
	s.send(rounds, true)
	want("with a port", rounds)
	s.host.try(func() error { return netlink.LinkDel(byName("h0")) })
	soon(t, "it counts for itself", func() bool { return s.w.knows(s.dev).Flags&deviceUpper == 0 })
	want("the container has stopped", rounds)
	s.host.run("ip link add x0 type veth peer name x1") // leads back, and so is no way out
	s.host.run("ip link set x0 master br0")
	soon(t, "it has a port again", func() bool { return s.w.knows(s.dev).Flags&deviceUpper != 0 })
	want("another has started", rounds)
	s.host.try(func() error { return netlink.LinkDel(byName("br0")) })
	soon(t, "the bridge is gone", func() bool { return s.iface("br0").Name == "" })
	want("the network is removed", rounds)
	want("and read again", rounds)
}

// TestSendersWhileTheyGiveWay: the walk over senders loses its place when the one it stands at gives way to another. What it
// found is told all the same.
func TestSendersWhileTheyGiveWay(t *testing.T) {
	host := newNode(t)
	w := host.open(Options{})
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := uint32(1); ; i++ {
			select {
			case <-stop:
				return
			default:
				_ = w.objs.Senders.Put(leakSenderKey{Pid: i, Prefix: 1, Family: 4, Origin: uint8(Socket)}, leakSender{Packets: 1})
			}
		}
	}()
	defer func() { close(stop); <-ended }()
	soon(t, "there are many", func() bool {
		list, err := w.Senders()
		return err == nil && len(list) > 2000
	})
	for range 50 {
		if list, err := w.Senders(); err != nil || len(list) < 100 {
			t.Fatalf("%d senders, %v", len(list), err)
		}
	}
}
