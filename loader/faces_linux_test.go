package loader

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// manyNames sends datagrams, each by another name.
func manyNames(args []string) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	to := netip.MustParseAddrPort(args[0])
	return repeat(func(i int) error {
		name, _ := unix.BytePtrFromString(fmt.Sprint("name ", i))
		unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(name)), 0, 0, 0)
		return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())})
	})
}

// TestManyNames: a process that has another name for each packet is one sender, known by its latest.
func TestManyNames(t *testing.T) {
	s := newStage(t, Options{})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	cmd := s.host.start("many-names", "10.9.0.2:7")
	cmd.Wait()
	list, err := s.w.Senders()
	if err != nil || len(list) != 1 {
		t.Fatalf("%d senders, %v: %+v", len(list), err, list)
	}
	if got := list[0]; got.PID != cmd.Process.Pid || got.Packets != rounds || got.Comm != fmt.Sprint("name ", rounds-1) {
		t.Errorf("the sender is %+v", got)
	}
}

// TestManySources: packets that come by with ever new source addresses are new senders each, and yet no more of them are
// told than the rate allows; all are counted.
func TestManySources(t *testing.T) {
	const burst, many = 5, 20_000
	s := newStage(t, Options{Burst: burst})
	s.host.sysctl("ipv4/ip_forward", "1")
	s.host.sysctl("ipv4/conf/all/rp_filter", "0")
	s.host.sysctl("ipv4/conf/h0/rp_filter", "0")
	s.host.sysctl("ipv4/conf/h0/send_redirects", "0")
	s.host.route("10.64.0.0/10", "10.9.0.2", "h0")
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	ctx, cancel := context.WithCancel(t.Context())
	var told atomic.Int64
	done := make(chan error)
	go func() { done <- s.w.Read(ctx, func(Sample) { told.Add(1) }) }()
	begin := time.Now()
	counted, captured := s.measure(func() { s.peer.sources(many) })
	windows := int64(time.Since(begin)/(100*time.Millisecond) + 2)
	s.equal(counted, captured, 1)
	if counted.Packets < many/2 {
		t.Fatalf("only %d of %d packets were forwarded", counted.Packets, many)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	cpus := int64(numCPU(t, s.w))
	if n, most := told.Load(), windows*cpus*2*burst; n == 0 || n > most {
		t.Errorf("%d of %d packets were told, want at most %d", n, counted.Packets, most)
	}
	if list, err := s.w.Senders(); err != nil || len(list) > 4096 {
		t.Errorf("%d senders, %v", len(list), err)
	}
}

// numCPU is how many CPUs the program may run on.
func numCPU(t *testing.T, w *Witness) int {
	t.Helper()
	var cpus []leakMeter
	if err := w.objs.Meters.Lookup(uint32(0), &cpus); err != nil {
		t.Fatal(err)
	}
	return len(cpus)
}

// sources sends n packets through the host, each from an address of its own.
func (n *node) sources(count int) {
	n.t.Helper()
	var fd int
	n.try(func() (err error) {
		fd, err = packetSocket("p0")
		return err
	})
	defer unix.Close(fd)
	packet := ipv4(netip.MustParseAddr("10.64.0.1"), unix.IPPROTO_UDP, udp(1, 7, 10))
	for i := range count {
		from := packet[12:16]
		binary.BigEndian.PutUint32(from, 0x0b000000+uint32(i)) // 11.0.0.0/8
		packet[10], packet[11] = 0, 0
		binary.BigEndian.PutUint16(packet[10:], checksum(packet[:20]))
		if _, err := unix.Write(fd, frame(mac("h0"), nil, packet)); err != nil {
			n.t.Fatal(err)
		}
	}
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// TestReturned: an interface that has the tunnel's name, and is what the tunnel was, is the tunnel, whatever its index;
// one whose name only begins so, or that is of another kind, is not.
func TestReturned(t *testing.T) {
	s := newStage(t, Options{})
	for _, tt := range []struct {
		name, kind string
		frames     uint16
		leaked     uint64
	}{
		{"h0", "", 0, 0},
		{"h", "", 0, rounds},
		{"h00", "", 0, rounds},
		{"", "", 0, rounds},
		{"h0", "veth", unix.ARPHRD_ETHER, 0},
		{"h0", "tun", unix.ARPHRD_ETHER, rounds},
		{"h0", "vet", unix.ARPHRD_ETHER, rounds},
		{"h0", "veth0", unix.ARPHRD_ETHER, rounds},
		{"h0", "veth", unix.ARPHRD_NONE, rounds},
		{"h0", "veth", 0, rounds},
		{"h0", "", unix.ARPHRD_ETHER, rounds}, // a network card is of no kind
	} {
		cfg := Config{Prefixes: protect(stagePrefixes...), Tunnels: []int{9999}}
		for i := range cfg.Prefixes {
			p := &cfg.Prefixes[i]
			p.Name, p.Kind, p.Frames, p.Tunnel = tt.name, tt.kind, tt.frames, 9999
		}
		set(t, s.w, cfg)
		before := leaks(t, s.w, s.dev, Reason.Leak)
		s.send(rounds, true)
		if got := minus(leaks(t, s.w, s.dev, Reason.Leak), before); got.Packets != tt.leaked {
			t.Errorf("%q, %q, %d: %d packets counted, want %d", tt.name, tt.kind, tt.frames, got.Packets, tt.leaked)
		}
	}
	long := Config{Prefixes: []Prefix{{Prefix: netip.MustParsePrefix("10.9.0.0/24"), Name: "sixteen-letters-"}}}
	if err := s.w.Set(long); err == nil {
		t.Error("a name that is too long was taken")
	}
}
