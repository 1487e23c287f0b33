//go:build linux

package e2eleak

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/testenv"
)

// findings are ways past the table that no route can close.
var findings = []struct {
	name      string
	set       func(*testing.T, *stub) // before the daemon
	speech    speech
	mechanism string
	why       string // words of it
	failed    bool   // the kernel's own answer for a protected address is another way
}{
	{name: "SO_BINDTODEVICE, unprivileged", set: nil,
		speech: speech{dst: "172.31.1.10", device: "eth0", uid: 65534}, mechanism: "bound", why: "SO_BINDTODEVICE eth0"},
	{name: "SO_BINDTODEVICE, IPv6",
		speech: speech{dst: "fd31:0:0:1::10", device: "eth0"}, mechanism: "bound", why: "SO_BINDTODEVICE eth0"},
	{name: "rule for a mark", set: ruleTo("fwmark 0x2a"),
		speech: speech{dst: "172.31.1.10", mark: 42, uid: 0}, mechanism: "rule", why: "fwmark 0x2a"},
	{name: "rule for a destination", set: ruleTo("to 172.31.1.0/24"),
		speech: speech{dst: "172.31.1.10", uid: 65534}, mechanism: "rule", why: "to 172.31.1.0/24 lookup 100"},
	{name: "rule for a user", set: ruleTo("uidrange 65534-65534"),
		speech: speech{dst: "172.31.1.10", uid: 65534}, mechanism: "rule", why: "uidrange 65534-65534 lookup 100"},
	{name: "rule for a source", set: ruleTo("from 10.77.0.20"),
		speech: speech{dst: "172.31.1.10", src: "10.77.0.20", uid: 65534}, mechanism: "rule", why: "from 10.77.0.20/32 lookup 100"},
	{name: "rule for a mark, IPv6", set: ruleTo("fwmark 0x2a"),
		speech: speech{dst: "fd31:0:0:1::10", mark: 42, uid: 0}, mechanism: "rule", why: "fwmark 0x2a"},
	{name: "rule for a destination, IPv6", set: ruleTo("to fd31:0:0:1::/64"),
		speech: speech{dst: "fd31:0:0:1::10", uid: 65534}, mechanism: "rule", why: "to fd31:0:0:1::/64 lookup 100, fd31::/48 via fd77::66 dev eth0"},
	{name: "rule for a user, IPv6", set: ruleTo("uidrange 65534-65534"),
		speech: speech{dst: "fd31:0:0:1::10", uid: 65534}, mechanism: "rule", why: "uidrange 65534-65534 lookup 100"},
	{name: "rule for a source, IPv6", set: ruleTo("from fd77::20"),
		speech: speech{dst: "fd31:0:0:1::10", src: "fd77::20", uid: 65534}, mechanism: "rule", why: "from fd77::20/128 lookup 100"},
	{name: "rule for a protocol, IPv6", set: ruleTo("ipproto udp"),
		speech: speech{dst: "fd31:0:0:1::10", uid: 65534}, mechanism: "rule", why: "ipproto 17 lookup 100", failed: true}, // it is asked about UDP
	{name: "packet socket, IPv6",
		speech: speech{dst: "fd31:0:0:1::10", device: "eth0", packet: "lan"}, mechanism: "packet", why: "packet socket"},
	{name: "interface chosen for each packet, IPv6",
		speech: speech{dst: "fd31:0:0:1::10", device: "eth0", choose: true, uid: 65534}, mechanism: "in-flight", why: "IP_PKTINFO"},
	{name: "packet socket",
		speech: speech{dst: "172.31.1.10", device: "eth0", packet: "lan"}, mechanism: "packet", why: "packet socket"},
	{name: "interface chosen for each packet", set: onLink,
		speech: speech{dst: "172.31.1.10", device: "eth0", choose: true, uid: 65534}, mechanism: "in-flight", why: "IP_PKTINFO"},
	{name: "forwarded container, IPv6", set: container,
		speech: speech{dst: "fd31:0:0:1::10"}, mechanism: "rule", why: "forwarded from cont0 (fd19::2); rule 100: from all iif cont0 lookup 100"},
	{name: "forwarded container", set: container,
		speech: speech{dst: "172.31.1.10"}, mechanism: "rule", why: "forwarded from cont0 (192.168.9.2); rule 100: from all iif cont0 lookup 100"},
}

// onLink: what asks for an interface that no route names is taken to be on its
// link, and the LAN answers for anybody.
func onLink(t *testing.T, s *stub) {
	s.Client.IP(t, "neigh replace 172.31.1.10 lladdr "+mac(t, s.LAN, "eth0")+" dev eth0")
}

