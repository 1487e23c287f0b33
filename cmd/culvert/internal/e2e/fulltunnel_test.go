//go:build linux

package e2e

import (
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-project/culvert/testenv"
)

// full is what a server pushes that wants all traffic.
var full = []string{"redirect-gateway def1 ipv6"}

// alive pings the target, which is behind the tunnel, after the gateway has
// forgotten the client's hardware address, which under a strict reverse-path
// filter it is not told without a route to it, and after the client has
// forgotten the gateway's.
func (l *lab) alive(t *testing.T, when string) {
	t.Helper()
	forget := []struct {
		who, device string
		n           *testenv.NS
	}{{"the gateway", "lan", l.Router}, {"the client", "eth0", l.Client}}
	for _, f := range forget {
		for _, dst := range []netip.Addr{testenv.TargetAddr, testenv.TargetAddr6} {
			f.n.IP(t, "neigh flush dev "+f.device)
			if n, err := l.Client.Ping(dst, 1, 3*time.Second); n == 0 {
				t.Errorf("%s: the tunnel is dead: %s does not answer after %s forgot its neighbours: %v\n%s", when, dst, f.who, err, l.Client.MainTable(t))
			}
		}
	}
}

// noLAN checks that packets to a host of the LAN do not go there by eth0. (The
// VPN's server may bring them back.)
func (l *lab) noLAN(t *testing.T, when string) {
	t.Helper()
	for _, dst := range []netip.Addr{testenv.AttackerAddr, testenv.AttackerAddr6} {
		if _, out, _ := l.send(t, dst, 0, 0); out != 0 {
			t.Errorf("%s: of %d packets to %s %d left by eth0", when, burst, dst, out)
		}
	}
}

// TestFullTunnel: redirect-gateway by a real OpenVPN under each reverse-path
// filter. The LAN goes out, the way to the server does not.
func TestFullTunnel(t *testing.T) {
	for _, rpFilter := range []int{0, 1, 2} {
		t.Run("rp_filter "+strconv.Itoa(rpFilter), func(t *testing.T) {
			needs(t, testenv.OpenVPN)
			l := newLab(t, testenv.LabOptions{Push: full})
			l.Client.ReversePath(t, rpFilter)
			before := l.Client.MainTable(t)
			plain := l.Connect(t)
			for _, lan := range []netip.Addr{testenv.AttackerAddr, testenv.AttackerAddr6} {
				l.loses(t, "without culvert", lan)
			}
			plain.Stop(t)
			sameTable(t, l.Client, "after a plain connection", before)

			d := l.prog.Daemon(t)
			vpn := l.hooked(t)
			enforcing(t, l.prog)
			l.alive(t, "enforcing")
			l.noLAN(t, "enforcing")
			l.serverRouteDeleted(t)
			l.hostileLAN(t)
			vpn.Stop(t)
			sameTable(t, l.Client, "after the disconnect", before)
			stopped(t, d)
		})
	}
}

// serverRouteDeleted: somebody takes away the way to the VPN server.
func (l *lab) serverRouteDeleted(t *testing.T) {
	t.Helper()
	l.Client.IP(t, "route flush 203.0.113.10")
	leaves(t, l.Client, testenv.ServerAddr, "eth0")
	l.alive(t, "the server's route was deleted")
	l.Client.IP(t, "route flush 10.77.0.1")
	leaves(t, l.Client, testenv.RouterAddr, "eth0")
	l.alive(t, "the gateway's route was deleted")
}

// hostileLAN: an attack like any other, against 0.0.0.0/1 and 2000::/4.
func (l *lab) hostileLAN(t *testing.T) {
	t.Helper()
	n := statusOf(t, l.prog).removed()
	l.Client.IP(t, "route add 172.31.1.0/24 via 10.77.0.66 dev eth0 onlink")
	l.Client.IP(t, "-6 route add fd31:0:0:1::/64 dev eth0 via "+l.Attacker.LinkLocal(t, "eth0").String())
	testenv.Eventually(t, patience, "the attack's removal", func() bool { return statusOf(t, l.prog).removed() >= n+2 })
	l.protects(t, "under attack", testenv.TargetAddr, testenv.TargetAddr6)
}

