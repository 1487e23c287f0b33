//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// attack is a row of the contract's table of verdicts that says "conflict":
// iproute2's words, and where packets go then without culvert.
type attack struct {
	name  string
	vpn   string // changes the stub before; lines of ip's arguments
	does  string // the attack
	probe string // address, with "/TOS" where it matters
	leaks string // the way there without culvert; see way
	flags string // more flags for culvert run
	// madeUp: the tunnel's route is not as the VPN made it when culvert comes
	// too late to have seen that.
	madeUp bool
	// returns: it comes back at disconnect although it came while connected.
	returns bool
	// more: the attack changes the table beyond what it takes from the session.
	more bool
}

const (
	site     = "172.31.1.10"
	site6    = "fd31:0:0:1::10"
	byEth    = "eth0"
	inval    = "invalid argument"
	noHost   = "no route to host"
	noNet    = "network is unreachable"
	noAccess = "permission denied"
)

// attacks4 are attacks on the route of 172.31.0.0/16 into tun0, metric 0.
var attacks4 = []attack{
	{name: "longer, add", does: "route add 172.31.1.0/24 via 10.77.0.66", probe: site, leaks: byEth},
	{name: "longer, append", does: "route append 172.31.1.0/24 via 10.77.0.66", probe: site, leaks: byEth},
	{name: "longer, prepend", does: "route prepend 172.31.1.0/24 via 10.77.0.66", probe: site, leaks: byEth},
	{name: "longer, replace", does: "route replace 172.31.1.0/24 via 10.77.0.66", probe: site, leaks: byEth},
	{name: "longer, change", vpn: "route add 172.31.1.0/24 dev tun0", does: "route change 172.31.1.0/24 via 10.77.0.66 dev eth0", probe: site, leaks: byEth, more: true},
	{name: "longer, a host", does: "route add 172.31.1.10 via 10.77.0.66", probe: site, leaks: byEth},
	{name: "longer, half", does: "route add 172.31.0.0/17 via 10.77.0.66", probe: site, leaks: byEth},
	{name: "longer, on the link", does: "route add 172.31.1.0/24 dev eth0", probe: site, leaks: byEth},
	{name: "longer, onlink gateway", does: "route add 172.31.1.0/24 via 192.0.2.1 dev eth0 onlink", probe: site, leaks: byEth},
	{name: "longer, high metric", does: "route add 172.31.1.0/24 via 10.77.0.66 metric 4000000", probe: site, leaks: byEth},
	{name: "longer, several metrics", does: "route add 172.31.1.0/24 via 10.77.0.66\nroute add 172.31.1.0/24 via 10.77.0.1 metric 5\nroute append 172.31.1.0/24 via 10.77.0.1", probe: site, leaks: byEth},
	{name: "longer, attributes", does: "route add 172.31.1.0/24 via 10.77.0.66 proto static src 10.77.0.20 metric 7 mtu lock 1300 advmss 1200 initcwnd 9 realm 3", probe: site, leaks: byEth},
	{name: "longer, gateway of the other family", does: "route add 172.31.1.0/24 via inet6 fd77::66 dev eth0", probe: site, leaks: byEth},
	{name: "longer, TOS", does: "route add 172.31.1.0/24 tos 0x10 via 10.77.0.66", probe: site + "/16", leaks: byEth},
	{name: "equal, prepend", does: "route prepend 172.31.0.0/16 via 10.77.0.66", probe: site, leaks: byEth},
	{name: "equal, append", does: "route append 172.31.0.0/16 via 10.77.0.66", probe: site, leaks: "tun0"},
	{name: "equal, lower metric", vpn: "route del 172.31.0.0/16\nroute add 172.31.0.0/16 dev tun0 metric 100", does: "route add 172.31.0.0/16 via 10.77.0.66 metric 50", probe: site, leaks: byEth},
	{name: "equal, same metric", vpn: "route del 172.31.0.0/16\nroute add 172.31.0.0/16 dev tun0 metric 100", does: "route prepend 172.31.0.0/16 via 10.77.0.66 metric 100", probe: site, leaks: byEth},
	{name: "equal, TOS and high metric", does: "route add 172.31.0.0/16 tos 0x10 via 10.77.0.66 metric 5000", probe: site + "/16", leaks: byEth},
	{name: "equal, throw", does: "route prepend throw 172.31.0.0/16\nroute add default via 10.77.0.66 table default", probe: site, leaks: byEth},
	{name: "throw", does: "route add throw 172.31.1.0/24\nroute add default via 10.77.0.66 table default", probe: site, leaks: byEth},
	{name: "blackhole", does: "route add blackhole 172.31.1.0/24", probe: site, leaks: inval},
	{name: "unreachable", does: "route add unreachable 172.31.1.0/24", probe: site, leaks: noHost},
	{name: "prohibit", does: "route add prohibit 172.31.1.0/24 metric 20", probe: site, leaks: noAccess},
	{name: "local in main", does: "route add local 172.31.1.0/24 dev lo table main", probe: site, leaks: "local lo"},
	{name: "broadcast in main", does: "route add broadcast 172.31.1.10 dev eth0 table main", probe: site, leaks: "broadcast eth0"},
	{name: "multicast in main", does: "route add multicast 172.31.1.0/24 dev eth0 table main", probe: site, leaks: "multicast eth0"},
	{name: "multipath outside", does: "route add 172.31.1.0/24 nexthop via 10.77.0.66 nexthop via 10.77.0.1 weight 3", probe: site, leaks: byEth},
	{name: "multipath, one leg outside", does: "route add 172.31.1.0/24 nexthop via 10.77.0.66 weight 200 nexthop dev tun0", probe: "172.31.1.0/sweep", leaks: byEth},
	{name: "multipath, replaced the tunnel's", does: "route replace 172.31.0.0/16 nexthop via 10.77.0.66 weight 200 nexthop dev tun0", probe: "172.31.1.0/sweep", leaks: byEth, madeUp: true},
	{name: "the tunnel's route deleted", does: "route del 172.31.0.0/16 dev tun0", probe: site, leaks: byEth, madeUp: true},
	{name: "the tunnel's route replaced", does: "route replace 172.31.0.0/16 via 10.77.0.66", probe: site, leaks: byEth, madeUp: true},
	{name: "the tunnel's route changed", does: "route change 172.31.0.0/16 via 10.77.0.66 dev eth0", probe: site, leaks: byEth, madeUp: true},
	{name: "the tunnel's route to blackhole", does: "route replace blackhole 172.31.0.0/16", probe: site, leaks: inval, madeUp: true},
	{name: "the tunnel's routes deleted, with attributes", vpn: "route replace 172.31.0.0/16 via 10.88.0.1 dev tun0 mtu 1400 proto static\nroute add 172.31.0.0/16 dev tun0 metric 300",
		does: "route flush dev tun0 root 172.31.0.0/16", probe: site, leaks: byEth, madeUp: true, more: true},
	{name: "connected", does: "addr add 172.31.1.1/24 dev eth0", probe: site, leaks: byEth, returns: true},
	{name: "a bridge like docker0, no carrier", does: "link add docker0 type bridge\naddr add 172.31.1.1/24 dev docker0\nlink set docker0 up", probe: site, leaks: "docker0", returns: true, more: true},
	{name: "a protected hole in an exclusion", flags: "--exclude 172.31.1.0/24 --protect 172.31.1.0/28", does: "route add 172.31.1.8/29 via 10.77.0.66", probe: site, leaks: byEth, madeUp: true},
	{name: "longer than an exclusion's parent", flags: "--exclude 172.31.0.0/24", does: "route add 172.31.0.0/23 via 10.77.0.66", probe: site, leaks: byEth},
}

