package openvpn

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// environment reads lines of NAME=value, as "env" prints them.
func environment(text string) func(string) string {
	vars := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimRight(line, "\n"), "=")
		vars[name] = value
	}
	return func(name string) string { return vars[name] }
}

var eventNames = map[Event]string{Nothing: "nothing", Up: "up", Down: "down"}

// describe is the whole of a call as text.
func describe(text string) string {
	var b strings.Builder
	c, err := Read(environment(text))
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	fmt.Fprintf(&b, "%s of %s: %s\n", c.Script, c.Device, eventNames[c.Event])
	if c.Event == Up {
		s, err := c.Session()
		fmt.Fprintf(&b, "protect %v\nexclude %v\nservers %v\n", s.Protect, s.Exclude, s.Servers)
		if err != nil {
			fmt.Fprintf(&b, "error: %v\n", err)
		}
	}
	for _, w := range c.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", w)
	}
	return b.String()
}

// TestCalls runs what OpenVPN 2.6.14 really exported (testdata/calls/*.env).
func TestCalls(t *testing.T) {
	files, err := filepath.Glob("testdata/calls/*.env")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := describe(string(text))
			golden := strings.TrimSuffix(file, ".env") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%swant:\n%s", got, want)
			}
		})
	}
}

const tun = "script_type=route-up\ndev=tun0\nifconfig_local=10.8.0.2\nifconfig_netmask=255.255.255.0\n" +
	"route_vpn_gateway=10.8.0.1\nroute_net_gateway=192.168.1.1\ntrusted_ip=198.51.100.7\ntrusted_port=1194\nproto_1=udp\nremote_1=vpn.example\nremote_port_1=1194\n"

