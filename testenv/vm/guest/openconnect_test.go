//go:build linux && vm

package guest

import (
	"fmt"
	"testing"
	"time"

	"github.com/culvert-project/culvert/testenv"
)

// ocserv starts the server, with one user.
func (r *rig) ocserv() {
	r.t.Helper()
	pki := testenv.NewPKI(r.t)
	r.sh("mkdir -p /run/oc && cp %s /run/oc/cert.pem && cp %s /run/oc/key.pem && printf 'pw\\npw\\n' | ocpasswd -c /run/oc/passwd user", pki.ServerCert, pki.ServerKey)
	r.write("/run/oc/ocserv.conf", fmt.Sprintf(`auth = "plain[passwd=/run/oc/passwd]"
listen-host = %s
tcp-port = 443
udp-port = 443
run-as-user = root
run-as-group = root
socket-file = /run/oc/socket
isolate-workers = false
server-cert = /run/oc/cert.pem
server-key = /run/oc/key.pem
device = vpns
max-clients = 4
max-same-clients = 4
keepalive = 30
dpd = 30
predictable-ips = true
ipv4-network = 10.98.0.0/24
route = 172.31.0.0/255.255.0.0
`, testenv.ServerAddr), 0o600)
	p := testenv.Start(r.t, r.Server.Command("ocserv", "-f", "-d", "1", "-c", "/run/oc/ocserv.conf"))
	p.WaitOutput(r.t, "initialized|listening", 1, patience)
}

// TestOpenConnect: an AnyConnect tunnel, with culvert in the folders that
// vpnc-script runs.
func TestOpenConnect(t *testing.T) {
	r := newRig(t, testenv.LabOptions{NoVPN: true})
	before := r.Client.MainTable(t)
	r.unit("on_leak: drop\n")
	r.ocserv()
	r.write("/etc/vpnc/post-connect.d/culvert", fmt.Sprintf(
		"culvert up --tunnel $TUNDEV --protect %s --server $VPNGATEWAY:443/tcp --server $VPNGATEWAY:443/udp\n", testenv.SiteNet), 0o755)
	r.write("/etc/vpnc/disconnect.d/culvert", "culvert down --tunnel $TUNDEV\n", 0o755)
	r.sh(`pin=$(openssl x509 -in /run/oc/cert.pem -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64)
		printf '#!/bin/sh\nexec openconnect --protocol=anyconnect --interface tun0 --user user --passwd-on-stdin --servercert pin-sha256:'$pin' https://%s <<EOF\npw\nEOF\n' >/run/oc/client
		systemd-run --quiet --unit=openconnect-lab --property=KillSignal=SIGINT /bin/sh /run/oc/client`, testenv.ServerAddr)
	t.Cleanup(func() { _, _ = try("systemctl stop openconnect-lab") })
	r.sessions(1)
	r.attacked()
	begin := time.Now()
	r.sh("systemctl stop openconnect-lab")
	t.Logf("disconnected in %v", time.Since(begin))
	r.restored(before)
}