// attacks6 are attacks on the route of fd31::/48 into tun0, metric 1024.
var attacks6 = []attack{
	{name: "longer", does: "-6 route add fd31:0:0:1::/64 via fd77::66", probe: site6, leaks: byEth},
	{name: "longer, on the link", does: "-6 route add fd31:0:0:1::/64 dev eth0 metric 9999", probe: site6, leaks: byEth},
	{name: "longer, with lifetime", does: "-6 route add fd31:0:0:1::/64 via fd77::66 dev eth0 expires 500", probe: site6, leaks: byEth},
	{name: "longer, attributes", does: "-6 route add fd31:0:0:1::/64 via fd77::66 dev eth0 proto static src fd77::20 pref low mtu 1300 hoplimit 9", probe: site6, leaks: byEth},
	{name: "longer, multipath", does: "-6 route add fd31:0:0:1::/64 nexthop via fd77::66 nexthop via fd77::1", probe: site6, leaks: byEth},
	{name: "longer, multipath, one leg outside", does: "-6 route add fd31:0:0:1::/64 nexthop via fd88::1 nexthop via fd77::66 weight 200", probe: "fd31:0:0:1::/sweep", leaks: byEth, more: true},
	{name: "longer, source-specific", does: "-6 route add fd31:0:0:1::/64 from fd77::/64 via fd77::66 dev eth0", probe: site6 + "/from fd77::20", leaks: byEth},
	{name: "equal, lower metric", does: "-6 route add fd31::/48 via fd77::66 metric 512", probe: site6, leaks: byEth},
	{name: "equal, same metric", does: "-6 route prepend fd31::/48 via fd77::66", probe: site6, leaks: "tun0"},
	{name: "equal, source-specific, high metric", does: "-6 route add fd31::/48 from fd77::/64 via fd77::66 dev eth0 metric 9999", probe: site6 + "/from fd77::20", leaks: byEth},
	{name: "equal, source-specific, other sources", does: "-6 route add fd31::/48 from fd77::/64 via fd77::66 dev eth0 metric 9999", probe: site6 + "/from fd88::2", leaks: byEth},
	{name: "equal, router preference", does: "-6 route append fd31::/48 via fd77::66 metric 1024 pref high", probe: site6, leaks: byEth},
	{name: "equal, merged into ECMP", vpn: "-6 route del fd31::/48\n-6 route add fd31::/48 via fd88::1 dev tun0",
		does: "-6 route append fd31::/48 via fd77::66 dev eth0", probe: "fd31:0:0:1::/sweep", leaks: byEth},
	{name: "blackhole", does: "-6 route add blackhole fd31:0:0:1::/64", probe: site6, leaks: inval},
	{name: "unreachable", does: "-6 route add unreachable fd31:0:0:1::/64", probe: site6, leaks: noHost},
	{name: "prohibit", does: "-6 route add prohibit fd31:0:0:1::/64", probe: site6, leaks: noAccess},
	{name: "throw", does: "-6 route add throw fd31:0:0:1::/64\n-6 route add default via fd77::66 table default\n-6 rule add pref 40000 lookup default", probe: site6, leaks: byEth},
	{name: "anycast in main", does: "-6 route add anycast fd31:0:0:1::10 dev eth0 table main", probe: site6, leaks: "anycast eth0"},
	{name: "local in main", does: "-6 route add local fd31:0:0:1::/64 dev lo table main", probe: site6, leaks: "local lo"},
	{name: "connected", does: "-6 addr add fd31:0:0:1::1/64 dev eth0 nodad", probe: site6, leaks: byEth, returns: true},
	{name: "the tunnel's route deleted", does: "-6 route del fd31::/48", probe: site6, leaks: byEth, madeUp: true},
	{name: "the tunnel's route replaced", does: "-6 route replace fd31::/48 via fd77::66 dev eth0", probe: site6, leaks: byEth, madeUp: true},
}

