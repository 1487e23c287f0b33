package testenv

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Static is one classless static route of DHCP option 121 (RFC 3442).
type Static struct {
	Dst netip.Prefix
	Via netip.Addr // 0.0.0.0 means on the link
}

// Via makes a [Static] of "172.31.1.0/24" and "10.77.0.66". It panics on
// anything else.
func Via(dst, via string) Static {
	return Static{Dst: netip.MustParsePrefix(dst), Via: netip.MustParseAddr(via)}
}

// DHCPServer is a dnsmasq that serves IPv4 addresses on one interface, which
// must have an address in the range's network.
type DHCPServer struct {
	NS          *NS
	Device      string
	First, Last netip.Addr // the range
	// Router is option 3. The zero value sends none.
	Router netip.Addr
	// Static is option 121; none sends no such option. Clients that
	// understand it ignore Router then, so a default route belongs here too.
	Static []Static
	// Lease is the lease time; 0 is an hour, and two minutes are dnsmasq's
	// least.
	Lease time.Duration
	// Options are more options as dnsmasq's --dhcp-option takes them:
	// "6,10.0.0.1".
	Options []string
}

// Start starts the server and waits until it listens. Servers that follow
// each other on one network accept each other's clients.
func (s DHCPServer) Start(t TB) *Process {
	t.Helper()
	args := []string{
		"--keep-in-foreground", "--conf-file=/dev/null", "--log-facility=-", "--log-dhcp",
		"--pid-file=", "--user=root", "--port=0", // no DNS
		"--interface=" + s.Device, "--bind-interfaces", "--except-interface=lo",
		"--dhcp-leasefile=" + filepath.Join(t.TempDir(), "leases"),
		"--dhcp-authoritative", "--no-ping",
		fmt.Sprintf("--dhcp-range=%s,%s,%d", s.First, s.Last, int(s.lease().Seconds())),
	}
	for _, option := range s.options() {
		args = append(args, "--dhcp-option="+option)
	}
	p := Start(t, s.NS.Command("dnsmasq", args...))
	p.WaitOutput(t, "DHCP, IP range", 1, serviceWait)
	return p
}

// serviceWait is how long a service may take to start, with room for a busy
// machine.
const serviceWait = 15 * time.Second

func (s DHCPServer) lease() time.Duration {
	if s.Lease == 0 {
		return time.Hour
	}
	return s.Lease
}

func (s DHCPServer) options() []string {
	router := "3" // an empty option keeps dnsmasq from sending its own address
	if s.Router.IsValid() {
		router += "," + s.Router.String()
	}
	out := append([]string{router}, s.Options...)
	if len(s.Static) == 0 {
		return out
	}
	var static strings.Builder
	static.WriteString("121")
	for _, r := range s.Static {
		fmt.Fprintf(&static, ",%s,%s", r.Dst, r.Via)
	}
	return append(out, static.String())
}

// DHCPProgram chooses a [DHCPClient].
type DHCPProgram int

// DHCP clients, and what they do with option 121.
const (
	// ISCDhclient is ISC dhclient with the distribution's own scripts. It adds
	// the option's routes when it gets a lease, not when it renews it.
	ISCDhclient DHCPProgram = iota
	// BusyboxUdhcpc is udhcpc with the distribution's script, which ignores
	// the option.
	BusyboxUdhcpc
	// BusyboxStatic is udhcpc with that script and one that (re)places the
	// option's routes at each renewal. SIGUSR1 makes it renew.
	BusyboxStatic
	// Dhcpcd adds the option's routes and puts them back at each renewal.
	// SIGUSR1 makes it renew.
	Dhcpcd
)

// Tool is the program for [Require].
func (p DHCPProgram) Tool() Tool {
	return [...]Tool{DHClient, UDHCPC, UDHCPC, DHCPCD}[p]
}

// DHCPClient is a DHCP client on one interface. It sees private copies of
// /etc (it writes resolv.conf) and /run.
type DHCPClient struct {
	NS      *NS
	Device  string
	Program DHCPProgram
}

// Start starts the client and waits until it has an address and its scripts
// have run. The client goes on to renew its lease. When it is killed, address
// and routes stay; when it is stopped, that depends on the program.
func (c DHCPClient) Start(t TB) *Process {
	t.Helper()
	cmd, bound := c.command(t)
	cmd.Sandbox = &Sandbox{
		Scratch: []string{"/etc"},
		Empty:   []string{"/run", "/var/lib/dhcp", "/var/lib/dhcpcd"},
	}
	p := Start(t, cmd)
	p.WaitOutput(t, bound, 1, serviceWait)
	return p
}

// command is the client's command line and what it says when all is done.
func (c DHCPClient) command(t TB) (cmd *Cmd, bound string) {
	t.Helper()
	switch c.Program {
	case ISCDhclient:
		return c.NS.Command("dhclient", "-4", "-d", "-v",
			"-pf", "/run/dhclient-testenv.pid", "-lf", "/var/lib/dhcp/testenv.leases", c.Device), "bound to "
	case BusyboxUdhcpc, BusyboxStatic:
		script := udhcpcScript(t, c.Program == BusyboxStatic)
		return c.NS.Command("udhcpc", "-f", "-i", c.Device, "-O", "staticroutes", "-t", "20", "-T", "1", "-s", script), "testenv: bound"
	default:
		return c.NS.Command("dhcpcd", "-B", "-4", "-f", dhcpcdConfig(t), c.Device), `adding (default )?route`
	}
}

// udhcpcScript runs the distribution's script and then says that it has. With
// static it also places the routes of option 121.
func udhcpcScript(t TB, static bool) string {
	t.Helper()
	routes := ""
	if static {
		routes = `
set -- $staticroutes
while [ $# -ge 2 ]; do
	via="via $2"
	[ "$2" = 0.0.0.0 ] && via=
	ip route replace "$1" $via dev "$interface"
	shift 2
done`
	}
	return writeScript(t, "udhcpc", `
event=$1
/etc/udhcpc/default.script "$event"
case $event in bound|renew) ;; *) exit 0 ;; esac`+routes+`
echo "testenv: $event"`)
}

// writeScript makes an executable shell script that lives as long as the test.
func writeScript(t TB, name, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatalf("write script: %v", err)
	}
	return path
}

// dhcpcdConfig asks for what matters here, without the seconds of waiting for
// other users of the address.
func dhcpcdConfig(t TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dhcpcd.conf")
	conf := "option classless_static_routes\noption routers\nnoarp\nnoipv4ll\nnohook resolv.conf, hostname\n"
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		t.Fatalf("write configuration: %v", err)
	}
	return path
}
