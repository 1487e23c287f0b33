//go:build linux

package e2e

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// clients are the DHCP clients that take the routes of option 121.
var clients = []struct {
	name    string
	program testenv.DHCPProgram
	renews  bool // SIGUSR1 puts the routes back
}{
	{"dhclient", testenv.ISCDhclient, false},
	{"udhcpc", testenv.BusyboxStatic, true},
	{"dhcpcd", testenv.Dhcpcd, true},
}

// TestTunnelVision: option 121 of a real DHCP server against a real OpenVPN,
// with the session opened by the daemon's own flags. The attack stood before
// the daemon came, so it is given back at disconnect.
func TestTunnelVision(t *testing.T) {
	for _, c := range clients {
		t.Run(c.name, func(t *testing.T) {
			needs(t, testenv.OpenVPN, testenv.Dnsmasq, c.program.Tool())
			l := newLab(t, testenv.LabOptions{Unconfigured: true})
			l.DHCP(t, testenv.TunnelVision())
			dhcp := testenv.DHCPClient{NS: l.Client, Device: "eth0", Program: c.program}.Start(t)
			leaves(t, l.Client, testenv.TargetAddr, "eth0")
			before := l.Client.MainTable(t)
			vpn := l.Connect(t)
			l.loses(t, "connected", testenv.TargetAddr)

			d := l.prog.Daemon(t, "--tunnel", "tun0", "--protect", "172.31.0.0/16", "--server", "203.0.113.10:1194/udp")
			enforcing(t, l.prog)
			l.protects(t, "enforcing", testenv.TargetAddr)
			if c.renews {
				l.renew(t, dhcp)
				l.protects(t, "after a renewal", testenv.TargetAddr)
			}
			if got := statusOf(t, l.prog).Sessions[0]; len(got.Held) != 1 || !hasWords(got.Held[0].Route, "172.31.1.0/24 via 10.77.0.66 dev eth0") {
				t.Errorf("held: %v, want the attack's route", got.Held)
			}

			vpn.Stop(t)
			sameTable(t, l.Client, "after the disconnect", before)
			stopped(t, d)
			sameTable(t, l.Client, "after the daemon's end", before)
		})
	}
}

// renew makes the DHCP client put its routes back, and waits for their removal.
func (l *lab) renew(t *testing.T, dhcp *testenv.Process) {
	t.Helper()
	n := statusOf(t, l.prog).removed()
	if err := dhcp.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "the renewed route's removal", func() bool {
		return statusOf(t, l.prog).removed() > n
	})
	leaves(t, l.Client, testenv.TargetAddr, "tun0")
}

// TestTunnelVisionWhileConnected: the lease comes while the session stands, so
// its route is an attack that does not come back.
func TestTunnelVisionWhileConnected(t *testing.T) {
	needs(t, testenv.OpenVPN, testenv.Dnsmasq, testenv.DHClient)
	l := newLab(t, testenv.LabOptions{Unconfigured: true})
	honest := l.DHCP(t)
	dhclient := testenv.DHCPClient{NS: l.Client, Device: "eth0"}
	first := dhclient.Start(t)
	before := l.Client.MainTable(t)
	d := l.prog.Daemon(t, "--tunnel", "tun0", "--protect", "172.31.0.0/16", "--server", "203.0.113.10:1194/udp")
	vpn := l.Connect(t)
	enforcing(t, l.prog)
	l.protects(t, "before the attack", testenv.TargetAddr)

	first.Kill()
	honest.Kill()
	l.DHCP(t, testenv.TunnelVision())
	dhclient.Start(t)
	testenv.Eventually(t, patience, "the attack", func() bool { return statusOf(t, l.prog).removed() > 0 })
	l.protects(t, "after the attack", testenv.TargetAddr)
	if reason, _, ok := statusOf(t, l.prog).incident("removed", "172.31.1.0/24 via 10.77.0.66"); !ok || !strings.Contains(reason, "longer than 172.31.0.0/16") {
		t.Errorf("the incident says %q", reason)
	}
	vpn.Stop(t)
	sameTable(t, l.Client, "after the disconnect", before)
	stopped(t, d)
}