// attacksNH are attacks by nexthop objects. In both modes of
// net.ipv4.nexthop_compat_mode: what replacing one announces differs.
var attacksNH = []attack{
	{name: "longer", does: "nexthop add id 7 via 10.77.0.66 dev eth0\nroute add 172.31.1.0/24 nhid 7", probe: site, leaks: byEth},
	{name: "group with one leg outside", does: "nexthop add id 7 via 10.77.0.66 dev eth0\nnexthop add id 8 dev tun0\nnexthop add id 9 group 7,200/8\nroute add 172.31.1.0/24 nhid 9", probe: "172.31.1.0/sweep", leaks: byEth},
	{name: "blackhole", does: "nexthop add id 7 blackhole\nroute add 172.31.1.0/24 nhid 7", probe: site, leaks: inval},
	{name: "replaced", vpn: "nexthop add id 8 dev tun0\nroute add 172.31.1.0/24 nhid 8", does: "nexthop replace id 8 via 10.77.0.66 dev eth0", probe: site, leaks: byEth, more: true},
	{name: "replaced by a blackhole", vpn: "nexthop add id 8 dev tun0\nroute add 172.31.1.0/24 nhid 8", does: "nexthop replace id 8 blackhole", probe: site, leaks: inval, more: true},
	{name: "member of a group replaced", vpn: "nexthop add id 8 dev tun0\nnexthop add id 9 group 8\nroute add 172.31.1.0/24 nhid 9", does: "nexthop replace id 8 via 10.77.0.66 dev eth0", probe: site, leaks: byEth, more: true},
	{name: "group replaced", vpn: "nexthop add id 8 dev tun0\nnexthop add id 7 via 10.77.0.66 dev eth0\nnexthop add id 9 group 8\nroute add 172.31.1.0/24 nhid 9", does: "nexthop replace id 9 group 7", probe: site, leaks: byEth, more: true},
	{name: "the tunnel's own replaced", vpn: "nexthop add id 8 dev tun0\nroute replace 172.31.0.0/16 nhid 8", does: "nexthop replace id 8 via 10.77.0.66 dev eth0", probe: site, leaks: byEth, madeUp: true},
	{name: "the tunnel's own deleted", vpn: "nexthop add id 8 dev tun0\nroute replace 172.31.0.0/16 nhid 8", does: "nexthop del id 8", probe: site, leaks: byEth, madeUp: true},
	{name: "IPv6, replaced", vpn: "nexthop add id 8 via fd88::1 dev tun0\n-6 route add fd31:0:0:1::/64 nhid 8", does: "nexthop replace id 8 via fd77::66 dev eth0", probe: site6, leaks: byEth, more: true},
	{name: "IPv6, replaced by a blackhole", vpn: "nexthop add id 8 via fd88::1 dev tun0\n-6 route add fd31:0:0:1::/64 nhid 8", does: "-6 nexthop replace id 8 blackhole", probe: site6, leaks: inval, more: true},
}

