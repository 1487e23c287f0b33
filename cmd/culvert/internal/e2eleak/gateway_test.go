//go:build linux

package e2eleak

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// gatewayCase is a network whose router has an address that the tunnel protects.
type gatewayCase struct {
	name    string
	gateway string
	protect string
	set     func(*testing.T, *stub)
}

// fullTunnel takes all of IPv4, the LAN and its router included.
func fullTunnel(t *testing.T, s *stub) {
	s.Client.IP(t, "route add 0.0.0.0/1 dev tun0")
	s.Client.IP(t, "route add 128.0.0.0/1 dev tun0")
}

// targetsRouter makes the LAN's router have the address of a host that is wanted
// behind the tunnel, as a hostile DHCP server does by its options 1 and 3.
func targetsRouter(t *testing.T, s *stub) {
	testenv.Require(t, testenv.Dnsmasq, testenv.DHClient)
	s.Client.IP(t, "route flush default")
	s.Client.IP(t, "address flush dev eth0 scope global")
	s.LAN.IP(t, "address del 172.31.1.10/32 dev eth0")
	s.LAN.AddAddr(t, "eth0", testenv.Prefixes("172.31.1.10/24")...)
	testenv.DHCPServer{
		NS: s.LAN, Device: "eth0", First: testenv.Prefixes("172.31.1.50/32")[0].Addr(), Last: testenv.Prefixes("172.31.1.60/32")[0].Addr(),
		Router: testenv.Prefixes("172.31.1.10/32")[0].Addr(),
	}.Start(t)
	testenv.DHCPClient{NS: s.Client, Device: "eth0"}.Start(t)
	testenv.Eventually(t, patience, "the lease's default route", func() bool {
		return strings.Contains(s.Client.MainTable(t), "default via 172.31.1.10")
	})
}

var gatewayCases = []gatewayCase{
	{"full tunnel", "10.77.0.1", "0.0.0.0/1,128.0.0.0/1", fullTunnel},
	{"split tunnel, the target's address by DHCP", "172.31.1.10", "172.31.0.0/16", targetsRouter},
}

const gatewayBurst = 20

// ask sends so many datagrams to a port of an address.
func ask(t *testing.T, n *testenv.NS, addr string, port uint16) {
	t.Helper()
	script := fmt.Sprintf("for i in $(seq %d); do echo %s > /dev/udp/%s/%d; done; true", gatewayBurst, secret, addr, port)
	if out, err := n.Command("bash", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("ask %s: %v: %s", addr, err, out)
	}
}

// TestGateway: the host route that keeps the gateway reachable is for its
// hardware address and the reverse-path filter, and lets no traffic out.
func TestGateway(t *testing.T) {
	for _, tt := range gatewayCases {
		for _, onLeak := range []string{"count", "drop"} {
			t.Run(tt.name+", "+onLeak, func(t *testing.T) { gatewayIsNoWay(t, tt, onLeak) })
		}
	}
}

func gatewayIsNoWay(t *testing.T, tt gatewayCase, onLeak string) {
	needs(t)
	s := newStub(t)
	tt.set(t, s)
	s.Client.ReversePath(t, 1)
	d := s.prog.Daemon(t, "--tunnel", "tun0", "--protect", tt.protect, "--server", "203.0.113.10:1194/udp", "--on-leak", onLeak)
	s.enforcing(t)
	if table := s.Client.MainTable(t); !strings.Contains(table, tt.gateway+" dev eth0") {
		t.Fatalf("there is no pinhole to be tried:\n%s", table)
	}
	s.keepsAlive(t, tt.gateway)
	before := s.leaked(t)
	for i, port := range []uint16{port, portDNS} {
		f := testenv.To(tt.gateway)
		f.Proto, f.Port = unix.IPPROTO_UDP, port
		c := s.Leaks(t, f)
		ask(t, s.Client, tt.gateway, port)
		want := before.Packets + (i+1)*gatewayBurst
		if onLeak == "count" {
			c.Wait(gatewayBurst, patience)
		}
		got, captured := s.settled(t, want), exact(t, c)
		if got.Packets != want {
			t.Errorf("port %d: %d of %d counted", port, got.Packets-before.Packets-i*gatewayBurst, gatewayBurst)
		}
		if out := map[string]int{"count": gatewayBurst}[onLeak]; int(captured.Packets) != out {
			t.Errorf("port %d: %d packets got out, want %d", port, captured.Packets, out)
		}
	}
	if f, err := s.gatewayRow(t); err != nil || f.Packets != 2*gatewayBurst {
		t.Errorf("%v: %+v", err, f)
	}
	s.agrees(t, tt.gateway)
	stopped(t, d)
}

// portDNS is asked as a resolver of the LAN would be.
const portDNS = 53

// gatewayRow sums the findings about the gateway.
func (s *stub) gatewayRow(t *testing.T) (sum finding, err error) {
	list := s.table(t)
	for _, f := range list.By {
		if f.Mechanism == "gateway" {
			sum.add(f.totals)
		} else {
			err = fmt.Errorf("another finding: %+v", f)
		}
	}
	return sum, err
}

