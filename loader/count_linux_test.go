package loader

import (
	"io"
	"net"
	"net/netip"
	"os/exec"
	"testing"
)

// stage is a host that is watched and a peer that captures, on one wire.
type stage struct {
	t    *testing.T
	host *node
	peer *node
	w    *Witness
	cap  *capture
	dev  int // the host's end
	raw  int // a packet socket of the host: what belongs together is sent by one
}

var stagePrefixes = []string{"10.9.0.0/24", "10.64.0.0/10", "fd09::/64"}

func newStage(t *testing.T, opts Options) *stage {
	t.Helper()
	s := &stage{t: t, host: newNode(t), peer: newNode(t)}
	wire(s.host, s.peer, "h0", "p0", []string{"10.9.0.1/24", "fd09::1/64"}, []string{"10.9.0.2/24", "fd09::2/64"})
	s.host.neighbour("h0", netip.MustParseAddr("10.77.0.1"), mac("p0")) // no route leads there
	s.host.sysctl("ipv4/ping_group_range", "0 65535")
	s.host.segment("h0")
	s.cap = s.peer.capture("p0", stagePrefixes...)
	s.dev = s.host.index("h0")
	s.raw = s.host.packetSocket()
	s.w = s.host.open(opts)
	return s
}

// protect makes a policy of the stage's prefixes, numbered from 1.
func protect(prefixes ...string) (list []Prefix) {
	for i, p := range prefixes {
		list = append(list, Prefix{Prefix: netip.MustParsePrefix(p), ID: uint32(i + 1)})
	}
	return list
}

// measure runs f and returns what was counted and what was captured meanwhile.
func (s *stage) measure(f func()) (counted, captured Counter) {
	s.t.Helper()
	s.cap.settle()
	before, there := leaks(s.t, s.w, s.dev, Reason.Leak), s.cap.total()
	f()
	for range 30 { // on a busy machine the wire is slower than the counter
		captured = minus(s.cap.settle(), there)
		counted = minus(leaks(s.t, s.w, s.dev, Reason.Leak), before)
		if captured.Packets+counted.Dropped >= counted.Packets {
			break
		}
	}
	return counted, captured
}

// traffic is one kind: who sends, to where, and how the sender should be known.
type traffic struct {
	kind   string
	to     string
	origin Origin
	uid    int
	atMost int // packets that may be unowned
	min    uint64
}

