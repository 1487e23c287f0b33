package witness

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/loader"
)

// fakeSystem has a few interfaces and answers with one way.
type fakeSystem struct {
	way   Way
	err   error
	asked []Packet
}

var fakeLinks = map[int]string{2: "eth0", 3: "br0", 4: "cont0", 5: "vrf1", 7: "tun0"}

func (s *fakeSystem) Way(_ context.Context, p Packet) (Way, error) {
	s.asked = append(s.asked, p)
	return s.way, s.err
}

func (s *fakeSystem) Link(index int) string { return fakeLinks[index] }

func (s *fakeSystem) Cgroup(pid int) string {
	if pid == 1 {
		return "/init.scope"
	}
	return ""
}

func TestRuleMatches(t *testing.T) {
	p := Packet{Dst: netip.MustParseAddr("172.31.1.10"), Src: netip.MustParseAddr("10.77.0.20"), Proto: 17, TOS: 0x10, Mark: 0x2a, UID: 1000, Device: "eth0", Ingress: ""}
	for text, want := range map[string]bool{
		"100: from all lookup 100":                               true,
		"100: from 10.77.0.0/16 lookup 100":                      true,
		"100: from 10.78.0.0/16 lookup 100":                      false,
		"100: not from 10.78.0.0/16 lookup 100":                  true,
		"100: from all to 172.31.0.0/16 lookup 100":              true,
		"100: from all to 172.30.0.0/16 lookup 100":              false,
		"100: from all tos 0x10 lookup 100":                      true,
		"100: from all tos 0x08 lookup 100":                      false,
		"100: from all fwmark 0x2a/0xffffffff lookup 100":        true,
		"100: from all fwmark 0x2/0xf lookup 100":                false,
		"100: from all fwmark 0xa/0xf lookup 100":                true,
		"100: not from all fwmark 0xca6c/0xffffffff lookup 100":  true,
		"100: from all iif lo lookup 100":                        true,
		"100: from all iif cont0 lookup 100":                     false,
		"100: from all oif eth0 lookup 100":                      true,
		"100: from all oif tun0 lookup 100":                      false,
		"100: from all uidrange 1000-1000 lookup 100":            true,
		"100: from all uidrange 0-999 lookup 100":                false,
		"100: from all ipproto 17 lookup 100":                    true,
		"100: from all ipproto 6 lookup 100":                     false,
		"100: from all l3mdev lookup 100":                        false,
		"100: from all something new lookup 100":                 false,
		"100: from all suppress_prefixlength 0 lookup main":      true,
		"100: from all to 172.31.0.0/16 tos 0x08 lookup 100":     false,
		"100: from all to 172.31.0.0/16 tos 0x10 iif lo lookup":  false,
		"100: not from all to 172.31.0.0/16 uidrange 1-2 lookup": false,
	} {
		if got := (Rule{Text: text}).matches(&p); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
}

func TestExplain(t *testing.T) {
	main := Rule{"main", "32766: from all lookup main", false}
	mark := Rule{"100", "100: from all fwmark 0x2a/0xffffffff lookup 100", true}
	other := Rule{"100", "90: from all uidrange 1-2 lookup 100", true}
	iif := Rule{"100", "100: from all iif cont0 lookup 100", true}
	from := Rule{"100", "100: from 10.77.0.0/24 lookup 100", true}
	out := Way{Route: "172.31.1.0/24 dev eth0", Table: "main", Links: []int{2}, Rules: []Rule{mark, main}}
	into := Way{Route: "172.31.0.0/16 dev tun0", Table: "main", Links: []int{7}, Rules: []Rule{mark, main}}
	with := func(w Way, rules ...Rule) Way { w.Rules = append(rules, main); return w }
	table := func(w Way, name string) Way { w.Table = name; return w }
	leak := loader.LeakProtected
	container := who{device: 2, ingress: 4, reason: leak, origin: loader.Forwarded, source: netip.MustParseAddr("192.168.9.2")}
	tests := []struct {
		name string
		s    seen
		way  Way
		want string
	}{
		{"bound", seen{id: who{device: 2, bound: 2, reason: leak, origin: loader.Socket}}, into, "bound: SO_BINDTODEVICE eth0"},
		{"bound to a bridge, seen at its port", seen{id: who{device: 2, bound: 3, reason: leak}}, out, "bound: SO_BINDTODEVICE br0"},
		{"VRF", seen{id: who{device: 2, bound: 5, reason: leak}}, table(out, "200"), "vrf: bound to VRF vrf1: table 200, 172.31.1.0/24 dev eth0"},
		{"packet socket", seen{id: who{device: 2, reason: leak, origin: loader.Packet}}, into, "packet: a packet socket, which asks no route"},
		{"sender", seen{id: who{device: 2, reason: loader.LeakSender}}, into,
			"server: to where the tunnel's own packets go, but not from who sends those; --server-from any lets such pass"},
		{"forwarded to the server", seen{id: who{device: 2, reason: loader.LeakSender, origin: loader.Forwarded}}, into,
			"server: forwarded to where the tunnel's own packets go; --server-from any lets such pass"},
		{"server", seen{id: who{device: 2, reason: loader.LeakServer}}, into, "server: to the VPN server's address, but not the tunnel's own transport"},
		{"early", seen{id: who{device: 2, reason: loader.LeakEarly}}, into, "early: by an interface too new to have a program"},
		{"rule for a mark", seen{id: who{device: 2, reason: leak}, mark: 0x2a}, with(table(out, "100"), other, mark), "rule: rule " + mark.Text + ", 172.31.1.0/24 dev eth0"},
		{"rule that is not understood", seen{id: who{device: 2, reason: leak}}, with(table(out, "100"), other), "rule: rule " + other.Text + ", 172.31.1.0/24 dev eth0"},
		{"wg-quick's rule leads into the tunnel", seen{id: who{device: 2, reason: leak}}, with(table(into, "51820"), Rule{"51820", "100: not from all fwmark 0xca6c lookup 51820", true}), "in-flight: no route"},
		{"rule for a source", seen{id: who{device: 2, reason: leak}, src: netip.MustParseAddr("10.77.0.20")}, with(into, from), "rule: rule " + from.Text},
		{"rule for another source", seen{id: who{device: 2, reason: leak}, src: netip.MustParseAddr("10.78.0.20")}, with(into, from), "in-flight: no route"},
		{"forwarded", seen{id: container}, with(into, mark), "forwarded: forwarded from cont0 (192.168.9.2)"},
		{"forwarded by a rule", seen{id: container}, with(into, iif), "rule: forwarded from cont0 (192.168.9.2); rule " + iif.Text},
		{"a rule behind main's takes nothing from it", seen{id: container}, with(into, Rule{"100", iif.Text, false}), "forwarded: forwarded from cont0 (192.168.9.2)"},
		{"route", seen{id: who{device: 2, reason: leak}}, out, "route: route 172.31.1.0/24 dev eth0"},
		{"route that is gone", seen{id: who{device: 2, reason: leak}}, into, "in-flight: no route leads there now"},
		{"no route", seen{id: who{device: 2, reason: leak}}, Way{Refused: true}, "in-flight: no route leads there now"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.s.to, tt.s.tunnel, tt.s.present = netip.MustParseAddrPort("172.31.1.10:5000"), 7, true
			c := explain(context.Background(), &fakeSystem{way: tt.way}, &tt.s)
			if got := string(c.mechanism) + ": " + c.text; !strings.HasPrefix(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	s := seen{id: who{device: 2, reason: leak}, to: netip.MustParseAddrPort("172.31.1.10:5000"), present: true}
	if c := explain(context.Background(), &fakeSystem{way: out}, &s); c.mechanism != report.NoTunnel || !c.ofTable() {
		t.Errorf("the tunnel is away: %v", c)
	}
	if c := explain(context.Background(), &fakeSystem{err: errors.New("no")}, &s); c.mechanism != report.Unknown {
		t.Errorf("no answer: %v", c)
	}
}
