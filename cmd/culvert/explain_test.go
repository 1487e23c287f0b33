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
	const eth, tun = 2, 7
	via := func(links ...uint32) answer {
		r := plan.Route{Dst: netip.MustParsePrefix("10.1.0.0/16"), Protocol: 4}
		var hops []plan.Hop
		for _, l := range links {
			hops = append(hops, plan.Hop{Link: l})
		}
		return answer{route: r.WithHops(hops...), table: "main", rules: []string{"32766: from all lookup main"}}
	}
	typed := func(a answer, typ plan.Type) answer { a.route.Type = typ; return a }
	sessions := []enforce.Session{
		{Tunnel: "tun0", Protect: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Exclude: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}},
		{Tunnel: "gone0", Protect: []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")}},
	}
	tests := []struct {
		name, dst string
		a         answer
		right     bool
		verdict   string
	}{
		{"through the tunnel", "10.1.2.3", via(tun), true, "right: it leaves through tun0"},
		{"elsewhere", "10.1.2.3", via(eth), false, "wrong: it leaves by eth0"},
		{"partly elsewhere", "10.1.2.3", via(tun, eth), false, "wrong: it leaves by eth0"},
		{"unknown interface", "10.1.2.3", via(99), false, "wrong: it leaves by an interface that is not known"},
		{"no way", "10.1.2.3", answer{refused: errors.New("network is unreachable")}, false, "wrong: it reaches nothing, the tunnel included (network is unreachable)"},
		{"cut off", "10.1.2.3", typed(via(0), plan.Blackhole), false, "wrong: the route cuts it off (blackhole)"},
		{"own address", "10.1.2.3", typed(via(eth), plan.Local), false, "wrong: it is this host's own address, packets to it stay here; routes cannot change that"},
		{"own address on the tunnel", "10.8.0.2", typed(via(1), plan.Local), true, "right: it is this host's own address on the tunnel"},
		{"excluded", "10.9.1.1", via(eth), true, "right: it may bypass the tunnel"},
		{"unlisted", "8.8.8.8", via(eth), true, "right: nothing is asked of it"},
		{"ignored", "169.254.1.1", via(eth), true, "right: nothing is asked of it"},
		{"tunnel that is not there", "172.16.0.1", via(tun), false, "wrong: it leaves by tun0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := explanation{dst: netip.MustParseAddr(tt.dst), answer: tt.a, names: map[uint32]string{1: "lo", eth: "eth0", tun: "tun0"},
				links: []plan.Link{{Index: tun, Name: "tun0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24")}}}}
			e.judge(sessions)
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
	e := explanation{dst: netip.MustParseAddr("10.1.2.3"), names: map[uint32]string{2: "eth0"},
		answer: answer{table: "main", rules: []string{"100: from all fwmark 0x1 lookup main", "32766: from all lookup main"},
			route: plan.Route{Dst: netip.MustParsePrefix("10.1.0.0/16"), Type: plan.Unicast, Metric: 100, Protocol: 4,
				Hop: plan.Hop{Link: 2, Via: netip.MustParseAddr("192.168.1.1")}}}}
	e.judge(nil)
	var b strings.Builder
	e.print(&b)
	want := `address  10.1.2.3
policy   no session protects it
kernel   10.1.0.0/16 via 192.168.1.1 dev eth0 proto ` + protocolName(4) + ` metric 100
table    main
rule     100: from all fwmark 0x1 lookup main
or rule  32766: from all lookup main
verdict  right: nothing is asked of it
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
}