func TestRead(t *testing.T) {
	tests := []struct{ name, env, want string }{
		{"no script", "dev=tun0\n", "error: script_type is not set: not run by OpenVPN; give this command to its options up, route-up, route-pre-down and down\n"},
		{"another script", "script_type=tls-verify\ndev=tun0\n", "error: script_type is \"tls-verify\": not run by OpenVPN as one of the scripts up, route-up, route-pre-down, down\n"},
		{"no device", "script_type=up\n", "error: dev is not set: not run by OpenVPN\n"},
		{"gap ends the list", tun + "route_network_1=10.1.0.0\nroute_netmask_1=255.255.0.0\nroute_gateway_1=10.8.0.1\nroute_network_3=10.3.0.0\nroute_netmask_3=255.255.0.0\n",
			"route-up of tun0: up\nprotect [10.1.0.0/16 10.8.0.0/24]\nexclude []\nservers [198.51.100.7:1194/udp]\n"},
		{"duplicates and nested", tun + "route_network_1=10.1.0.0\nroute_netmask_1=255.255.0.0\nroute_network_2=10.1.0.0\nroute_netmask_2=255.255.0.0\nroute_network_3=10.1.2.3\n",
			"route-up of tun0: up\nprotect [10.1.0.0/16 10.1.2.3/32 10.8.0.0/24]\nexclude []\nservers [198.51.100.7:1194/udp]\n"},
		{"both ways", tun + "route_network_1=10.1.0.0\nroute_netmask_1=255.255.0.0\nroute_gateway_1=10.8.0.1\nroute_network_2=10.1.0.0\nroute_netmask_2=255.255.0.0\nroute_gateway_2=192.168.1.1\n",
			"route-up of tun0: up\nprotect [10.1.0.0/16 10.8.0.0/24]\nexclude []\nservers [198.51.100.7:1194/udp]\n" +
				"warning: 10.1.0.0/16 has a route into the tunnel and one around it; it is protected\n"},
		{"bad values", tun + "route_network_1=10.1.0.0\nroute_netmask_1=255.0.255.0\nroute_network_2=nonsense\nroute_ipv6_network_1=10.0.0.0/8\nroute_ipv6_network_2=2001:db8::5/32\n",
			"route-up of tun0: up\nprotect [10.8.0.0/24 2001:db8::/32]\nexclude []\nservers [198.51.100.7:1194/udp]\n" +
				"warning: route 1, 10.1.0.0 255.0.255.0, is not understood and not protected\n" +
				"warning: route 2, nonsense, is not understood and not protected\n" +
				"warning: IPv6 route 1, 10.0.0.0/8, is not understood and not protected\n"},
		{"redirect in up is left over", strings.Replace(tun, "route-up", "up", 1) + "redirect_gateway=1\n",
			"up of tun0: up\nprotect [10.8.0.0/24]\nexclude []\nservers [198.51.100.7:1194/udp]\n"},
		{"redirect without a server", "script_type=route-up\ndev=tun0\nredirect_gateway=1\nremote_1=vpn.example\nremote_port_1=1194\nproto_1=udp\n",
			"route-up of tun0: up\nprotect [0.0.0.0/1 128.0.0.0/1]\nexclude []\nservers []\n" +
				"error: tun0: the VPN server's address is not known: OpenVPN redirects all traffic, and trusted_ip is not set, " +
				"and no remote is an address or a name that was resolved; write an address as remote\n"},
		{"nothing to protect", "script_type=up\ndev=tun0\nremote_1=198.51.100.7\nremote_port_1=1194\nproto_1=udp\n",
			"up of tun0: up\nprotect []\nexclude []\nservers [198.51.100.7:1194/udp]\nerror: tun0: OpenVPN names no route through it\n"},
		{"remotes by address when the peer is not known", "script_type=up\ndev=tun0\nifconfig_local=10.8.0.6\nifconfig_remote=10.8.0.5\nremote_1=198.51.100.7\nremote_port_1=1194\nproto_1=udp4\n" +
			"remote_2=2001:db8::7\nremote_port_2=443\nproto_2=tcp6-client\nremote_3=vpn.example\nremote_port_3=1\nproto_3=udp\n",
			"up of tun0: up\nprotect [10.8.0.5/32]\nexclude []\nservers [198.51.100.7:1194/udp [2001:db8::7]:443/tcp]\n"},
		{"peer that several remotes may be", tun + "remote_2=other.example\nremote_port_2=443\nproto_2=tcp-client\n",
			"route-up of tun0: up\nprotect [10.8.0.0/24]\nexclude []\nservers [198.51.100.7:1194/udp 198.51.100.7:1194/tcp]\n"},
		{"a half of redirect-gateway cannot be pushed around the tunnel", tun + "redirect_gateway=1\nroute_network_1=128.0.0.0\nroute_netmask_1=128.0.0.0\nroute_gateway_1=192.168.1.1\n",
			"route-up of tun0: up\nprotect [0.0.0.0/1 10.8.0.0/24 128.0.0.0/1]\nexclude []\nservers [198.51.100.7:1194/udp]\n" +
				"warning: 128.0.0.0/1 has a route into the tunnel and one around it; it is protected\n"},
		{"device's name", "script_type=up\ndev=tun0\x1b[2J\n", "error: dev is \"tun0\\x1b[2J\", which is no interface's name: not run by OpenVPN\n"},
		{"values for a terminal", tun + "route_network_1=\x1b]0;pwn\x07\n",
			"route-up of tun0: up\nprotect [10.8.0.0/24]\nexclude []\nservers [198.51.100.7:1194/udp]\n" +
				"warning: route 1, \"\\x1b]0;pwn\\a\", is not understood and not protected\n"},
		{"unknown VPN gateway", "script_type=up\ndev=tun0\ntrusted_ip=198.51.100.7\ntrusted_port=1194\nroute_net_gateway=192.168.1.1\n" +
			"route_network_1=10.1.0.0\nroute_netmask_1=255.255.0.0\nroute_gateway_1=172.16.0.1\nroute_network_2=10.2.0.0\nroute_netmask_2=255.255.0.0\nroute_gateway_2=192.168.1.1\n",
			"up of tun0: up\nprotect [10.1.0.0/16]\nexclude [10.2.0.0/16]\nservers [198.51.100.7:1194/udp 198.51.100.7:1194/tcp]\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := describe(tt.env); got != tt.want {
				t.Errorf("got:\n%swant:\n%s", got, tt.want)
			}
		})
	}
}

