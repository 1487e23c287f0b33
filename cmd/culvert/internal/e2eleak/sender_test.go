//go:build linux

package e2eleak

import (
	"strings"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// TestServerSender: where the tunnel's own packets go, those of others are leaks.
func TestServerSender(t *testing.T) {
	const user, server, burst = 12345, "10.77.0.66", 20
	for _, tt := range []struct {
		name      string
		from      []string
		container bool
		uid       uint32
		passes    bool
		why       string
	}{
		{"tun, this host", nil, false, user, true, ""},
		{"tun, a container", nil, true, 0, false, "forwarded to where"},
		{"anybody, a container", []string{"--server-from", "any"}, true, 0, true, ""},
		{"root, root", []string{"--server-from", "uid:root"}, false, 0, true, ""},
		{"root, another user", []string{"--server-from", "uid:root"}, false, user, false, "not from who sends"},
		{"root and another user", []string{"--server-from", "uid:root,uid:12345"}, false, user, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needs(t)
			s := newStub(t)
			if tt.container {
				container(t, s)
				s.Client.IP(t, "rule del iif cont0")
			}
			d := s.prog.Daemon(t, append([]string{
				"--tunnel", "tun0", "--protect", "0.0.0.0/1,128.0.0.0/1", "--exclude", "192.168.9.0/24", "--server", server + ":5000/udp", "--on-leak", "drop",
			}, tt.from...)...)
			s.enforcing(t)
			c := s.Leaks(t, filter(server))
			speech{dst: server, count: burst, uid: tt.uid}.say(t, s.client)
			if tt.passes {
				if c.Wait(burst, patience); exact(t, c).Packets != burst || s.table(t).Packets != 0 {
					t.Errorf("the transport does not pass: %+v", s.table(t))
				}
				stopped(t, d)
				return
			}
			if got := s.settled(t, burst); got.Packets != burst || got.Dropped != burst {
				t.Errorf("counted %+v of %d", got, burst)
			}
			list := s.table(t)
			if f, err := list.row("server"); err != nil || !strings.Contains(f.Why, tt.why) {
				t.Errorf("found %+v, %v", f, err)
			}
			if out := exact(t, c); out.Packets != 0 {
				t.Errorf("%d of %d got out", out.Packets, burst)
			}
			stopped(t, d)
		})
	}
}

// TestSenderOpenVPN: a real OpenVPN, full tunnel, whose user alone may send to its server: all goes on, and nobody else's
// packets get there.
func TestSenderOpenVPN(t *testing.T) {
	const burst = 20
	needs(t, testenv.OpenVPN)
	l := testenv.NewLab(t, testenv.LabOptions{Push: []string{"redirect-gateway def1", testenv.PushRoute(testenv.SiteNet)}})
	r := rig{l.Client, testenv.NewProgram(t, l.Client, "")}
	d := r.prog.Daemon(t, "--on-leak", "drop")
	c := l.VPNClient()
	c.Hooks = hooks(r.prog)
	for name := range c.Hooks {
		c.Hooks[name] += " --server-from uid:root"
	}
	vpn := c.Start(t)
	vpn.WaitUp(t, 1)
	r.enforcing(t)
	arrived := l.Arrived(t, filter(testenv.TargetAddr.String()))
	speech{dst: testenv.TargetAddr.String(), count: burst}.say(t, l.Client)
	if n := arrived.Wait(burst, patience).Packets; n != burst {
		t.Errorf("the tunnel carried %d of %d", n, burst)
	}
	if got := r.table(t); got.Packets != 0 {
		t.Errorf("the tunnel's own packets are said to leak: %+v", got)
	}
	shout := "for i in $(seq 20); do echo hello > /dev/udp/203.0.113.10/1194; done; true"
	if out, err := l.Client.Command("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", "bash", "-c", shout).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := r.settled(t, burst); got.Packets != burst || got.Dropped != burst {
		t.Errorf("another user's packets to the server: %+v of %d", got, burst)
	}
	vpn.Stop(t)
	stopped(t, d)
}