func ruleTo(selector string) func(*testing.T, *stub) {
	return func(t *testing.T, s *stub) {
		s.Client.IP(t, "route add 172.31.0.0/16 via 10.77.0.66 table 100")
		s.Client.IP(t, "-6 route add fd31::/48 via fd77::66 table 100")
		for _, family := range families(selector) {
			s.Client.IP(t, family+" rule add pref 100 "+selector+" lookup 100")
		}
	}
}

// families are those that a rule's selector can be of.
func families(selector string) []string {
	switch _, addr, ok := strings.Cut(selector, " "); {
	case ok && strings.Contains(addr, ":"):
		return []string{"-6"}
	case ok && strings.Contains(addr, "."):
		return []string{"-4"}
	}
	return []string{"-4", "-6"}
}

// container makes a namespace behind the client, whose traffic a rule leads past
// the tunnel.
func container(t *testing.T, s *stub) {
	ruleTo("iif cont0")(t, s)
	s.LAN.IP(t, "-6 route add fd19::/64 via fd77::20")
	s.Client.Forward(t)
	c := testenv.Namespace(t, "container")
	testenv.Veth(t, testenv.End{NS: s.Client, Name: "cont0", Addrs: testenv.Prefixes("192.168.9.1/24", "fd19::1/64")},
		testenv.End{NS: c, Name: "eth0", Addrs: testenv.Prefixes("192.168.9.2/24", "fd19::2/64")})
	c.IP(t, "route add default via 192.168.9.1")
	c.IP(t, "-6 route add default via fd19::1")
	s.client = c
}

// TestFindings: each is found, its sender and mechanism named, its packets
// counted to the packet.
func TestFindings(t *testing.T) {
	const n = 25
	for _, tt := range findings {
		t.Run(tt.name, func(t *testing.T) {
			needs(t)
			s := newStub(t)
			if tt.set != nil {
				tt.set(t, s)
			}
			d := s.daemonFor(t, tt.failed)
			say := tt.speech
			say.count, say.pause = n, time.Millisecond
			if say.packet != "" {
				say.packet = mac(t, s.LAN, "eth0")
			}
			c := s.Leaks(t, filter(say.dst))
			say.say(t, s.client)
			c.Wait(n, patience)
			got, captured := s.settled(t, n), exact(t, c)
			if captured.Packets != n {
				t.Errorf("%d of %d packets got out: this is no leak", captured.Packets, n)
			}
			same(t, tt.name, captured, got)
			list := s.table(t)
			f, err := list.row(tt.mechanism)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(f.Why, tt.why) || f.Incident != 0 || f.Tunnel != "tun0" || f.Interface != "eth0" ||
				!strings.HasPrefix(strings.Trim(f.To, "["), say.dst) || f.Packets != n {
				t.Errorf("found %+v, want %q", f, tt.why)
			}
			named(t, &f, s.client == s.Client, say.uid)
			stopped(t, d)
		})
	}
}

// named checks that a sender of this host is known by name and user, and another
// by where it came from.
func named(t *testing.T, f *finding, ours bool, uid uint32) {
	t.Helper()
	s, from := &f.sender, "192.168.9.2"
	if strings.HasPrefix(f.To, "[") {
		from = "fd19::2"
	}
	switch {
	case !ours && (s.Ingress != "cont0" || s.Source != from || s.Origin != "forwarded" || s.UID != -1):
		t.Errorf("the sender is %+v, want %s by cont0", *s, from)
	case ours && (s.Process != talker || s.PID == 0 || s.UID != int(uid)):
		t.Errorf("the sender is %+v, want %s of user %d", *s, talker, uid)
	}
}