// TestReadBounds: what a server can push has bounds in number and in words.
func TestReadBounds(t *testing.T) {
	var many, bad strings.Builder
	many.WriteString(tun)
	bad.WriteString(tun)
	for n := 1; n <= maxRoutes+1; n++ {
		fmt.Fprintf(&many, "route_network_%d=10.%d.%d.0\nroute_netmask_%d=255.255.255.0\nroute_gateway_%d=10.8.0.1\n", n, n>>8&255, n&255, n, n)
		if n <= maxRoutes {
			fmt.Fprintf(&bad, "route_network_%d=%s\n", n, strings.Repeat("\x1b", 1000))
		}
	}
	c, err := Read(environment(many.String()))
	if _, tooMany := c.Session(); err != nil || !errors.Is(tooMany, ErrTooMany) {
		t.Errorf("%d routes: %v, %v", maxRoutes+1, err, tooMany)
	}
	sixth := fmt.Sprintf("%sroute_ipv6_network_%d=2001:db8::/32\n", tun, maxRoutes+1)
	if c, err = Read(environment(sixth)); err != nil || !c.tooMany {
		t.Errorf("%d IPv6 routes: %v, too many: %t", maxRoutes+1, err, c.tooMany)
	}
	c, err = Read(environment(bad.String()))
	if err != nil || len(c.Warnings) != maxWarnings+1 {
		t.Errorf("%d routes that are not understood: %v, %d warnings", maxRoutes, err, len(c.Warnings))
	}
	for _, w := range c.Warnings {
		if len(w) > 500 || strings.Contains(w, "\x1b") {
			t.Errorf("a warning of %d bytes: %.80q", len(w), w)
		}
	}
	bad.Reset()
	for n := 1; n <= 1<<16; n++ {
		fmt.Fprintf(&bad, "remote_%d=vpn.example\nremote_port_%d=%d\nproto_%d=udp\n", n, n, n%65535+1, n)
	}
	if c, err = Read(environment("trusted_ip=198.51.100.7\nscript_type=up\ndev=tun0\n" + bad.String())); err != nil || len(c.servers) != maxRemotes {
		t.Errorf("%d remotes: %v, %d servers", 1<<16, err, len(c.servers))
	}
}

// TestNoBypass: no route of the environment makes an exclusion.
func TestNoBypass(t *testing.T) {
	c, err := Read(environment(tun + "route_network_1=10.2.0.0\nroute_netmask_1=255.255.0.0\nroute_gateway_1=192.168.1.1\n"))
	if err != nil || len(c.Routes) != 1 || !c.Routes[0].Excluded {
		t.Fatalf("control: %v, %+v", err, c.Routes)
	}
	c.NoBypass()
	if s, err := c.Session(); err != nil || len(s.Exclude) != 0 || !slices.Contains(s.Protect, netip.MustParsePrefix("10.2.0.0/16")) {
		t.Errorf("%v, %+v", err, s)
	}
}

func TestReadErrors(t *testing.T) {
	if _, err := Read(environment("")); !errors.Is(err, ErrNoScript) {
		t.Errorf("empty environment: %v", err)
	}
}