func (s *stage) serveTCP(addr string) {
	s.t.Helper()
	var l net.Listener
	s.peer.try(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
}

func (s *stage) serveUDP(addr string) {
	s.t.Helper()
	var c net.PacketConn
	s.peer.try(func() (err error) {
		c, err = net.ListenPacket("udp", addr)
		return err
	})
	s.t.Cleanup(func() { c.Close() })
}

// TestCountEqualsCapture holds the counter against a capture at the other end, packet by packet and byte by byte, and
// the sender against the process that sent.
func TestCountEqualsCapture(t *testing.T) {
	for _, mode := range []Mode{ModeTCX, ModeClsact} {
		t.Run(mode.String(), func(t *testing.T) { countEqualsCapture(t, mode) })
	}
}

func countEqualsCapture(t *testing.T, mode Mode) {
	needMode(t, mode)
	s := newStage(t, Options{modes: []Mode{mode}})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	s.serveTCP("10.9.0.2:80")
	s.serveTCP("[fd09::2]:80")
	s.serveUDP(":7")
	for _, tr := range []traffic{
		{kind: "udp-connected", to: "10.9.0.2:7", origin: Socket, min: rounds},
		{kind: "udp-connected", to: "[fd09::2]:7", origin: Socket, min: rounds},
		{kind: "udp-unconnected", to: "10.9.0.2:7", origin: Socket, min: rounds},
		{kind: "udp-unconnected", to: "[fd09::2]:7", origin: Socket, min: rounds},
		{kind: "udp-large", to: "10.9.0.2:7", origin: Socket, min: 3 * rounds},
		{kind: "udp-large", to: "[fd09::2]:7", origin: Socket, min: 3 * rounds},
		{kind: "udp-gso", to: "10.9.0.2:7", origin: Socket, min: 11 * rounds},
		{kind: "udp-gso", to: "[fd09::2]:7", origin: Socket, min: 11 * rounds},
		{kind: "udp-options", to: "[fd09::2]:7", origin: Socket, min: rounds},
		{kind: "tcp-client", to: "10.9.0.2:80", origin: Socket, atMost: 1, min: 4 << 20 / 1460},
		{kind: "tcp-client", to: "[fd09::2]:80", origin: Socket, atMost: 1, min: 4 << 20 / 1460},
		{kind: "mptcp-client", to: "10.9.0.2:80", origin: Socket, atMost: 1, min: 4 << 20 / 1460},
		{kind: "ping-socket", to: "10.9.0.2:0", origin: Socket, min: rounds},
		{kind: "raw-socket", to: "10.9.0.2:0", origin: Socket, min: rounds},
		{kind: "packet-socket", to: "10.9.0.2:7", origin: Packet, min: rounds},
		{kind: "bound-device", to: "10.77.0.1:7", origin: Socket, uid: 65534, min: rounds},
		{kind: "pktinfo", to: "10.77.0.1:7", origin: Socket, min: rounds},
		{kind: "pktinfo", to: "[fd09::2]:7", origin: Socket, min: rounds},
	} {
		t.Run(tr.kind+"/"+tr.to, func(t *testing.T) { s.at(t).try(tr) })
	}
	t.Run("tcp-server", func(t *testing.T) { s.at(t).served() })
}

func (s *stage) at(t *testing.T) *stage {
	copy := *s
	copy.t = t
	return &copy
}

func (s *stage) try(tr traffic) {
	s.t.Helper()
	var cmd *exec.Cmd
	counted, captured := s.measure(func() {
		cmd = s.host.start(tr.kind, tr.to)
		if err := cmd.Wait(); err != nil {
			s.t.Fatal(err)
		}
	})
	s.equal(counted, captured, tr.min)
	s.named(cmd.Process.Pid, tr, counted.Packets)
}

func (s *stage) equal(counted, captured Counter, min uint64) {
	s.t.Helper()
	if counted.Packets != captured.Packets || counted.Bytes != captured.Bytes {
		s.t.Errorf("counted %d packets, %d bytes; captured %d, %d",
			counted.Packets, counted.Bytes, captured.Packets, captured.Bytes)
	}
	if captured.Packets < min {
		s.t.Errorf("captured %d packets, of at least %d sent", captured.Packets, min)
	}
	s.t.Logf("%d packets, %d bytes", captured.Packets, captured.Bytes)
}

// named checks that all packets but a few are put down to the process.
func (s *stage) named(pid int, tr traffic, packets uint64) {
	s.t.Helper()
	list, err := s.w.Senders()
	if err != nil {
		s.t.Fatal(err)
	}
	var named uint64
	for _, who := range list {
		if who.PID == pid && who.Comm == tr.kind && who.Origin == tr.origin && who.UID == tr.uid {
			named += who.Packets
		}
	}
	if named > packets || named+uint64(tr.atMost) < packets {
		s.t.Errorf("%d of %d packets put down to %s (%d)", named, packets, tr.kind, pid)
		for _, who := range list[:min(len(list), 8)] {
			s.t.Logf("  %+v", who)
		}
	}
}

// served checks the packets of an accepted socket.
func (s *stage) served() {
	cmd := s.host.startReady("tcp-server", "10.9.0.1:81")
	counted, captured := s.measure(func() {
		s.peer.try(func() error {
			c, err := net.Dial("tcp", "10.9.0.1:81")
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = io.Copy(io.Discard, c)
			return err
		})
		cmd.Wait()
	})
	s.equal(counted, captured, 1<<20/1460)
	s.named(cmd.Process.Pid, traffic{kind: "tcp-server", origin: Socket, atMost: 1}, counted.Packets)
}