// TestVRF: a program bound to a VRF asks a table of its own. Where the kernel has
// none there is nothing to find.
func TestVRF(t *testing.T) {
	const n = 25
	needs(t)
	s := newStub(t)
	if out, err := s.Client.Command("ip", "link", "add", "vrf0", "type", "vrf", "table", "100").CombinedOutput(); err != nil {
		t.Logf("no VRF on this kernel: %s", out)
		return
	}
	testenv.Veth(t, testenv.End{NS: s.Client, Name: "eth1"}, testenv.End{NS: s.LAN, Name: "eth1", Addrs: testenv.Prefixes("10.78.0.66/24")})
	s.Client.IP(t, "link set eth1 master vrf0")
	s.Client.IP(t, "link set vrf0 up")
	s.Client.AddAddr(t, "eth1", testenv.Prefixes("10.78.0.20/24")...)
	s.Client.IP(t, "route add 172.31.0.0/16 via 10.78.0.66 table 100")
	d := s.daemon(t)
	c := testenv.Capture(t, s.LAN, "eth1", filter("172.31.1.10"))
	speech{dst: "172.31.1.10", device: "vrf0", count: n, pause: time.Millisecond, uid: 65534}.say(t, s.client)
	c.Wait(n, patience)
	got := s.settled(t, n)
	same(t, "VRF", exact(t, c), got)
	list := s.table(t)
	f, err := list.row("vrf")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(f.Why, "bound to VRF vrf0: table 100") || f.Interface != "eth1" || f.Packets != n {
		t.Errorf("found %+v", f)
	}
	named(t, &f, true, 65534)
	stopped(t, d)
}

// TestLeakWakes: a packet that leaks makes the table be read at once, not at the
// next tick.
func TestLeakWakes(t *testing.T) {
	needs(t)
	s := newStub(t)
	d := s.daemon(t, "--log-level", "debug")
	const woken = `why="leak seen"`
	time.Sleep(time.Second) // what the start made due is done
	if strings.Contains(d.Output(), woken) {
		t.Fatalf("before any leak:\n%s", d.Output())
	}
	begin := time.Now()
	speech{dst: "172.31.1.10", device: "eth0", count: 1}.say(t, s.client)
	testenv.Eventually(t, patience, "the table is read", func() bool { return strings.Contains(d.Output(), woken) })
	t.Logf("read within %v", time.Since(begin))
	stopped(t, d)
}

// TestIncidents: routes that come and go under traffic. What they let out is
// counted exactly, and is theirs.
func TestIncidents(t *testing.T) {
	needs(t)
	s := newStub(t)
	d := s.daemon(t)
	c := s.Leaks(t, filter("172.31.1.10"))
	talking := speech{dst: "172.31.1.10", uid: 65534}.start(t, s.Client)
	time.Sleep(100 * time.Millisecond)
	const attacks = 60
	removed := func() (n int) { return s.status(t).Sessions[0].Removed }
	add := func() bool {
		return s.Client.Command("ip", "route", "add", "172.31.1.0/24", "via", "10.77.0.66", "proto", "dhcp").Run() == nil
	}
	for i := range attacks {
		testenv.Eventually(t, patience, "the route before has gone", add)
		if i%10 == 9 {
			testenv.Eventually(t, patience, "the removals", func() bool { return removed() > i })
		}
	}
	talking.Stop(t)
	c.Settle(300 * time.Millisecond)
	captured := exact(t, c)
	st := s.status(t)
	same(t, "all attacks", captured, st.Leaks.totals)
	if captured.Packets == 0 {
		t.Error("nothing leaked: nothing is proved")
	}
	var own totals
	exposed := 0
	for _, in := range st.Incidents {
		if in.Packets == nil {
			t.Fatalf("incident %d was not measured", in.ID)
		}
		if own.Packets += *in.Packets; *in.Packets > 0 {
			exposed++
			if len(in.Senders) != 1 || in.Senders[0].Process != talker || in.Senders[0].UID != 65534 {
				t.Errorf("incident %d names %+v", in.ID, in.Senders)
			}
		}
		own.Bytes += in.Bytes
	}
	same(t, "the incidents together", captured, own)
	t.Logf("%d packets leaked, in %d of %d incidents", captured.Packets, exposed, len(st.Incidents))
	stopped(t, d)
}

// TestTunnelVision: the attack by real programs. What was stolen, if anything, is
// what the incident says. (The packages e2e and testenv/demo show it without.)
func TestTunnelVision(t *testing.T) {
	needs(t, testenv.OpenVPN, testenv.Dnsmasq, testenv.DHClient)
	l := testenv.NewLab(t, testenv.LabOptions{})
	r := rig{l.Client, testenv.NewProgram(t, l.Client, "")}
	to := filter(testenv.TargetAddr.String())
	l.Connect(t)
	d := r.prog.Daemon(t, "--tunnel", "tun0", "--protect", "172.31.0.0/16", "--server", "203.0.113.10:1194/udp")
	r.enforcing(t)
	stolen, arrived := l.Stolen(t, to), l.Arrived(t, to)
	talking := speech{dst: testenv.TargetAddr.String()}.start(t, l.Client)
	l.DHCP(t, testenv.TunnelVision())
	testenv.DHCPClient{NS: l.Client, Device: "eth0"}.Start(t)
	testenv.Eventually(t, patience, "the attack's removal", func() bool { return r.status(t).Sessions[0].Removed > 0 })
	talking.Stop(t)
	stolen.Settle(300 * time.Millisecond)
	captured, st := exact(t, stolen), r.status(t)
	same(t, "TunnelVision", captured, st.Leaks.totals)
	var own totals
	for _, in := range st.Incidents {
		own.Packets += *in.Packets
		own.Bytes += in.Bytes
	}
	same(t, "its incident", captured, own)
	if exact(t, arrived).Packets == 0 {
		t.Error("nothing arrived at the target")
	}
	t.Logf("stolen: %v; incidents: %+v", captured, own)
	stopped(t, d)
}

