package testenv

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// OpenVPNServer is an OpenVPN 2.6 server with TLS. NS, Listen, PKI and one of
// Pool and Pool6 are required. A client that comes again gets the address it
// had; several at once need "duplicate-cn" in Config, which ends that.
type OpenVPNServer struct {
	NS     *NS
	Listen netip.AddrPort // address and port, which must exist in NS
	TCP    bool           // else UDP
	PKI    *PKI
	Device string       // the TUN device; empty is "tun0"
	Pool   netip.Prefix // IPv4 addresses for clients; the server takes the first
	Pool6  netip.Prefix // IPv6 addresses for clients, a /64 to /112
	// Push lists what clients are told, as the push directive takes it:
	// "route 172.31.0.0 255.255.0.0" (see PushRoute), "redirect-gateway def1".
	Push []string
	// Config holds more configuration lines.
	Config []string
}

// OpenVPNClient is an OpenVPN 2.6 client. NS, Server and PKI are required.
type OpenVPNClient struct {
	NS     *NS
	Server netip.AddrPort
	TCP    bool // else UDP
	PKI    *PKI
	Device string // the TUN device; empty is "tun0"
	// PersistTun keeps the device over restarts (SIGUSR1, lost connection).
	PersistTun bool
	// PingRestart restarts the connection after that long a silence, with
	// pings ten times as often; 0 leaves it to what the server pushes.
	PingRestart time.Duration
	// Hooks are commands for "up", "route-up", "route-pre-down", "down", …
	// OpenVPN runs them with an environment of its own making (a "setenv NAME
	// VALUE" line in Config adds to it) and extra arguments. script-security 2
	// is set when there are any.
	Hooks map[string]string
	// Config holds more configuration lines, for example "route 192.0.2.0
	// 255.255.255.0 net_gateway".
	Config []string
}

// PushRoute is the directive that routes dst into the tunnel: for
// OpenVPNServer.Push, or for OpenVPNClient.Config.
func PushRoute(dst netip.Prefix) string {
	if dst.Addr().Is6() {
		return "route-ipv6 " + dst.String()
	}
	return fmt.Sprintf("route %s %s", dst.Addr(), dottedMask(dst))
}

func dottedMask(p netip.Prefix) string {
	return net.IP(net.CIDRMask(p.Bits(), p.Addr().BitLen())).String()
}

// Start starts the server and waits until it listens.
func (s OpenVPNServer) Start(t TB) *Process {
	t.Helper()
	conf := commonConfig(s.Device, s.PKI.CA, s.PKI.ServerCert, s.PKI.ServerKey)
	conf = append(conf,
		"mode server", "tls-server", "dh none", "topology subnet",
		"proto "+transport(s.TCP, s.Listen.Addr(), "-server"),
		"local "+s.Listen.Addr().String(), "lport "+strconv.Itoa(int(s.Listen.Port())))
	if s.Pool.IsValid() {
		conf = append(conf, fmt.Sprintf("server %s %s", s.Pool.Masked().Addr(), dottedMask(s.Pool)))
	}
	if s.Pool6.IsValid() {
		conf = append(conf, "server-ipv6 "+s.Pool6.String())
	}
	for _, p := range s.Push {
		conf = append(conf, fmt.Sprintf("push %q", p))
	}
	p := startOpenVPN(t, s.NS, append(conf, s.Config...))
	p.WaitOutput(t, openVPNUp, 1, serviceWait)
	return p
}

// Start starts the client and does not wait: [VPN.WaitUp] does.
func (c OpenVPNClient) Start(t TB) *VPN {
	t.Helper()
	conf := commonConfig(c.Device, c.PKI.CA, c.PKI.ClientCert, c.PKI.ClientKey)
	conf = append(conf,
		"client", "nobind", "remote-cert-tls server", "connect-retry 1 2", "connect-timeout 5", "explicit-exit-notify 0",
		"proto "+transport(c.TCP, c.Server.Addr(), "-client"),
		fmt.Sprintf("remote %s %d", c.Server.Addr(), c.Server.Port()))
	if c.TCP {
		conf = remove(conf, "explicit-exit-notify 0")
	}
	if c.PersistTun {
		conf = append(conf, "persist-tun", "persist-key")
	}
	if c.PingRestart > 0 {
		conf = append(conf, c.pings()...)
	}
	if len(c.Hooks) > 0 {
		conf = append(conf, "script-security 2")
	}
	for hook, command := range c.Hooks {
		conf = append(conf, fmt.Sprintf("%s %q", hook, command))
	}
	return &VPN{Process: startOpenVPN(t, c.NS, append(conf, c.Config...))}
}

func (c OpenVPNClient) pings() []string {
	silence := max(int(c.PingRestart.Seconds()), 1)
	return []string{
		"pull-filter ignore ping",
		fmt.Sprintf("ping %d", max(silence/10, 1)), fmt.Sprintf("ping-restart %d", silence),
	}
}

func remove(lines []string, line string) []string {
	var kept []string
	for _, l := range lines {
		if l != line {
			kept = append(kept, l)
		}
	}
	return kept
}

// transport is OpenVPN's name for a protocol: "udp4", "tcp6-client".
func transport(tcp bool, addr netip.Addr, role string) string {
	family := "4"
	if addr.Is6() {
		family = "6"
	}
	if tcp {
		return "tcp" + family + role
	}
	return "udp" + family
}

// commonConfig is what both ends have in common. The kernel module for data
// channels (DCO) is not used: it makes a device of another kind.
func commonConfig(device, ca, cert, key string) []string {
	if device == "" {
		device = "tun0"
	}
	return []string{
		"dev " + device, "dev-type tun", "disable-dco", "verb 3", "suppress-timestamps",
		"ca " + ca, "cert " + cert, "key " + key, "tls-version-min 1.2",
	}
}

func startOpenVPN(t TB, n *NS, conf []string) *Process {
	t.Helper()
	path := filepath.Join(t.TempDir(), "openvpn.conf")
	if err := os.WriteFile(path, []byte(strings.Join(conf, "\n")+"\n"), 0o600); err != nil {
		t.Fatalf("write configuration: %v", err)
	}
	return Start(t, n.Command("openvpn", "--config", path))
}

const openVPNUp = "Initialization Sequence Completed"

// VPN is a running OpenVPN client. It is a [Process]: Stop ends it in order
// (route-pre-down, routes withdrawn, device closed, down), Kill leaves all
// that to the kernel.
type VPN struct{ *Process }

// WaitUp waits until the client has connected for the nth time, counted from
// 1: routes are set and the route-up hook has been run.
func (v *VPN) WaitUp(t TB, nth int) {
	t.Helper()
	v.WaitOutput(t, openVPNUp, nth, 20*time.Second)
}

// Ups counts the connections so far.
func (v *VPN) Ups() int { return strings.Count(v.Output(), openVPNUp) }

// Restart sends SIGUSR1 (reconnect, keeping what is persistent) or SIGHUP
// (start all over) and waits until the client is connected again.
func (v *VPN) Restart(t TB, sig syscall.Signal) {
	t.Helper()
	ups := v.Ups()
	if err := v.Signal(sig); err != nil {
		t.Fatalf("restart: %v", err)
	}
	v.WaitUp(t, ups+1)
}
