package openvpn

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

const bare = "script_type=up\ndev=tun0\n"

const two = "remote_1=203.0.113.9\nremote_port_1=443\nproto_1=tcp-client\nremote_2=198.51.100.7\nremote_port_2=1194\nproto_2=udp\n"

// TestServers: the peer of the connection and all that is configured, each once, and nothing more.
func TestServers(t *testing.T) {
	for _, c := range []struct{ name, env, want string }{
		{"no peer", two, "[203.0.113.9:443/tcp 198.51.100.7:1194/udp]"},
		{"a remote is the peer", two + "trusted_ip=198.51.100.7\ntrusted_port=1194\n", "[203.0.113.9:443/tcp 198.51.100.7:1194/udp]"},
		{"the first remote is the peer", two + "trusted_ip=203.0.113.9\ntrusted_port=443\n", "[203.0.113.9:443/tcp 198.51.100.7:1194/udp]"},
		{"a remote is the peer, its port is not told", two + "trusted_ip=198.51.100.7\n", "[203.0.113.9:443/tcp 198.51.100.7:1194/udp]"},
		{"a remote is the peer by another port", two + "trusted_ip=198.51.100.7\ntrusted_port=1195\n",
			"[203.0.113.9:443/tcp 198.51.100.7:1194/udp 198.51.100.7:1195/tcp 198.51.100.7:1195/udp]"},
		{"another peer", two + "trusted_ip=192.0.2.1\ntrusted_port=1194\n",
			"[203.0.113.9:443/tcp 198.51.100.7:1194/udp 192.0.2.1:1194/tcp 192.0.2.1:1194/udp]"},
		{"another peer, its port is not told", two + "trusted_ip=192.0.2.1\n",
			"[203.0.113.9:443/tcp 198.51.100.7:1194/udp 192.0.2.1:443/tcp 192.0.2.1:1194/udp]"},
		{"a peer of IPv6", "trusted_ip6=2001:db8::7\ntrusted_port=1194\n", "[[2001:db8::7]:1194/udp [2001:db8::7]:1194/tcp]"},
		{"a peer of each family", "trusted_ip=192.0.2.1\ntrusted_ip6=2001:db8::7\ntrusted_port=1194\n", "[192.0.2.1:1194/udp 192.0.2.1:1194/tcp]"},
		{"a peer alone", "trusted_ip=192.0.2.1\ntrusted_port=1194\n", "[192.0.2.1:1194/udp 192.0.2.1:1194/tcp]"},
		{"a peer without a port", "trusted_ip=192.0.2.1\n", "[]"},
		{"unspecified", "remote_1=0.0.0.0\nremote_port_1=1194\nproto_1=udp\n", "[]"},
		{"multicast", "remote_1=224.0.0.7\nremote_port_1=1194\nproto_1=udp\n", "[]"},
		{"no port", "remote_1=192.0.2.1\nproto_1=udp\n", "[]"},
		{"port too great", "remote_1=192.0.2.1\nremote_port_1=65536\nproto_1=udp\n", "[]"},
		{"no protocol that is known", "remote_1=192.0.2.1\nremote_port_1=1194\nproto_1=sctp\n", "[]"},
		{"once", two + strings.NewReplacer("_1", "_3", "_2", "_4").Replace(two), "[203.0.113.9:443/tcp 198.51.100.7:1194/udp]"},
	} {
		call, err := Read(environment(bare + c.env))
		if got := fmt.Sprint(call.servers); err != nil || got != c.want {
			t.Errorf("%s: %s, %v\nwant %s", c.name, got, err, c.want)
		}
	}
}

