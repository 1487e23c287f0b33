package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

func TestExplanation(t *testing.T) {
	const eth, docker, tun, tun1 = 2, 3, 7, 8
	via := func(links ...uint32) answer {
		r := plan.Route{Dst: netip.MustParsePrefix("10.1.0.0/16"), Protocol: 4}
		var hops []plan.Hop
		for _, l := range links {
			hops = append(hops, plan.Hop{Link: l})
		}
		return answer{route: r.WithHops(hops...), table: "main", rule: "32766: from all lookup main"}
	}
	typed := func(a answer, typ plan.Type) answer { a.route.Type = typ; return a }
	sessions := []enforce.Session{
		{Tunnel: "tun0", Protect: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Exclude: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}},
		{Tunnel: "tun1", Protect: []netip.Prefix{netip.MustParsePrefix("192.0.0.0/8")}, ExcludeInterfaces: []string{"docker*"}, Servers: []enforce.Server{
			{Addr: netip.MustParseAddrPort("192.0.2.7:1194"), Proto: "udp"}, {Addr: netip.MustParseAddrPort("198.51.100.7:443"), Proto: "tcp"}}},
		{Tunnel: "gone0", Protect: []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")}},
	}
	tests := []struct {
		name, dst string
		a         answer
		right     bool
		verdict   string
		proto     uint8
		port      uint16
	}{
		{"through the tunnel", "10.1.2.3", via(tun), true, "right: it leaves through tun0", 0, 0},
		{"elsewhere", "10.1.2.3", via(eth), false, "wrong: it leaves by eth0", 0, 0},
		{"partly elsewhere", "10.1.2.3", via(tun, eth), false, "wrong: it leaves by eth0", 0, 0},
		{"unknown interface", "10.1.2.3", via(99), false, "wrong: it leaves by an interface that is not known", 0, 0},
		{"no way", "10.1.2.3", answer{refused: errors.New("network is unreachable")}, false, "wrong: it reaches nothing, the tunnel included (network is unreachable)", 0, 0},
		{"cut off", "10.1.2.3", typed(via(0), plan.Blackhole), false, "wrong: the route cuts it off (blackhole)", 0, 0},
		{"own address", "10.1.2.3", typed(via(eth), plan.Local), false, "wrong: it is this host's own address, packets to it stay here; routes cannot change that", 0, 0},
		{"own address on the tunnel", "10.8.0.2", typed(via(1), plan.Local), true, "right: it is this host's own address on the tunnel", 0, 0},
		{"excluded", "10.9.1.1", via(eth), true, "right: it may bypass the tunnel", 0, 0},
		{"unlisted", "8.8.8.8", via(eth), true, "right: nothing is asked of it", 0, 0},
		{"ignored", "169.254.1.1", via(eth), true, "right: nothing is asked of it", 0, 0},
		{"server's transport", "192.0.2.7", via(eth), true, "right: it bypasses the tunnel", 0, 0},
		{"server's transport into its own tunnel", "192.0.2.7", via(tun1), false, "wrong: the tunnel's own packets would enter the tunnel", 0, 0},
		{"server that cannot be reached", "192.0.2.7", answer{refused: errors.New("no route to host")}, false, "wrong: the server cannot be reached (no route to host)", 0, 0},
		{"server outside every prefix, into its own tunnel", "198.51.100.7", via(tun1), false, "wrong: the tunnel's own packets would enter the tunnel", 0, 0},
		{"a packet of the transport", "192.0.2.7", via(eth), true, "right: it bypasses the tunnel", 17, 1194},
		{"another port of the server", "192.0.2.7", via(eth), false, "wrong: it leaves by eth0", 17, 53},
		{"another protocol to the server", "192.0.2.7", via(eth), false, "wrong: it leaves by eth0", 1, 0},
		{"another packet to a server outside every prefix", "198.51.100.7", via(eth), true, "right: nothing is asked of it", 1, 0},
		{"excluded interface", "192.1.1.1", via(docker), true, "right: it leaves by docker0, which is excluded", 0, 0},
		{"another session's excluded interface", "10.1.1.1", via(docker), false, "wrong: it leaves by docker0", 0, 0},
		{"tunnel that is not there", "172.16.0.1", via(tun), false, "wrong: it leaves by tun0", 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := explanation{query: query{dst: netip.MustParseAddr(tt.dst), proto: tt.proto, port: tt.port}, answer: tt.a, names: map[uint32]string{1: "lo", eth: "eth0", docker: "docker0", tun: "tun0", tun1: "tun1"},
				links: []plan.Link{{Index: tun, Name: "tun0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24")}}}}
			e.judge(asked{sessions: sessions, gateways: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}})
			if e.right != tt.right || e.verdict != tt.verdict {
				t.Errorf("got %t, %q; want %t, %q", e.right, e.verdict, tt.right, tt.verdict)
			}
			if (exitCode(e.err()) == exitOK) != tt.right {
				t.Errorf("exit code %d", exitCode(e.err()))
			}
		})
	}
}

func TestExplanationText(t *testing.T) {
	e := explanation{query: query{dst: netip.MustParseAddr("10.1.2.3")}, names: map[uint32]string{2: "eth0"},
		answer: answer{table: "main", rule: "32766: from all lookup main", unless: []string{"100: from all ipproto 6 lookup 77"},
			route: plan.Route{Dst: netip.MustParsePrefix("10.1.0.0/16"), Type: plan.Unicast, Metric: 100, Protocol: 4,
				Hop: plan.Hop{Link: 2, Via: netip.MustParseAddr("192.168.1.1")}}}}
	e.judge(asked{})
	var b strings.Builder
	e.print(&b)
	want := `address  10.1.2.3
policy   no session protects it
kernel   10.1.0.0/16 via 192.168.1.1 dev eth0 proto ` + protocolName(4) + ` metric 100
table    main
rule     32766: from all lookup main
unless   100: from all ipproto 6 lookup 77
verdict  right: nothing is asked of it
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
}
