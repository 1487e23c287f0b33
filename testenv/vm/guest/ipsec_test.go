//go:build linux && vm

package guest

import (
	"fmt"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// xfrmEnd makes one end of the tunnel: an XFRM interface, and with states also
// what a key exchange would have agreed on.
func (r *rig) xfrmEnd(n *testenv.NS, under, own, peer, inner string, states bool) {
	r.t.Helper()
	n.IP(r.t, "link add ipsec0 type xfrm dev", under, "if_id 42")
	n.IP(r.t, "addr add", inner, "dev ipsec0")
	n.IP(r.t, "link set ipsec0 up")
	if !states {
		return
	}
	const keys = "reqid 1 mode tunnel aead rfc4106(gcm(aes)) 0x0102030405060708090a0b0c0d0e0f1011121314 128 if_id 42"
	n.IP(r.t, "xfrm state add src", own, "dst", peer, "proto esp spi", spi(own), keys)
	n.IP(r.t, "xfrm state add src", peer, "dst", own, "proto esp spi", spi(peer), keys)
	for _, dir := range []string{"out", "in", "fwd"} {
		src, dst := own, peer
		if dir != "out" {
			src, dst = peer, own
		}
		n.IP(r.t, "xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir", dir, "tmpl src", src, "dst", dst, "proto esp reqid 1 mode tunnel if_id 42")
	}
}

// spi is the number of the association that an address sends by.
func spi(sender string) string {
	if sender == testenv.ServerAddr.String() {
		return "0x102"
	}
	return "0x101"
}

// xfrm makes both ends and the client's routes of a full tunnel.
func (r *rig) xfrm(states bool) {
	r.t.Helper()
	r.xfrmEnd(r.Client, "eth0", testenv.ClientAddr.String(), testenv.ServerAddr.String(), "10.97.0.2/24", states)
	r.xfrmEnd(r.Server, "wan", testenv.ServerAddr.String(), testenv.ClientAddr.String(), "10.97.0.1/24", states)
	r.Client.IP(r.t, "route add", testenv.ServerAddr.String(), "via", testenv.RouterAddr.String(), "dev eth0")
	r.Client.IP(r.t, "route add 0.0.0.0/1 dev ipsec0")
	r.Client.IP(r.t, "route add 128.0.0.0/1 dev ipsec0")
}

// TestESP: a full tunnel on an XFRM interface under drop. Its own packets are ESP
// to the server, and no leaks.
func TestESP(t *testing.T) {
	r := newRig(t, testenv.LabOptions{NoVPN: true})
	r.unit("on_leak: drop\n")
	r.xfrm(true)
	before := r.Client.MainTable(t)
	r.arrives("before culvert")
	r.sh("culvert up --tunnel ipsec0 --protect 0.0.0.0/0 --server %s/esp", testenv.ServerAddr)
	r.attacked()
	r.sh("culvert down --tunnel ipsec0")
	r.restored(before)
}

// swanctl is one end's configuration for strongSwan.
func swanctl(own, peer, ownID, peerID, ownNet, peerNet string) string {
	return fmt.Sprintf(`connections {
  lab {
    version = 2
    local_addrs = %s
    remote_addrs = %s
    if_id_in = 42
    if_id_out = 42
    local { auth = psk
      id = %s }
    remote { auth = psk
      id = %s }
    children { net { local_ts = %s
      remote_ts = %s } }
  }
}
secrets { ike { secret = laboratory } }
`, own, peer, ownID, peerID, ownNet, peerNet)
}

// TestStrongSwan: the same tunnel, with its keys exchanged by charon under its own
// unit, by UDP ports 500 and 4500.
func TestStrongSwan(t *testing.T) {
	r := newRig(t, testenv.LabOptions{NoVPN: true})
	r.unit("on_leak: drop\n")
	r.xfrm(false)
	client, server := testenv.ClientAddr.String(), testenv.ServerAddr.String()
	const noRoutes = "charon { install_routes = no }\ncharon-systemd { install_routes = no }\n"
	r.write("/run/swan-server.conf", swanctl(server, client, "server", "client", "0.0.0.0/0", "10.97.0.2/32"), 0o600)
	cmd := r.Server.Command("sh", "-c", `cp /var/tmp/swan-server.conf /etc/swanctl/conf.d/lab.conf; echo '`+noRoutes+`' >/etc/strongswan.d/zz-lab.conf
		/usr/sbin/charon-systemd & until swanctl --load-all 2>/dev/null; do sleep 0.2; done; echo loaded; wait`)
	r.sh("cp /run/swan-server.conf /var/tmp/swan-server.conf")
	cmd.Sandbox = &testenv.Sandbox{Scratch: []string{"/etc"}, Empty: []string{"/run"}}
	testenv.Start(t, cmd).WaitOutput(t, "loaded", 1, patience)

	r.write("/etc/swanctl/conf.d/lab.conf", swanctl(client, server, "client", "server", "10.97.0.2/32", "0.0.0.0/0"), 0o600)
	r.write("/etc/strongswan.d/zz-lab.conf", noRoutes, 0o644)
	t.Cleanup(func() { _, _ = try("systemctl stop strongswan; rm -f /etc/swanctl/conf.d/lab.conf") })
	r.sh("systemctl start strongswan")
	before := r.Client.MainTable(t)
	r.sh("culvert up --tunnel ipsec0 --protect 0.0.0.0/0 --server %[1]s/esp --server %[1]s:500/udp --server %[1]s:4500/udp", server)
	r.sh("swanctl --initiate --child net --timeout 60")
	r.attacked()
	r.sh("swanctl --rekey --child net") // the key exchange passes, too
	r.eventually("rekeyed", `[ $(swanctl --list-sas | grep -c INSTALLED) = 1 ] && swanctl --list-sas | grep -q 'net: #2'`)
	r.arrives("with new keys")
	r.sh("culvert down --tunnel ipsec0")
	r.restored(before)
}