// TestConflictThatStood: what stood before the session goes while it is
// enforced, and comes back as it was.
func TestConflictThatStood(t *testing.T) {
	eachAttack(t, false, func(t *testing.T, s *stub, a attack) {
		clean := s.Client.MainTable(t)
		s.ip(t, a.does)
		before := s.Client.MainTable(t)
		s.leaksBy(t, a)
		d := s.daemon(t, strings.Fields(a.flags)...)
		s.tunnelled(t, a)
		s.told(t, a)
		if !a.madeUp && !a.more {
			sameTable(t, s.Client, "while enforced", clean)
		}
		stopped(t, d)
		sameTable(t, s.Client, "after the end", before)
	})
}

// TestConflictThatCame: what comes while the session is enforced goes, and
// does not come back; the tunnel's route is as the VPN made it.
func TestConflictThatCame(t *testing.T) {
	eachAttack(t, true, func(t *testing.T, s *stub, a attack) {
		before := s.Client.MainTable(t)
		d := s.daemon(t, strings.Fields(a.flags)...)
		clean := s.Client.MainTable(t)
		s.ip(t, a.does)
		s.tunnelled(t, a)
		s.told(t, a)
		// A route that went by way of a nexthop object is put back without it.
		viaObject := strings.Contains(a.vpn, "nhid")
		if !viaObject && !a.more {
			sameTable(t, s.Client, "while enforced", clean)
		}
		stopped(t, d)
		if a.returns || viaObject || a.more {
			leftAfter(t, s.Client, a, before)
		} else {
			sameTable(t, s.Client, "after the end", before)
		}
	})
}