// TestSubnets: what is on the tunnel's own link, as far as it is understood.
func TestSubnets(t *testing.T) {
	for _, c := range []struct{ name, env, want string }{
		{"subnet", "ifconfig_local=10.8.0.6\nifconfig_netmask=255.255.255.0\n", "[10.8.0.0/24]"},
		{"mask of one address", "ifconfig_local=10.8.0.6\nifconfig_netmask=255.255.255.255\nifconfig_remote=10.8.0.5\n", "[10.8.0.5/32]"},
		{"point to point", "ifconfig_local=10.8.0.6\nifconfig_remote=10.8.0.5\n", "[10.8.0.5/32]"},
		{"mask with a gap", "ifconfig_local=10.8.0.6\nifconfig_netmask=255.0.255.0\n", "[]"},
		{"a mask of IPv6", "ifconfig_local=10.8.0.6\nifconfig_netmask=2001:db8::\n", "[]"},
		{"no mask at all", "ifconfig_local=10.8.0.6\nifconfig_netmask=0.0.0.0\n", "[0.0.0.0/0]"},
		{"an address of IPv6 for IPv4", "ifconfig_local=2001:db8::6\nifconfig_netmask=255.255.255.0\n", "[]"},
		{"IPv6", "ifconfig_ipv6_local=fd08::6\nifconfig_ipv6_netbits=64\nifconfig_ipv6_remote=fd08::1\n", "[fd08::/64]"},
		{"IPv6 of one address", "ifconfig_ipv6_local=fd08::6\nifconfig_ipv6_netbits=128\nifconfig_ipv6_remote=fd08::1\n", "[fd08::1/128]"},
		{"IPv6, bits no number", "ifconfig_ipv6_local=fd08::6\nifconfig_ipv6_netbits=x\nifconfig_ipv6_remote=fd08::1\n", "[fd08::1/128]"},
		{"IPv6, bits not told", "ifconfig_ipv6_local=fd08::6\nifconfig_ipv6_remote=fd08::1\n", "[fd08::1/128]"},
		{"IPv6, too many bits", "ifconfig_ipv6_local=fd08::6\nifconfig_ipv6_netbits=129\nifconfig_ipv6_remote=fd08::1\n", "[fd08::1/128]"},
		{"IPv6, fewer bits than none", "ifconfig_ipv6_local=fd08::6\nifconfig_ipv6_netbits=-1\nifconfig_ipv6_remote=fd08::1\n", "[fd08::1/128]"},
		{"IPv4 where IPv6 should be", "ifconfig_ipv6_local=10.8.0.6\nifconfig_ipv6_netbits=24\n", "[]"},
		{"IPv6, remote unspecified", "ifconfig_ipv6_remote=::\n", "[]"},
	} {
		call, err := Read(environment(bare + c.env))
		if got := fmt.Sprint(call.subnets); err != nil || got != c.want {
			t.Errorf("%s: %s, %v; want %s", c.name, got, err, c.want)
		}
	}
}

// TestRoutesOf: which routes go around the tunnel, and which are none.
func TestRoutesOf(t *testing.T) {
	const route = bare + "route_network_1=10.1.0.0\nroute_netmask_1=255.255.0.0\n"
	for _, c := range []struct{ name, env, want string }{
		{"no gateway", route + "route_vpn_gateway=10.8.0.1\n", "10.1.0.0/16"},
		{"the VPN's gateway", route + "route_vpn_gateway=10.8.0.1\nroute_gateway_1=10.8.0.1\n", "10.1.0.0/16"},
		{"a gateway on the tunnel's link", route + "route_vpn_gateway=10.8.0.1\nroute_gateway_1=10.8.0.9\nifconfig_local=10.8.0.6\nifconfig_netmask=255.255.255.0\n", "10.1.0.0/16"},
		{"another gateway", route + "route_vpn_gateway=10.8.0.1\nroute_gateway_1=192.168.1.1\n", "10.1.0.0/16 around"},
		{"the network's gateway, the VPN's not known", route + "route_net_gateway=192.168.1.1\nroute_gateway_1=192.168.1.1\n", "10.1.0.0/16 around"},
		{"another gateway, the VPN's not known", route + "route_net_gateway=192.168.1.1\nroute_gateway_1=192.168.1.2\n", "10.1.0.0/16"},
		{"a host", bare + "route_network_1=10.1.0.7\n", "10.1.0.7/32"},
		{"host bits", bare + "route_network_1=10.1.2.3\nroute_netmask_1=255.255.0.0\n", "10.1.0.0/16"},
		{"ignored", bare + "route_network_1=169.254.0.0\nroute_netmask_1=255.255.0.0\n", ""},
		{"IPv6", bare + "route_ipv6_network_1=2001:db8::7/32\n", "2001:db8::/32"},
		{"IPv6, no prefix", bare + "route_ipv6_network_1=2001:db8::\nroute_ipv6_network_2=2001:db8::/32\n", "2001:db8::/32"},
		{"IPv4 among IPv6", bare + "route_ipv6_network_1=10.0.0.0/8\n", ""},
		{"IPv4 in IPv6's dress", bare + "route_ipv6_network_1=::ffff:10.0.0.0/104\n", ""},
		{"after a gap", bare + "route_network_2=10.1.0.7\nroute_ipv6_network_2=2001:db8::/32\n", ""},
	} {
		call, err := Read(environment(c.env))
		var got []string
		for _, r := range call.Routes {
			text := r.Prefix.String()
			if r.Excluded {
				text += " around"
			}
			got = append(got, text)
		}
		if text := strings.Join(got, ", "); err != nil || text != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, text, err, c.want)
		}
	}
}

