//go:build linux

package e2eleak

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-project/culvert/testenv"
)

// ending is a way for a real OpenVPN to lose its connection.
type ending struct {
	name    string
	restart bool // it is made again by the same process
	do      func(t *testing.T, g *guarded, vpn *testenv.VPN)
}

// endings are in the order that one client can go through: an end is the last of it.
var endings = []ending{
	{"sigusr1", true, signalled(syscall.SIGUSR1)},
	{"sighup", true, signalled(syscall.SIGHUP)},
	{"ping-restart", true, unheard},
	{"sigterm", false, signalled(syscall.SIGTERM)},
	{"sigint", false, signalled(syscall.SIGINT)},
	{"ping-exit", false, unheard},
}

func signalled(s syscall.Signal) func(*testing.T, *guarded, *testenv.VPN) {
	return func(t *testing.T, _ *guarded, vpn *testenv.VPN) {
		if err := vpn.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
}

// unheard lets the server say nothing for as long as it takes.
func unheard(t *testing.T, g *guarded, vpn *testenv.VPN) {
	if err := g.VPNServer.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer g.VPNServer.Signal(syscall.SIGCONT) //nolint:errcheck // the server is this test's
	vpn.WaitOutput(t, "Inactivity timeout", 1, patience)
	time.Sleep(300 * time.Millisecond) // that the tunnel is away for
}

// TestOpenVPNSignals: what ends a session is the end of OpenVPN, not a restart, told
// by the real program to the hooks as they are shipped: with and without persist-tun
// and up-restart, for both ways to lose a tunnel. Under a guard nothing that is
// protected leaves while it restarts.
func TestOpenVPNSignals(t *testing.T) {
	for _, onLoss := range []string{"guard", "restore"} {
		for _, options := range []string{"", "persist-tun", "persist-tun up-restart"} {
			t.Run(onLoss+" "+options, func(t *testing.T) {
				needs(t, testenv.OpenVPN)
				l := testenv.NewLab(t, testenv.LabOptions{})
				g := &guarded{rig: rig{l.Client, testenv.NewProgram(t, l.Client, "")}, Lab: l, onLoss: onLoss}
				g.start(t)
				talking := (*testenv.Process)(nil)
				for _, pings := range []string{"ping-restart 3", "ping-exit 3"} {
					vpn := g.connectWith(t, options, pings)
					if talking == nil {
						talking = speech{dst: testenv.TargetAddr.String()}.start(t, l.Client)
					}
					g.goThrough(t, vpn, pings)
				}
				vpn := g.connectWith(t, options, "ping-restart 60")
				g.check(t, "sigint", false, vpn, signalled(syscall.SIGINT))
				talking.Stop(t)
				stopped(t, g.daemon)
			})
		}
	}
}

// TestOpenVPNReset: over TCP, when the server starts anew: OpenVPN's connection-reset.
func TestOpenVPNReset(t *testing.T) {
	needs(t, testenv.OpenVPN)
	l := testenv.NewLab(t, testenv.LabOptions{TCP: true})
	g := &guarded{rig: rig{l.Client, testenv.NewProgram(t, l.Client, "")}, Lab: l, onLoss: "guard"}
	g.start(t)
	vpn := g.connectWith(t, "", "ping-restart 60")
	talking := speech{dst: testenv.TargetAddr.String()}.start(t, l.Client)
	g.check(t, "connection-reset", true, vpn, func(t *testing.T, g *guarded, vpn *testenv.VPN) {
		if err := g.VPNServer.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		vpn.WaitOutput(t, `connection-reset`, 1, patience)
	})
	talking.Stop(t)
	stopped(t, g.daemon)
}

// goThrough lets a client lose its connection in all ways that its pings allow.
func (g *guarded) goThrough(t *testing.T, vpn *testenv.VPN, pings string) {
	t.Helper()
	for _, e := range endings {
		switch {
		case e.name == "sigint": // has a client of its own
		case strings.HasPrefix(pings, "ping-restart") && e.name == "ping-exit":
		case strings.HasPrefix(pings, "ping-exit") && e.name != "ping-exit":
		default:
			g.check(t, e.name, e.restart, vpn, e.do)
		}
	}
}

// check lets a connection be lost and looks what became of its session.
func (g *guarded) check(t *testing.T, name string, restart bool, vpn *testenv.VPN, lose func(*testing.T, *guarded, *testenv.VPN)) {
	t.Helper()
	ups := vpn.Ups()
	out := g.Leaks(t, filter(testenv.TargetAddr.String()))
	lose(t, g, vpn)
	if !restart {
		if code, err := vpn.Wait(patience); code != 0 || err != nil {
			t.Errorf("%s: OpenVPN ends with %d, %v", name, code, err)
		}
		testenv.Eventually(t, patience, name+": the session ends", func() bool { return len(g.status(t).Sessions) == 0 })
		_ = exact(t, out)
		return
	}
	vpn.WaitUp(t, ups+1)
	g.enforcing(t)
	got := exact(t, out)
	if g.onLoss == "guard" && got.Packets != 0 {
		t.Errorf("%s: %d packets got out while OpenVPN was restarting", name, got.Packets)
	}
	t.Logf("%s: %d packets got out", name, got.Packets)
}

// connectWith starts a client with the hooks and options.
func (g *guarded) connectWith(t *testing.T, options, pings string) *testenv.VPN {
	t.Helper()
	c := g.VPNClient()
	c.Hooks = hooks(g.prog)
	c.Config = append(c.Config, "pull-filter ignore ping", "ping 1", pings)
	c.PersistTun = strings.Contains(options, "persist-tun")
	if strings.Contains(options, "up-restart") {
		c.Config = append(c.Config, "up-restart")
	}
	vpn := c.Start(t)
	vpn.WaitUp(t, 1)
	g.enforcing(t)
	return vpn
}