// TestQuiet: a day's ordinary traffic is no leak.
func TestQuiet(t *testing.T) {
	needs(t, testenv.OpenVPN, testenv.Dnsmasq, testenv.Dhcpcd.Tool())
	l := testenv.NewLab(t, testenv.LabOptions{Push: []string{"redirect-gateway def1 ipv6", testenv.PushRoute(testenv.SiteNet), testenv.PushRoute(testenv.SiteNet6)}})
	r := rig{l.Client, testenv.NewProgram(t, l.Client, "")}
	l.DHCP(t)
	d := r.prog.Daemon(t)
	c := l.VPNClient()
	c.Hooks = hooks(r.prog)
	vpn := c.Start(t)
	vpn.WaitUp(t, 1)
	r.enforcing(t)
	dhcp := testenv.DHCPClient{NS: l.Client, Device: "eth0", Program: testenv.Dhcpcd}.Start(t)
	for range 3 {
		_ = dhcp.Signal(10) // SIGUSR1: renew
		l.Client.IP(t, "neigh flush dev eth0")
		if n, err := l.Client.Ping(testenv.TargetAddr, 3, time.Second); n != 3 {
			t.Errorf("%d of 3 pings answered: %v", n, err)
		}
		_, _ = l.Router.Ping(testenv.ClientAddr6, 1, time.Second) // neighbour discovery of both sides
		time.Sleep(300 * time.Millisecond)
	}
	vpn.Restart(t, 10)
	r.enforcing(t)
	if n, err := l.Client.Ping(testenv.TargetAddr, 3, time.Second); n != 3 {
		t.Errorf("after a reconnect: %d of 3 pings answered: %v", n, err)
	}
	if got := r.table(t); got.Packets != 0 {
		t.Errorf("ordinary traffic is said to have leaked: %+v", got)
	}
	// It would have been seen.
	speech{dst: testenv.TargetAddr.String(), device: "eth0", packet: mac(t, l.Attacker, "eth0"), count: 3}.say(t, l.Client)
	if got := r.settled(t, 3); got.Packets != 3 {
		t.Errorf("3 leaks are counted as %d", got.Packets)
	}
	stopped(t, d)
}

// TestSplitTunnel: what a split tunnel leaves to the LAN is none of its business,
// the server's address included.
func TestSplitTunnel(t *testing.T) {
	needs(t)
	s := newStub(t)
	d := s.daemon(t, "--server", "10.77.0.66:1194/udp")
	for _, dst := range []string{"10.77.0.66", "10.77.0.1", "fd77::66"} {
		c := s.Leaks(t, filter(dst))
		speech{dst: dst, count: 20}.say(t, s.Client)
		if c.Wait(20, patience); exact(t, c).Packets != 20 {
			t.Errorf("%s: not all packets left", dst)
		}
	}
	if got := s.table(t); got.Packets != 0 {
		t.Errorf("LAN traffic is said to have leaked: %+v", got)
	}
	stopped(t, d)
}

// TestServerIP: in a full tunnel only the tunnel's own transport may go to the
// server's address (TunnelCrack).
func TestServerIP(t *testing.T) {
	needs(t)
	s := newStub(t)
	d := s.prog.Daemon(t, "--tunnel", "tun0", "--protect", "0.0.0.0/1,128.0.0.0/1", "--server", "10.77.0.66:5000/udp")
	s.enforcing(t) // it has put the tunnel's routes itself
	c := s.Leaks(t, filter("10.77.0.66"))
	speech{dst: "10.77.0.66", count: 20}.say(t, s.Client)
	if c.Wait(20, patience); exact(t, c).Packets != 20 {
		t.Error("the transport does not pass")
	}
	if got := s.table(t); got.Packets != 0 {
		t.Errorf("the transport is said to have leaked: %+v", got)
	}
	to := testenv.To("10.77.0.66")
	to.Proto = 1
	c = s.Leaks(t, to)
	if n, err := s.Client.Ping(testenv.AttackerAddr, 4, time.Second); n != 4 {
		t.Fatalf("%d of 4 pings: %v", n, err)
	}
	same(t, "pings to the server", exact(t, c), s.settled(t, 4))
	list := s.table(t)
	if f, err := list.row("server"); err != nil || f.Packets != 4 {
		t.Errorf("found %+v, %v", f, err)
	}
	stopped(t, d)
}