func TestDropStale(t *testing.T) {
	route := func(n int, p string, standing, rivalled, excluded bool) Route {
		return Route{N: n, Prefix: netip.MustParsePrefix(p), Standing: standing, Rivalled: rivalled, Excluded: excluded}
	}
	tests := []struct {
		name string
		in   []Route
		want string
	}{
		{"none stands, as with route-noexec", []Route{route(1, "10.1.0.0/16", false, false, false), route(2, "10.2.0.0/16", false, false, true)}, "10.1.0.0/16 10.2.0.0/16"},
		{"left-overs go", []Route{route(1, "10.1.0.0/16", true, false, false), route(2, "10.2.0.0/16", false, false, false), route(3, "10.3.0.0/16", false, true, true)}, "10.1.0.0/16"},
		{"a rival may have kept it out", []Route{route(1, "10.1.0.0/16", true, false, false), route(2, "10.2.0.0/16", false, true, false)}, "10.1.0.0/16 10.2.0.0/16"},
		{"a gap before one that stands", []Route{route(1, "10.1.0.0/16", false, false, false), route(2, "10.2.0.0/16", true, false, true)}, "10.1.0.0/16 10.2.0.0/16"},
		{"families are apart", []Route{route(1, "10.1.0.0/16", true, false, false), route(2, "2001:db8::/32", false, false, false)}, "10.1.0.0/16 2001:db8::/32"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := Call{Routes: tt.in}
			c.DropStale()
			var got []string
			for _, r := range c.Routes {
				got = append(got, r.Prefix.String())
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("got %v, want %s", got, tt.want)
			}
		})
	}
}

// FuzzRead: whatever the environment holds, a session that comes of it is one
// that may be asked for.
func FuzzRead(f *testing.F) {
	files, _ := filepath.Glob("testdata/calls/*.env")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add(tun + "route_network_1=10.0.0.0\nroute_netmask_1=255.0.0.0\nroute_gateway_1=10.8.0.1\nroute_metric_1=-1\nroute_network_2=10.0.0.0\nroute_netmask_2=255.0.0.0\nroute_gateway_2=192.168.1.1\n")
	f.Add("script_type=up\ndev=\x1b[2J\xff\nroute_network_1=\xff\xfe\n")
	f.Add("script_type=up\ndev=" + strings.Repeat("t", 300) + "\ntrusted_ip=::ffff:1.2.3.4%eth0\ntrusted_port=-1\n")
	f.Add(tun + "route_network_1=0.0.0.0\nroute_netmask_1=0.0.0.0\nroute_ipv6_network_1=::/0\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Read(environment(text))
		if err != nil {
			return
		}
		for _, w := range append(c.Warnings, c.Device) {
			if len(w) > 1000 || strings.ContainsFunc(w, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("words for a terminal: %.80q", w)
			}
		}
		c.DropStale()
		s, err := c.Session()
		if err != nil {
			return
		}
		for _, p := range slices.Concat(s.Protect, s.Exclude) {
			if p != p.Masked() || p.Addr().Is4In6() {
				t.Errorf("%v is not a prefix to ask for", p)
			}
		}
		for _, p := range s.Protect {
			if slices.Contains(s.Exclude, p) {
				t.Errorf("%v is protected and excluded", p)
			}
		}
		for _, srv := range s.Servers {
			if srv.Addr.Port() == 0 || !srv.Addr.IsValid() || (srv.Proto != "udp" && srv.Proto != "tcp") {
				t.Errorf("%v is no server", srv)
			}
		}
	})
}

// TestDerived: the tunnel's own network is marked as nobody's wish, also where the server
// pushes a route to it, and nothing else is.
func TestDerived(t *testing.T) {
	const base = "script_type=route-up\ndev=tun0\nifconfig_local=10.8.0.2\nifconfig_netmask=255.255.255.0\ntrusted_ip=198.51.100.7\ntrusted_port=1194\nproto_1=udp\nroute_vpn_gateway=10.8.0.1\n"
	for env, want := range map[string]string{
		base + "route_network_1=10.1.0.0\nroute_netmask_1=255.255.0.0\n":                                                          "[10.8.0.0/24]",
		base + "route_network_1=10.8.0.0\nroute_netmask_1=255.255.255.0\n":                                                        "[10.8.0.0/24]",
		base + "route_network_1=10.8.0.0\nroute_netmask_1=255.255.0.0\nifconfig_ipv6_local=fd00:8::2\nifconfig_ipv6_netbits=64\n": "[10.8.0.0/24 fd00:8::/64]",
	} {
		c, err := Read(environment(env))
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.Session()
		if got := fmt.Sprint(s.Derived); err != nil || got != want {
			t.Errorf("%s\n%v, of the tunnel's own are %s, want %s", env, err, got, want)
		}
	}
}