// leftAfter checks the table after an attack that changed more than itself:
// what is new is the connected route, or leads into the tunnel.
func leftAfter(t *testing.T, n *testenv.NS, a attack, before string) {
	t.Helper()
	for _, line := range strings.Split(n.MainTable(t), "\n") {
		if strings.Contains(before, line) || strings.Contains(line, " dev tun0 ") ||
			(a.returns && strings.Contains(line, "proto kernel")) {
			continue
		}
		t.Errorf("after the end there is %q", line)
	}
	if a.returns && way(n, a.probe) != a.leaks {
		t.Errorf("after the end %s goes by %s: the connected route is not back", a.probe, way(n, a.probe))
	}
}

// eachAttack runs a test for every attack on a stub of its own. In loud mode
// replacing a nexthop object announces its routes; quietly it does not, which
// matters to what comes while connected only.
func eachAttack(t *testing.T, quiet bool, test func(*testing.T, *stub, attack)) {
	run := func(group string, attacks []attack, setup ...string) {
		for _, a := range attacks {
			t.Run(group+"/"+a.name, func(t *testing.T) {
				needs(t)
				s := newStub(t)
				for _, value := range setup {
					s.Client.Sysctl(t, "net.ipv4.nexthop_compat_mode", value)
				}
				s.ip(t, a.vpn)
				test(t, s, a)
			})
		}
	}
	run("IPv4", attacks4)
	run("IPv6", attacks6)
	run("nexthop objects", attacksNH, "1")
	if quiet {
		run("nexthop objects, quiet", attacksNH, "0")
	}
}

// ip runs lines of ip's arguments in the client.
func (s *stub) ip(t testenv.TB, lines string) {
	t.Helper()
	for _, line := range strings.Split(lines, "\n") {
		if line != "" {
			s.Client.IP(t, line)
		}
	}
}

// leaksBy is the control.
func (s *stub) leaksBy(t *testing.T, a attack) {
	t.Helper()
	if got := way(s.Client, a.probe); got != a.leaks {
		t.Fatalf("control: without culvert %s goes by %s, want %s\n%s", a.probe, got, a.leaks, s.Client.MainTable(t))
	}
	if a.leaks != byEth || strings.Contains(a.probe, "sweep") {
		return
	}
	if in, out := s.burst(t, a.probe); in != 0 || out != burst {
		t.Errorf("control: of %d packets to %s %d left and %d entered the tunnel", burst, a.probe, out, in)
	}
}

// tunnelled waits until the attacked address leads into the tunnel, and counts
// packets.
func (s *stub) tunnelled(t *testing.T, a attack) {
	t.Helper()
	if !testenv.Until(patience, func() bool { return way(s.Client, a.probe) == "tun0" }) {
		t.Fatalf("%s goes by %s\n%s", a.probe, way(s.Client, a.probe), s.Client.MainTable(t))
	}
	enforcing(t, s.prog)
	if in, out := s.burst(t, a.probe); in != burst || out != 0 {
		t.Errorf("of %d packets to %s %d left outside and %d entered the tunnel", burst, a.probe, out, in)
	}
}

