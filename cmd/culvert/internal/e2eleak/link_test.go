//go:build linux

package e2eleak

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// dropped says a speech and wants each of its packets counted and stopped.
func (s *stub) dropped(t *testing.T, what string, n *testenv.NS, say speech) {
	t.Helper()
	say.count = gatewayBurst
	before := s.leaked(t)
	c := s.Leaks(t, filter(say.dst))
	say.say(t, n)
	got := s.settled(t, before.Packets+gatewayBurst)
	if got.Packets != before.Packets+gatewayBurst || got.Dropped != before.Dropped+gatewayBurst {
		t.Errorf("%s: counted %+v, before %+v, of %d", what, got, before, gatewayBurst)
	}
	if out := exact(t, c); out.Packets != 0 {
		t.Errorf("%s: %d of %d got out", what, out.Packets, gatewayBurst)
	}
}

// TestBroadcastAddress: DHCP may give an address any broadcast address (option
// 28), a protected host's too. Packets to it are stopped, and it is told.
func TestBroadcastAddress(t *testing.T) {
	needs(t)
	s := newStub(t)
	d := s.daemon(t, "--on-leak", "drop")
	s.Client.IP(t, "address add 10.77.5.20/24 broadcast 172.31.1.10 dev eth0")
	s.dropped(t, "a host's address as broadcast", s.Client, speech{dst: "172.31.1.10"})
	testenv.Eventually(t, patience, "the finding", func() bool {
		return strings.Contains(s.prog.Exec(t, "status", "--json").Stdout, "broadcast 172.31.1.10")
	})
	f := filter("10.77.5.255")
	c := s.Leaks(t, f)
	speech{dst: "10.77.5.255", count: 3}.say(t, s.Client) // what is not protected stays free
	c.Wait(3, patience)
	exact(t, c)
	stopped(t, d)
}

// TestContainerPosesAsLink: a container that the host forwards for gets nothing
// that the host's own link needs.
func TestContainerPosesAsLink(t *testing.T) {
	needs(t)
	s := newStub(t)
	container(t, s)
	d := s.daemon(t, "--on-leak", "drop")
	before := s.leaked(t)
	f := testenv.To("172.31.1.10")
	f.Proto, f.Port = unix.IPPROTO_UDP, 67
	c := s.Leaks(t, f)
	if err := s.client.Do(func() error { return sendDHCP(netip.MustParseAddr("172.31.1.10"), gatewayBurst) }); err != nil {
		t.Fatal(err)
	}
	got := s.settled(t, before.Packets+gatewayBurst)
	if got.Dropped != before.Dropped+gatewayBurst {
		t.Errorf("counted %+v, before %+v, of %d", got, before, gatewayBurst)
	}
	if out := exact(t, c); out.Packets != 0 {
		t.Errorf("%d of %d got out", out.Packets, gatewayBurst)
	}
	stopped(t, d)
}

// sendDHCP sends what looks like the renewal of a lease, so many times.
func sendDHCP(to netip.Addr, count int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // sent
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 68}); err != nil {
		return err
	}
	b := make([]byte, 300)
	copy(b[236:], []byte{0x63, 0x82, 0x53, 0x63})
	for range count {
		if err := unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: to.As4(), Port: 67}); err != nil && !refused(err) {
			return err
		}
	}
	return nil
}

// TestShapedAnswers: an ingress shaper leads what comes in by an ifb. The tunnel's
// own answers arrive, and are no leaks.
func TestShapedAnswers(t *testing.T) {
	needs(t)
	s := newStub(t)
	fullTunnel(t, s)
	d := s.prog.Daemon(t, "--tunnel", "tun0", "--protect", "0.0.0.0/1,128.0.0.0/1", "--server", "10.77.0.66:1194/udp", "--on-leak", "drop")
	s.enforcing(t)
	s.Client.IP(t, "link add ifb0 type ifb")
	s.Client.IP(t, "link set ifb0 up")
	for _, line := range []string{
		"qdisc add dev eth0 handle ffff: ingress",
		"filter add dev eth0 parent ffff: protocol ip u32 match u8 0 0 action mirred egress redirect dev ifb0",
	} {
		if out, err := s.Client.Command("tc", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("tc %s: %v: %s", line, err, out)
		}
	}
	var listener net.PacketConn
	if err := s.Client.Do(func() (err error) {
		listener, err = net.ListenPacket("udp4", fmt.Sprintf("10.77.0.20:%d", port))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // read
	speech{dst: "10.77.0.20", count: gatewayBurst}.say(t, s.LAN)
	_ = listener.SetReadDeadline(time.Now().Add(patience))
	for i := range gatewayBurst {
		if _, _, err := listener.ReadFrom(make([]byte, 100)); err != nil {
			t.Fatalf("%d of %d answers arrived: %v", i, gatewayBurst, err)
		}
	}
	if n := s.shaped(t); n < gatewayBurst {
		t.Errorf("%d came by the ifb: nothing is proved", n)
	}
	if got := s.leaked(t); got.Packets != 0 {
		t.Errorf("what came in was counted as leaks: %+v", s.table(t).By)
	}
	stopped(t, d)
}

// shaped is how many packets the filter led to the ifb.
func (s *stub) shaped(t *testing.T) (n int) {
	t.Helper()
	out, err := s.Client.Command("tc", "-s", "filter", "show", "dev", "eth0", "parent", "ffff:").CombinedOutput()
	if err != nil {
		t.Fatalf("tc: %v: %s", err, out)
	}
	for _, line := range strings.Split(string(out), "\n") {
		var bytes, packets int
		if _, err := fmt.Sscanf(strings.TrimSpace(line), "Sent %d bytes %d pkt", &bytes, &packets); err == nil {
			n += packets
		}
	}
	return n
}
