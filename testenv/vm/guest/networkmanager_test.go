//go:build linux && vm

package guest

import (
	"fmt"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// dispatcher opens and ends sessions for NetworkManager's VPNs, whose OpenVPN
// plugin runs no hooks of the user's.
const dispatcher = `#!/bin/sh
case $2 in
vpn-up) exec culvert up --tunnel "$VPN_IP_IFACE" --protect %s --server %s:1194/udp ;;
vpn-pre-down) exec culvert down --tunnel "$VPN_IP_IFACE" ;;
esac
`

// TestNetworkManager: the desktop's way. NetworkManager has the LAN by DHCP and
// connects by its OpenVPN plugin; a dispatcher script tells culvert.
func TestNetworkManager(t *testing.T) {
	r := newRig(t, testenv.LabOptions{Unconfigured: true})
	r.DHCP(t)
	r.unit("on_leak: drop\n")
	script := fmt.Sprintf(dispatcher, testenv.SiteNet, testenv.ServerAddr)
	r.write("/etc/NetworkManager/dispatcher.d/50-culvert", script, 0o755)
	r.write("/etc/NetworkManager/dispatcher.d/pre-down.d/50-culvert", script, 0o755)
	r.write("/etc/NetworkManager/conf.d/lab.conf",
		"[main]\ndns=none\n[device-lan]\nmatch-device=interface-name:eth0\nmanaged=1\n[keyfile]\nunmanaged-devices=interface-name:lo\n", 0o644)
	r.write("/etc/NetworkManager/system-connections/lan.nmconnection",
		"[connection]\nid=lan\ntype=ethernet\ninterface-name=eth0\n[ipv4]\nmethod=auto\n[ipv6]\nmethod=disabled\n", 0o600)
	r.sh("cp %s /etc/openvpn/client/ca.pem; cp %s /etc/openvpn/client/cert.pem; cp %s /etc/openvpn/client/key.pem", r.PKI.CA, r.PKI.ClientCert, r.PKI.ClientKey)
	r.write("/etc/openvpn/client/lab.ovpn", fmt.Sprintf("client\ndev tun0\ndev-type tun\nproto udp\nremote %s 1194\nremote-cert-tls server\n"+
		"ca ca.pem\ncert cert.pem\nkey key.pem\n", testenv.ServerAddr), 0o600)
	r.sh("systemctl enable -q NetworkManager-dispatcher; systemctl start NetworkManager")
	r.eventually("the LAN is up", `nmcli -w 30 connection up lan`)
	before := r.Client.MainTable(t)
	r.sh("cd /etc/openvpn/client && nmcli connection import type openvpn file lab.ovpn && nmcli connection modify lab ipv4.never-default yes ipv6.method disabled")
	t.Cleanup(func() { _, _ = try("nmcli connection delete lab; systemctl stop NetworkManager") })
	r.sh("nmcli -w 60 connection up lab")
	r.sessions(1)
	r.attacked()
	r.sh("nmcli device reapply eth0") // it writes the LAN's routes again
	r.arrives("after the LAN's routes were written again")
	r.sh("nmcli -w 60 connection down lab")
	r.sessions(0)
	r.restored(before)
}