// told checks that status tells of the attack: what was done, and why by the
// row's name.
func (s *stub) told(t *testing.T, a attack) {
	t.Helper()
	kind, _, _ := strings.Cut(strings.TrimPrefix(a.name, "IPv6, "), ",")
	why := map[string]string{
		"longer": "longer than ", "equal": "equal to ", "throw": "(throw)", "blackhole": "(blackhole)",
		"unreachable": "(unreachable)", "prohibit": "(prohibit)", "local in main": "(local)",
		"broadcast in main": "(broadcast)", "multicast in main": "(multicast)", "anycast in main": "(anycast)",
	}[kind]
	told := func() bool {
		for _, in := range statusOf(t, s.prog).Incidents {
			done := in.What == "removed" || in.What == "readded"
			if done && in.Tunnel == "tun0" && strings.Contains(in.Reason, why) {
				return true
			}
		}
		// A tunnel's route found missing is put back, which is only counted.
		st := statusOf(t, s.prog)
		return a.madeUp && st.Sessions[0].Readded > 0
	}
	if !eventually(told) {
		t.Errorf("status does not tell %q: %s", why, s.prog.Exec(t, "status", "--json"))
	}
}

func (s *stub) burst(t *testing.T, probe string) (in, out int) {
	t.Helper()
	p := parseProbe(probe)
	blast, filter := marked(p.dst)
	blast.TOS, blast.Src = p.tos, p.from
	tunnel, leaks := s.Tun.Count(filter), s.Leaks(t, filter)
	sent := s.Client.Send(t, blast)
	testenv.Until(patience, func() bool { return int(tunnel.Packets()+leaks.Packets()) >= sent.Packets })
	return counted(t, tunnel), counted(t, leaks)
}

// probe is a packet to ask the kernel about.
type probe struct {
	dst, from netip.Addr
	tos       uint8
	sweep     bool
}

// parseProbe reads ADDRESS, ADDRESS/TOS, ADDRESS/from SOURCE, or ADDRESS/sweep.
func parseProbe(text string) (p probe) {
	dst, rest, _ := strings.Cut(text, "/")
	p.dst = netip.MustParseAddr(dst)
	from, isFrom := strings.CutPrefix(rest, "from ")
	switch {
	case isFrom:
		p.from = netip.MustParseAddr(from)
	case rest == "sweep":
		p.sweep = true
	case rest != "":
		fmt.Sscan(rest, &p.tos) //nolint:errcheck // zero is an answer
	}
	return p
}

// way is where the kernel would send a packet: the interface, with the route's
// type before it when that is not unicast, or the error that a sender gets. A
// sweep asks for the following 64 addresses and reports the first that does not
// enter the tunnel: multipath chooses by the address.
func way(n *testenv.NS, text string) string {
	p := parseProbe(text)
	if p.from.IsValid() {
		return wayFrom(n, p)
	}
	fib, err := n.OpenFIB()
	if err != nil {
		return err.Error()
	}
	defer fib.Close() //nolint:errcheck // only read
	got := oneWay(fib, p)
	for i := 0; p.sweep && i < 64 && got == "tun0"; i++ {
		p.dst = p.dst.Next()
		got = oneWay(fib, p)
	}
	return got
}

var typeNames = map[int]string{2: "local ", 3: "broadcast ", 4: "anycast ", 5: "multicast "}

func oneWay(fib *testenv.FIB, p probe) string {
	hop, err := fib.Lookup(p.dst, p.tos)
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case err != nil:
		return err.Error()
	}
	return typeNames[hop.Type] + hop.Device
}

// wayFrom asks iproute2, which can name a source.
func wayFrom(n *testenv.NS, p probe) string {
	out, err := n.Command("ip", "route", "get", p.dst.String(), "from", p.from.String()).CombinedOutput()
	words := strings.Fields(string(out))
	for i, w := range words {
		if err == nil && w == "dev" && i+1 < len(words) {
			return words[i+1]
		}
	}
	return string(out)
}
