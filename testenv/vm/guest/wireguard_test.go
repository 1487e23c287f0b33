//go:build linux && vm

package guest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// wireguard makes the server's end of a kernel WireGuard tunnel, and the client's
// file for wg-quick with culvert in its hooks.
func (r *rig) wireguard(allowed, up string) {
	r.t.Helper()
	keys := make([]string, 2)
	for i := range keys {
		keys[i] = strings.TrimSpace(r.sh("wg genkey"))
	}
	public := func(key string) string { return strings.TrimSpace(r.sh("echo %s | wg pubkey", key)) }
	r.Server.IP(r.t, "link add wg0 type wireguard")
	r.write("/run/wg-server.conf", fmt.Sprintf("[Interface]\nPrivateKey = %s\nListenPort = 51820\n[Peer]\nPublicKey = %s\nAllowedIPs = 10.99.0.2/32\n",
		keys[0], public(keys[1])), 0o600)
	r.sh("ip netns exec %s wg setconf wg0 /run/wg-server.conf", r.Server.Name())
	r.Server.IP(r.t, "addr add 10.99.0.1/24 dev wg0")
	r.Server.IP(r.t, "link set wg0 up")
	r.write("/etc/wireguard/wg0.conf", fmt.Sprintf(`[Interface]
PrivateKey = %s
Address = 10.99.0.2/24
PostUp = culvert up --tunnel %%i --server %s:51820/udp %s
PreDown = culvert down --tunnel %%i
[Peer]
PublicKey = %s
AllowedIPs = %s
Endpoint = %s:51820
`, keys[1], testenv.ServerAddr, up, public(keys[0]), allowed, testenv.ServerAddr), 0o600)
}

// attack adds the longer route by way of the LAN, and waits until it is gone.
func (r *rig) attack() {
	r.t.Helper()
	r.sh("ip route add %s via %s dev eth0 onlink", testenv.AttackNet, testenv.AttackerAddr)
	if !testenv.Until(patience, func() bool { return !strings.Contains(r.Client.MainTable(r.t), testenv.AttackNet.String()) }) {
		r.t.Errorf("the attacker's route stays:\n%s", r.Client.MainTable(r.t))
	}
}

// attacked is what every tunnel must stand: traffic arrives before and after a
// longer route, what is bound to the LAN's device does not leave, and the tunnel's
// own packets are no leaks.
func (r *rig) attacked() {
	r.t.Helper()
	r.enforcing()
	r.pinned()
	r.arrives("connected")
	r.attack()
	r.arrives("attacked by a longer route")
	if st := r.status(); st.Leaks.Packets != 0 {
		r.t.Errorf("%d packets are called leaks, and nothing has leaked:\n%s", st.Leaks.Packets, r.sh("culvert leaks || true"))
	}
	r.none("bound to the LAN's device", func() {})
}

// restored insists on the table that stood before the tunnel.
func (r *rig) restored(before string) {
	r.t.Helper()
	if !testenv.Until(patience, func() bool { return r.Client.MainTable(r.t) == before }) {
		r.t.Errorf("the table after the disconnect is\n%s\nwant\n%s", r.Client.MainTable(r.t), before)
	}
	r.open("after the disconnect")
}

// TestWireGuardSplit: wg-quick's unit, the kernel's WireGuard, the site only.
func TestWireGuardSplit(t *testing.T) {
	r := newRig(t, testenv.LabOptions{NoVPN: true})
	before := r.Client.MainTable(t)
	r.unit("on_leak: drop\n")
	r.wireguard("10.99.0.0/24, "+testenv.SiteNet.String(), "--protect "+testenv.SiteNet.String())
	r.sh("systemctl start wg-quick@wg0")
	r.attacked()
	r.sh("systemctl stop wg-quick@wg0")
	r.restored(before)
}

// TestWireGuardFull: all of IPv4, which wg-quick keeps in a table of its own.
func TestWireGuardFull(t *testing.T) {
	r := newRig(t, testenv.LabOptions{NoVPN: true})
	before := r.Client.MainTable(t)
	r.unit("on_leak: drop\n")
	r.wireguard("0.0.0.0/0", "--protect 0.0.0.0/0 --other-table 0.0.0.0/0")
	r.sh("systemctl start wg-quick@wg0")
	r.attacked()
	r.sh("systemctl stop wg-quick@wg0")
	r.restored(before)
}