// hooks makes OpenVPN call the program for all four of its scripts.
func hooks(p *testenv.Program) map[string]string {
	out := map[string]string{}
	for _, name := range []string{"up", "route-up", "route-pre-down", "down"} {
		out[name] = p.Bin + " hook openvpn --require --socket " + p.Socket
	}
	return out
}

var namesFor = flag.Duration("names-for", 3*time.Second, "how long TestManyNames sends")

// namesMemory is what the daemon may come to meanwhile, in KiB.
const namesMemory = 64 << 10

// TestManyNames: a process that has another name for each packet that leaks is
// one row, and fills neither log nor memory, however long it goes on. All of its
// packets are counted.
func TestManyNames(t *testing.T) {
	needs(t)
	s := newStub(t)
	d := s.daemon(t, "--on-leak", "drop")
	talking := speech{dst: "172.31.1.10", device: "eth0", rename: true, uid: 65534}.start(t, s.Client)
	time.Sleep(*namesFor) // the time is what is tried
	packets := sent(t, talking)
	s.settled(t, packets)
	list := s.table(t)
	if len(list.By) != 1 || list.Packets != packets || list.Dropped != packets || list.By[0].Process != fmt.Sprint("name", packets) {
		t.Errorf("%d of %d in %d rows: %+v", list.Packets, packets, len(list.By), list.By[:min(3, len(list.By))])
	}
	lines, memory := strings.Count(d.Output(), "msg=leak "), peak(t, d.Pid())
	t.Logf("%d packets and names in %v: %d lines, at most %d KiB", packets, *namesFor, lines, memory)
	if limit := 5 + int(namesFor.Minutes()); lines == 0 || lines > limit {
		t.Errorf("%d lines in the log, want 1 to %d", lines, limit)
	}
	if memory > namesMemory {
		t.Errorf("the daemon came to %d KiB, want %d at most", memory, namesMemory)
	}
	stopped(t, d)
}

// sent ends a talker, which says how many packets it sent.
func sent(t testing.TB, talking *testenv.Process) (n int) {
	t.Helper()
	talking.Stop(t)
	if _, err := fmt.Sscanf(talking.Output(), "sent %d", &n); err != nil || n == 0 {
		t.Fatalf("talker: %v: %s", err, talking.Output())
	}
	return n
}

// peak is the highest RSS of a process so far, in KiB.
func peak(t testing.TB, pid int) (kib int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		_, _ = fmt.Sscanf(line, "VmHWM: %d kB", &kib)
	}
	return kib
}

// TestTunnelComesAndGoes: what leaks while the tunnel is closing, away, and coming
// back is counted to the packet, though its session ends and begins meanwhile.
func TestTunnelComesAndGoes(t *testing.T) {
	for _, onLeak := range []string{"count", "drop"} {
		t.Run(onLeak, func(t *testing.T) {
			needs(t)
			s := newStub(t)
			d := s.daemon(t, "--on-leak", onLeak)
			c := s.Leaks(t, filter("172.31.1.10"))
			talking := speech{dst: "172.31.1.10", pause: time.Millisecond}.start(t, s.Client)
			tun := s.Tun
			for range 3 {
				before := c.Packets()
				if err := tun.Close(); err != nil {
					t.Fatal(err)
				}
				c.Wait(before+50, patience)
				tun = testenv.OpenTun(t, s.Client, "tun0", testenv.Prefixes("10.88.0.2/24", "fd88::2/64")...)
				s.Client.IP(t, "route replace 172.31.0.0/16 dev tun0")
				s.enforcing(t)
			}
			talking.Stop(t)
			c.Settle(200 * time.Millisecond)
			captured := exact(t, c)
			got := s.leaked(t)
			if captured.Packets < 150 {
				t.Errorf("only %d packets left", captured.Packets)
			}
			got.Packets -= got.Dropped // what was stopped is in no capture
			if int(captured.Packets) != got.Packets {
				t.Errorf("%d packets were captured, %d counted: %+v", captured.Packets, got.Packets, s.table(t).By)
			}
			stopped(t, d)
		})
	}
}