// keepsAlive makes either side forget the other's hardware address: what the
// tunnel is carried by must still be answered.
func (s *stub) keepsAlive(t *testing.T, gateway string) {
	t.Helper()
	f := testenv.To("203.0.113.10")
	f.Proto, f.Port = unix.IPPROTO_UDP, 1194
	for _, n := range []*testenv.NS{s.Client, s.LAN} {
		n.IP(t, "neigh flush dev eth0")
		c := s.Leaks(t, f)
		ask(t, s.Client, "203.0.113.10", 1194)
		if c.Wait(1, patience); c.Packets() == 0 {
			t.Errorf("the tunnel's transport does not reach the gateway %s any more", gateway)
		}
		exact(t, c)
	}
}

// agrees holds the other commands against the count.
func (s *stub) agrees(t *testing.T, gateway string) {
	t.Helper()
	sentence := "DNS to " + gateway + ", the gateway,"
	for _, args := range [][]string{{"status"}, {"leaks"}} {
		if r := s.prog.Exec(t, append(args, "--socket", s.prog.Socket)...); strings.Count(r.Stdout, sentence) != 1 ||
			!strings.Contains(r.Stdout, "resolvectl dns tun0") || !strings.Contains(r.Stdout, "--exclude "+gateway+"/32") {
			t.Errorf("culvert %s does not say once that DNS goes to the gateway, and what to do:\n%s", args[0], r)
		}
	}
	r := s.prog.Exec(t, "explain", gateway, "--socket", s.prog.Socket)
	if r.Code != 1 || !strings.Contains(r.Stdout, "only neighbour discovery and DHCP") || !strings.Contains(r.Stdout, "wrong: it leaves by eth0") {
		t.Errorf("culvert explain says otherwise than the count: %s", r)
	}
}

// TestGatewayExcluded: an operator may choose to let the resolver of the LAN be
// asked, and says so.
func TestGatewayExcluded(t *testing.T) {
	needs(t)
	s := newStub(t)
	fullTunnel(t, s)
	d := s.prog.Daemon(t, "--tunnel", "tun0", "--protect", "0.0.0.0/1,128.0.0.0/1", "--server", "203.0.113.10:1194/udp",
		"--exclude", "10.77.0.1/32", "--on-leak", "drop")
	s.enforcing(t)
	f := testenv.To("10.77.0.1")
	f.Proto, f.Port = unix.IPPROTO_UDP, portDNS
	c := s.Leaks(t, f)
	ask(t, s.Client, "10.77.0.1", portDNS)
	c.Wait(gatewayBurst, patience)
	if got := exact(t, c); got.Packets != gatewayBurst {
		t.Errorf("%d of %d packets to an excluded resolver got out", got.Packets, gatewayBurst)
	}
	if got := s.leaked(t); got.Packets != 0 {
		t.Errorf("counted all the same: %+v", got)
	}
	if r := s.prog.Exec(t, "explain", "10.77.0.1", "--socket", s.prog.Socket); r.Code != 0 || !strings.Contains(r.Stdout, "excluded by 10.77.0.1/32") {
		t.Errorf("explain: %s", r)
	}
	stopped(t, d)
}

// TestGatewayIsServer: the router carries the tunnel itself: its transport may go
// there, and nothing else.
func TestGatewayIsServer(t *testing.T) {
	needs(t)
	s := newStub(t)
	fullTunnel(t, s)
	d := s.prog.Daemon(t, "--tunnel", "tun0", "--protect", "0.0.0.0/1,128.0.0.0/1", "--server", "10.77.0.1:1194/udp", "--on-leak", "drop")
	s.enforcing(t)
	for port, want := range map[uint16]uint64{1194: gatewayBurst, portDNS: 0} {
		f := testenv.To("10.77.0.1")
		f.Proto, f.Port = unix.IPPROTO_UDP, port
		c := s.Leaks(t, f)
		ask(t, s.Client, "10.77.0.1", port)
		if want > 0 {
			c.Wait(want, patience)
		} else {
			s.settled(t, gatewayBurst)
		}
		if got := exact(t, c); got.Packets != want {
			t.Errorf("port %d: %d packets got out, want %d", port, got.Packets, want)
		}
	}
	list := s.table(t)
	if f, err := list.row("server"); err != nil || f.Dropped != gatewayBurst {
		t.Errorf("%v: %+v", err, f)
	}
	stopped(t, d)
}

// TestExemptShown: what was let pass because the link needs it is no leak, and is
// told all the same.
func TestExemptShown(t *testing.T) {
	needs(t)
	s := newStub(t)
	s.Client.IP(t, "-6 route add ::/1 dev tun0")
	s.Client.IP(t, "-6 route add 8000::/1 dev tun0")
	d := s.prog.Daemon(t, "--tunnel", "tun0", "--protect", "::/1,8000::/1", "--server", "[2001:db8::10]:1194/udp", "--on-leak", "drop")
	s.enforcing(t)
	testenv.Eventually(t, patience, "an exempt answer", func() bool {
		s.LAN.IP(t, "-6 neigh flush dev eth0")
		_, _ = s.LAN.Ping(testenv.Prefixes("fd77::20/128")[0].Addr(), 1, 100*time.Millisecond) // makes the client say who it is
		out := s.prog.Exec(t, "leaks", "--socket", s.prog.Socket).Stdout
		doc := s.prog.Exec(t, "status", "--json").Stdout
		return strings.Contains(out, "let pass: ") && strings.Contains(out, "by eth0: neighbour discovery") && strings.Contains(doc, `"exempt-nd"`)
	})
	stopped(t, d)
}
