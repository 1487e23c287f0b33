//go:build linux && vm

package guest

import (
	"fmt"
	"os"
	"strings"
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