// TestFullTunnelSignals: what OpenVPN does on its signals, and the session with
// it.
func TestFullTunnelSignals(t *testing.T) {
	for name, persist := range map[string]bool{"persist-tun": true, "new device": false} {
		t.Run(name, func(t *testing.T) {
			needs(t, testenv.OpenVPN)
			l := newLab(t, testenv.LabOptions{Push: full})
			l.Client.ReversePath(t, 1)
			before := l.Client.MainTable(t)
			d := l.prog.Daemon(t)
			vpn := l.hooked(t, func(c *testenv.OpenVPNClient) { c.PersistTun = persist })
			enforcing(t, l.prog)
			for _, sig := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGHUP, syscall.SIGUSR1} {
				vpn.Restart(t, sig)
				enforcing(t, l.prog)
				l.alive(t, sig.String())
				l.noLAN(t, sig.String())
			}
			vpn.Kill()
			testenv.Eventually(t, patience, "the session's end", func() bool { return len(statusOf(t, l.prog).Sessions) == 0 })
			l.Client.IP(t, "route flush 203.0.113.10") // OpenVPN's own, which it could not withdraw
			sameTable(t, l.Client, "after SIGKILL", before)
			stopped(t, d)
			sameTable(t, l.Client, "after the daemon's end", before)
		})
	}
}

// TestFullTunnelDaemonRestarted: the daemon is killed and comes again under a
// living tunnel, with the session in its flags.
func TestFullTunnelDaemonRestarted(t *testing.T) {
	needs(t, testenv.OpenVPN)
	l := newLab(t, testenv.LabOptions{Push: full})
	l.Client.ReversePath(t, 1)
	before := l.Client.MainTable(t)
	flags := []string{"--tunnel", "tun0", "--protect", "0.0.0.0/1,128.0.0.0/1,::/3,2000::/4,3000::/4,fc00::/7",
		"--server", "203.0.113.10:1194/udp"}
	first := l.prog.Daemon(t, flags...)
	vpn := l.Connect(t)
	enforcing(t, l.prog)
	l.alive(t, "enforcing")
	first.Kill()
	l.noLAN(t, "with the daemon dead")
	second := l.prog.Daemon(t, flags...)
	enforcing(t, l.prog)
	l.alive(t, "with the daemon back")
	l.noLAN(t, "with the daemon back")
	vpn.Stop(t)
	sameTable(t, l.Client, "after the disconnect", before)
	stopped(t, second)
}

// TestFullTunnelVariants: other ways to want it all.
func TestFullTunnelVariants(t *testing.T) {
	for name, opts := range map[string]testenv.LabOptions{
		"TCP":            {Push: full, TCP: true},
		"IPv6 transport": {Push: full, Over6: true},
		"net_gateway":    {Push: append([]string{"route 203.0.113.77 255.255.255.255 net_gateway"}, full...)},
		"no def1":        {Push: []string{"redirect-gateway ipv6"}},
	} {
		t.Run(name, func(t *testing.T) {
			needs(t, testenv.OpenVPN)
			l := newLab(t, opts)
			before := l.Client.MainTable(t)
			d := l.prog.Daemon(t)
			vpn := l.hooked(t)
			enforcing(t, l.prog)
			l.alive(t, name)
			l.noLAN(t, name)
			if excluded := strings.Join(statusOf(t, l.prog).Sessions[0].Excluded, " "); name == "net_gateway" {
				leaves(t, l.Client, netip.MustParseAddr("203.0.113.77"), "eth0")
				if !hasWords(excluded, "203.0.113.77/32") {
					t.Errorf("excluded: %s", excluded)
				}
			}
			vpn.Stop(t)
			sameTable(t, l.Client, "after the disconnect", before)
			stopped(t, d)
		})
	}
}
