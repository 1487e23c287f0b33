package openvpn

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
)

// TestSignals: only an end ends a session, for both scripts that are told.
func TestSignals(t *testing.T) {
	for signal, want := range map[string]Event{
		"": Down, "sigterm": Down, "sigint": Down, "ping-exit": Down, "inactive": Down, "remote-exit": Down,
		"exit-with-notification": Down, "server-pushed-halt": Down, "session-timeout": Down,
		"sigusr1": Nothing, "sighup": Nothing, "ping-restart": Nothing, "connection-reset": Nothing, "tls-error": Nothing,
		"server-pushed-connection-reset": Nothing, "auth-failure": Nothing, "of some later version": Nothing,
	} {
		for _, script := range []string{"down", "route-pre-down"} {
			c, err := Read(environment("script_type=" + script + "\ndev=tun0\nscript_context=init\nsignal=" + signal + "\n"))
			if err != nil || c.Event != want || c.Signal != signal {
				t.Errorf("%s by %q: %v, %v; want %s", script, signal, eventNames[c.Event], err, eventNames[want])
			}
		}
	}
}

const many = tun + "remote_2=203.0.113.9\nremote_port_2=443\nproto_2=tcp-client\nremote_3=2001:db8::9\nremote_port_3=1194\nproto_3=udp6\n" +
	"remote_4=next.example\nremote_port_4=1195\nproto_4=udp\nremote_5=next.example\nremote_port_5=443\nproto_5=tcp\n" +
	"route_network_1=10.1.0.0\nroute_netmask_1=255.255.0.0\nroute_network_2=203.0.113.9\nroute_netmask_2=255.255.255.255\n" +
	"route_ipv6_network_1=2001:db8::9/128\n"

func session(t *testing.T, c *Call) enforce.Session {
	t.Helper()
	s, err := c.Session()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestAllServers: the client may go on to any of its servers; the server's own host
// route is no prefix to protect in either family.
func TestAllServers(t *testing.T) {
	c, err := Read(environment(many))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(c.Names()), "[vpn.example next.example]"; got != want {
		t.Errorf("names %s, want %s", got, want)
	}
	c.Resolved("next.example", []netip.Addr{netip.MustParseAddr("203.0.113.11"), netip.MustParseAddr("10.1.0.7"), netip.MustParseAddr("::ffff:203.0.113.12")})
	c.Unresolved("vpn.example", errors.New("no such host"))
	s := session(t, &c)
	if got, want := fmt.Sprint(s.Protect), "[10.1.0.0/16 10.8.0.0/24]"; got != want {
		t.Errorf("protected %s, want %s", got, want)
	}
	want := "[203.0.113.9:443/tcp [2001:db8::9]:1194/udp 198.51.100.7:1194/udp 198.51.100.7:1194/tcp 203.0.113.11:1195/udp 203.0.113.11:443/tcp 203.0.113.12:1195/udp 203.0.113.12:443/tcp]"
	if got := fmt.Sprint(s.Servers); got != want {
		t.Errorf("servers %s\nwant    %s", got, want)
	}
	warned := strings.Join(c.Warnings, "\n")
	for _, text := range []string{"next.example resolves to 10.1.0.7, inside 10.1.0.0/16", "vpn.example is not resolved (no such host)"} {
		if !strings.Contains(warned, text) {
			t.Errorf("not said: %s\n%s", text, warned)
		}
	}
}

// TestKnown: what up resolved is taken again by route-up, as far as it fits.
func TestKnown(t *testing.T) {
	c, err := Read(environment(many))
	if err != nil {
		t.Fatal(err)
	}
	var before []enforce.Server
	for _, addr := range []string{"203.0.113.11:1195", "203.0.113.12:7", "203.0.113.13:443", "10.1.0.7:1195"} {
		before = append(before, enforce.Server{Addr: netip.MustParseAddrPort(addr), Proto: "udp"})
	}
	c.Known(before)
	got := fmt.Sprint(session(t, &c).Servers)
	if !strings.Contains(got, "203.0.113.11:1195/udp") || strings.Contains(got, "203.0.113.12") || strings.Contains(got, "203.0.113.13") || strings.Contains(got, "10.1.0.7") {
		t.Errorf("servers %s", got)
	}
}

// TestManyNames: what is resolved has bounds.
func TestManyNames(t *testing.T) {
	text := tun
	for n := 2; n < 40; n++ {
		text += fmt.Sprintf("remote_%d=%d.example\nremote_port_%d=1\nproto_%d=udp\n", n, n, n, n)
	}
	c, err := Read(environment(text))
	if err != nil || len(c.Names()) != maxNames {
		t.Fatalf("%d names, %v", len(c.Names()), err)
	}
	if w := c.Warnings; len(w) != maxWarnings+1 || !strings.Contains(w[0], "17.example is one of more than 16 names") || !strings.Contains(w[maxWarnings], "there is more") {
		t.Errorf("%d warnings: %q", len(w), w)
	}
	var addrs []netip.Addr
	for i := range 100 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}))
	}
	c.Resolved("2.example", addrs)
	if n := len(session(t, &c).Servers); n != 1+maxAddrs {
		t.Errorf("%d servers", n)
	}
}

