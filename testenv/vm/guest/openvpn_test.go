//go:build linux && vm

package guest

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// openvpn writes a client's configuration with the packaged hooks, for the unit
// openvpn-client@lab.
func (r *rig) openvpn(lines ...string) {
	r.t.Helper()
	hooks, err := os.ReadFile("/payload/openvpn.conf")
	if err != nil {
		r.t.Fatal(err)
	}
	conf := append([]string{"client", "dev tun0", "dev-type tun", "proto udp4", "disable-dco", "remote-cert-tls server",
		fmt.Sprintf("remote %s 1194", testenv.ServerAddr), "connect-retry 1 2", "explicit-exit-notify 1", "verb 3", string(hooks)}, lines...)
	for name, path := range map[string]string{"ca": r.PKI.CA, "cert": r.PKI.ClientCert, "key": r.PKI.ClientKey} {
		pem, err := os.ReadFile(path)
		if err != nil {
			r.t.Fatal(err)
		}
		conf = append(conf, "<"+name+">", strings.TrimSpace(string(pem)), "</"+name+">")
	}
	r.write("/etc/openvpn/client/lab.conf", strings.Join(conf, "\n")+"\n", 0o600)
}

// TestOpenVPNUnit: OpenVPN under its own unit with the packaged hooks. A real
// DHCP server pushes a longer route by option 121; it goes, comes back never,
// and the disconnect leaves the table as it was.
func TestOpenVPNUnit(t *testing.T) {
	r := newRig(t, testenv.LabOptions{Unconfigured: true})
	dhcp := r.DHCP(t)
	lease := testenv.DHCPClient{NS: r.Client, Device: "eth0"}.Start(t)
	before := r.Client.MainTable(t)
	r.unit("on_leak: drop\n")
	r.openvpn()
	r.sh("systemctl start openvpn-client@lab")
	r.enforcing()
	r.pinned()
	r.arrives("connected")

	lease.Kill() // the address stays
	dhcp.Stop(t)
	r.DHCP(t, testenv.TunnelVision())
	testenv.DHCPClient{NS: r.Client, Device: "eth0"}.Start(t)
	if !testenv.Until(patience, func() bool { return r.status().Sessions[0].Removed > 0 }) {
		t.Errorf("option 121's route was never removed:\n%s", r.Client.MainTable(t))
	}
	r.arrives("attacked by option 121")
	r.none("bound to the LAN's device", func() {})

	r.sh("systemctl stop openvpn-client@lab")
	if !testenv.Until(patience, func() bool { return r.Client.MainTable(t) == before }) {
		t.Errorf("the table after the disconnect is\n%s\nwant\n%s", r.Client.MainTable(t), before)
	}
	r.open("after the disconnect")
}

// TestOpenVPNGuard: OpenVPN is killed, and nothing gets out until it is back.
func TestOpenVPNGuard(t *testing.T) {
	r := newRig(t, testenv.LabOptions{})
	r.open("before culvert")
	r.unit("on_loss: guard\n")
	r.openvpn()
	r.sh("systemctl start openvpn-client@lab")
	r.enforcing()
	r.pinned()
	r.none("OpenVPN is killed", func() {
		r.sh("systemctl kill -s KILL openvpn-client@lab")
		r.eventually("the guard holds", `culvert status --json | grep -q '"holding"'`)
	})
	r.none("the daemon is killed without the tunnel", func() { r.killed("KILL") })
	r.none("the daemon is stopped without the tunnel", func() { r.sh("systemctl stop culvert") })
	r.none("both come back", func() {
		r.sh("systemctl start culvert; systemctl start openvpn-client@lab")
		r.enforcing()
	})
	r.arrives("connected again")
}

// ordinary sends to the target as any program does, by whichever route there is,
// until the function that it returns is called.
func (r *rig) ordinary() (end func()) {
	r.t.Helper()
	blast, _ := site()
	blast.Rate, blast.Count = 100, 1<<30
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { _, err := r.Client.Blast(ctx, blast); done <- err }()
	return func() {
		r.t.Helper()
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("ordinary sender: %v", err)
		}
	}
}

// link is the interface's number, "" when it is not there.
func (r *rig) link(name string) string {
	out, err := try("cat /sys/class/net/" + name + "/ifindex")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(out)
}

// silence lets the server say nothing until OpenVPN has closed its tunnel for that,
// and then speak again until the tunnel is another.
func (r *rig) silence() {
	r.t.Helper()
	was := r.link("tun0")
	if err := r.VPNServer.Signal(syscall.SIGSTOP); err != nil {
		r.t.Fatal(err)
	}
	defer r.VPNServer.Signal(syscall.SIGCONT) //nolint:errcheck // the server is this case's
	r.eventually("OpenVPN restarts", `journalctl -q --no-pager -u openvpn-client@lab | grep -q 'ping-restart'`)
	r.eventually("the guard holds", `[ ! -e /sys/class/net/tun0 ] && culvert status --json | grep -q '"holding"'`)
	r.sessions(1)
	if err := r.VPNServer.Signal(syscall.SIGCONT); err != nil {
		r.t.Fatal(err)
	}
	if !testenv.Until(patience, func() bool { now := r.link("tun0"); return now != "" && now != was }) {
		r.t.Errorf("the tunnel does not come back; it was %q and is %q", was, r.link("tun0"))
	}
	r.enforcing()
}

// TestOpenVPNSilence: the server goes silent. OpenVPN closes its tunnel (ping-restart,
// without persist-tun) and makes it anew once it is heard. The packaged hooks are told of
// a close, and keep the session: under on_loss: guard nothing gets out meanwhile, neither
// what is bound to the LAN's device nor what follows the routes.
func TestOpenVPNSilence(t *testing.T) {
	r := newRig(t, testenv.LabOptions{})
	r.open("before culvert")
	r.unit("on_loss: guard\n")
	r.openvpn("pull-filter ignore ping", "ping 1", "ping-restart 4")
	r.sh("systemctl start openvpn-client@lab")
	r.enforcing()
	r.pinned()
	pid := r.sh("systemctl show -P MainPID openvpn-client@lab")
	r.none("the server is silent", func() {
		end := r.ordinary()
		defer end()
		r.silence()
	})
	if now := r.sh("systemctl show -P MainPID openvpn-client@lab"); now != pid {
		t.Errorf("OpenVPN was process %s and is %s: it has ended, not restarted", pid, now)
	}
	r.arrives("connected again")
	r.sh("systemctl stop openvpn-client@lab")
	r.sessions(0)
	r.open("after the disconnect")
}