// hooks makes OpenVPN call the program for all four of its scripts.
func (l *lab) hooks(flags ...string) map[string]string {
	command := strings.Join(append([]string{l.prog.Bin, "hook openvpn --socket", l.prog.Socket}, flags...), " ")
	return map[string]string{"up": command, "route-up": command, "route-pre-down": command, "down": command}
}

// hooked starts OpenVPN with the program's hooks and waits until it is up.
func (l *lab) hooked(t *testing.T, change ...func(*testenv.OpenVPNClient)) *testenv.VPN {
	t.Helper()
	c := l.VPNClient()
	c.Hooks = l.hooks("--require")
	for _, f := range change {
		f(&c)
	}
	vpn := c.Start(t)
	vpn.WaitUp(t, 1)
	return vpn
}

// TestTunnelVisionHooks: the same attack, both families, with the session
// opened and ended by OpenVPN itself.
func TestTunnelVisionHooks(t *testing.T) {
	needs(t, testenv.OpenVPN, testenv.Dnsmasq, testenv.DHClient)
	l := newLab(t, testenv.LabOptions{})
	l.DHCP(t, testenv.TunnelVision())
	testenv.DHCPClient{NS: l.Client, Device: "eth0"}.Start(t)
	l.Client.AcceptRA(t, "eth0")
	l.Advertise().Send(t)
	leaves(t, l.Client, testenv.TargetAddr6, "eth0")
	before := l.Client.MainTable(t)
	both := []netip.Addr{testenv.TargetAddr, testenv.TargetAddr6}
	plain := l.Connect(t)
	l.loses(t, "without hooks", both...)
	plain.Stop(t)
	sameTable(t, l.Client, "after a plain connection", before)

	d := l.prog.Daemon(t)
	vpn := l.hooked(t)
	enforcing(t, l.prog)
	l.protects(t, "with hooks", both...)
	s := statusOf(t, l.prog).Sessions[0]
	want := "10.88.0.0/24 172.31.0.0/16 fd31::/48 fd88::/64"
	if got := strings.Join(s.Protected, " "); s.Tunnel != "tun0" || got != want {
		t.Errorf("the session on %s protects %s, want %s", s.Tunnel, got, want)
	}
	if got := strings.Join(s.Excluded, " "); got != "203.0.113.10/32" {
		t.Errorf("it excludes %s, want the server", got)
	}
	if len(s.Held) != 2 {
		t.Errorf("held: %v, want both attacks", s.Held)
	}
	vpn.Stop(t)
	if left := statusOf(t, l.prog).Sessions; len(left) != 0 {
		t.Errorf("after the down hook: %v", left)
	}
	sameTable(t, l.Client, "after the disconnect", before)
	stopped(t, d)
}

// TestHookDaemonAway: without a daemon the VPN comes up and is warned of, or
// with --require does not come up.
func TestHookDaemonAway(t *testing.T) {
	needs(t, testenv.OpenVPN)
	l := newLab(t, testenv.LabOptions{})
	before := l.Client.MainTable(t)
	vpn := l.hooked(t, func(c *testenv.OpenVPNClient) { c.Hooks = l.hooks() })
	if !strings.Contains(vpn.Output(), "culvert: warning: up: tun0: ") {
		t.Errorf("no warning from the hook:\n%s", vpn.Output())
	}
	vpn.Stop(t)

	c := l.VPNClient()
	c.Hooks = l.hooks("--require")
	refused := c.Start(t)
	if code, err := refused.Wait(patience); err != nil || code == 0 {
		t.Errorf("OpenVPN ended with %d, %v; want a failure of its up script:\n%s", code, err, refused.Output())
	}
	sameTable(t, l.Client, "after the refusal", before)
}