// TestServerByName: a server that was resolved is known; it is warned of one that was not.
func TestServerByName(t *testing.T) {
	for _, resolved := range []bool{true, false} {
		c, err := Read(environment("script_type=up\ndev=tun0\nifconfig_local=10.8.0.6\nifconfig_remote=10.8.0.5\n" +
			"remote_1=vpn.example\nremote_port_1=1194\nproto_1=udp\n"))
		if err != nil {
			t.Fatal(err)
		}
		if resolved {
			c.Resolved("vpn.example", []netip.Addr{netip.MustParseAddr("198.51.100.7")})
		}
		session(t, &c)
		if got := strings.Contains(strings.Join(c.Warnings, "\n"), "address is not known"); got == resolved {
			t.Errorf("resolved %t: warnings %q", resolved, c.Warnings)
		}
	}
}

// TestResolvedInside: a name's address inside a prefix that is routed into the tunnel by itself is no server, and the
// longest such prefix is told. One that goes around the tunnel, or that is half of all addresses, hides nothing.
func TestResolvedInside(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.5": "", "1.2.3.4": "", "10.1.0.9": "", "203.0.113.1": "",
		"10.1.0.7": "10.1.0.0/16", "10.200.0.7": "10.0.0.0/8", "100.64.0.1": "64.0.0.0/2",
	} {
		c, err := Read(environment(bare + "route_vpn_gateway=10.8.0.1\nroute_network_1=0.0.0.0\nroute_netmask_1=128.0.0.0\n" +
			"route_network_2=10.0.0.0\nroute_netmask_2=255.0.0.0\nroute_network_3=10.1.0.0\nroute_netmask_3=255.255.0.0\n" +
			"route_network_4=10.0.0.0\nroute_netmask_4=255.128.0.0\nroute_network_5=192.0.2.0\nroute_netmask_5=255.255.255.0\nroute_gateway_5=192.168.1.1\n" +
			"route_network_6=64.0.0.0\nroute_netmask_6=192.0.0.0\nroute_network_7=203.0.113.0\nroute_netmask_7=255.255.255.0\n" +
			"remote_1=vpn.example\nremote_port_1=1194\nproto_1=udp\nremote_2=10.1.0.9\nremote_port_2=1194\nproto_2=udp\nremote_3=203.0.113.1\nremote_port_3=443\nproto_3=tcp\n"))
		if err != nil {
			t.Fatal(err)
		}
		c.Resolved("vpn.example", []netip.Addr{netip.MustParseAddr(addr)})
		taken := strings.Contains(fmt.Sprint(c.servers), addr+":1194/udp")
		if told := strings.Contains(strings.Join(c.Warnings, " "), "resolves to "+addr+", inside "+want+", "); taken != (want == "") || told == taken {
			t.Errorf("%s is a server: %t, warnings %q; want it inside %q", addr, taken, c.Warnings, want)
		}
	}
}

// TestRemoteOfNoProtocol: it is told of a remote that is not understood.
func TestRemoteOfNoProtocol(t *testing.T) {
	c, err := Read(environment(bare + "remote_1=192.0.2.1\nremote_port_1=1194\nproto_1=sctp\n"))
	if got := strings.Join(c.Warnings, " "); err != nil || got != `remote 192.0.2.1 has the protocol "sctp", which is not understood` {
		t.Errorf("%q, %v", got, err)
	}
}