// TestServersOwnRoute: the route to the server alone is left out, into the tunnel or around it, and neither one that holds
// more nor one to another.
func TestServersOwnRoute(t *testing.T) {
	const low = "remote_3=192.0.2.0\nremote_port_3=1194\nproto_3=udp\n" +
		"route_vpn_gateway=10.8.0.1\nroute_network_5=198.51.100.7\nroute_gateway_5=192.168.1.1\nroute_network_6=198.51.100.8\nroute_gateway_6=192.168.1.1\n"
	call, err := Read(environment(bare + two + low + "route_network_4=192.0.2.0\nroute_netmask_4=255.255.255.0\nroute_network_1=203.0.113.9\nroute_network_2=203.0.113.10\nroute_network_3=203.0.113.0\nroute_netmask_3=255.255.255.0\n" +
		"ifconfig_local=169.254.7.7\nifconfig_netmask=255.255.0.0\n"))
	if err != nil {
		t.Fatal(err)
	}
	s := session(t, &call)
	if got, want := fmt.Sprint(s.Protect, s.Exclude, s.Derived), "[192.0.2.0/24 203.0.113.0/24 203.0.113.10/32] [198.51.100.8/32] []"; got != want {
		t.Errorf("protected, excluded and derived: %s, want %s", got, want)
	}
	call, err = Read(environment(bare + "remote_1=10.8.0.5\nremote_port_1=1194\nproto_1=udp\nifconfig_local=10.8.0.6\nifconfig_remote=10.8.0.5\nroute_network_1=10.1.0.7\n"))
	if got := fmt.Sprint(session(t, &call).Protect); err != nil || got != "[10.1.0.7/32]" {
		t.Errorf("the server is the tunnel's own peer: protected %s, %v", got, err)
	}
}

// TestMostRoutes: as many as there may be are one session, and the last of them counts.
func TestMostRoutes(t *testing.T) {
	var b strings.Builder
	b.WriteString(bare)
	for n := 1; n <= maxRoutes; n++ {
		fmt.Fprintf(&b, "route_network_%d=10.%d.%d.0\nroute_netmask_%d=255.255.255.0\nroute_ipv6_network_%d=2001:db8:%x::/48\n", n, n>>8&255, n&255, n, n, n)
	}
	call, err := Read(environment(b.String()))
	if err != nil || len(call.Routes) != 2*maxRoutes {
		t.Fatalf("%d routes, %v", len(call.Routes), err)
	}
	if _, err := call.Session(); err != nil {
		t.Error(err)
	}
}

// TestStaleFamilies: left-overs are told by the numbers of their own family.
func TestStaleFamilies(t *testing.T) {
	call, err := Read(environment(bare + "route_network_1=10.1.0.7\nroute_network_2=10.2.0.7\n" +
		"route_ipv6_network_1=2001:db8:1::/48\nroute_ipv6_network_2=2001:db8:2::/48\nroute_ipv6_network_3=2001:db8:3::/48\n"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range call.Routes {
		p := call.Routes[i].Prefix
		call.Routes[i].Standing = p == netip.MustParsePrefix("10.1.0.7/32") || p == netip.MustParsePrefix("2001:db8:2::/48")
	}
	call.DropStale()
	var got []string
	for _, r := range call.Routes {
		got = append(got, r.Prefix.String())
	}
	if text := strings.Join(got, " "); text != "10.1.0.7/32 2001:db8:1::/48 2001:db8:2::/48" {
		t.Errorf("left: %s", text)
	}
}

// TestWrongCalls: the error of a wrong call says what it was.
func TestWrongCalls(t *testing.T) {
	for env, script := range map[string]string{
		"": "", "script_type=tls-verify\n": "tls-verify", "script_type=up\n": "up", "script_type=up\ndev=a/b\n": "up",
		"script_type=up\ndev=a\xff\n": "up", "script_type=up\ndev=" + strings.Repeat("t", 256) + "\n": "up",
	} {
		call, err := Read(environment(env))
		if !errors.Is(err, ErrNoScript) || call.Script != script {
			t.Errorf("%q: %q, %v", env, call.Script, err)
		}
	}
}

// TestPlain: what is told is short and moves no cursor; a word that is both is told as it is.
func TestPlain(t *testing.T) {
	long := strings.Repeat("x", 80)
	for word, want := range map[string]string{
		"vpn.example": "vpn.example", long: long, long + "y": `"` + long + `"`, "a\x1bb": `"a\x1bb"`, "a\xffb": `"a\xffb"`, "a\uFFFDb": "a\uFFFDb",
	} {
		if got := plain(word); got != want {
			t.Errorf("%q: %s, want %s", word, got, want)
		}
	}
	if _, err := Read(environment("script_type=down\ndev=" + strings.Repeat("t", 255) + "\n")); err != nil {
		t.Errorf("a name as long as any system's: %v", err)
	}
}
