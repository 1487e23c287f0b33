package plan_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/culvert-project/culvert/enforce/plan"
)

// TestFindUplink has the interfaces that are taken for tunnels and are none, and
// beside each the tunnels that look alike.
func TestFindUplink(t *testing.T) {
	const server = "198.51.100.7"
	for _, tt := range []struct {
		name    string
		kind    plan.LinkKind
		link    uint32
		servers []netip.Addr
		table   []string
		want    string
	}{
		{"a card with the default route", plan.KindPlain, eth0, nil, []string{gateway, lan}, "default route 0.0.0.0/0 via 192.168.1.1 dev eth0"},
		{"an IPv6 default route too", plan.KindPlain, eth0, nil, []string{"default via fe80::1 dev eth0 metric 1024"}, "default route ::/0 via fe80::1 dev eth0 metric 1024"},
		{"the worse of two default routes", plan.KindPlain, eth1, nil, []string{gateway, "default via 10.1.1.1 dev eth1 metric 600"}, "default route 0.0.0.0/0 via 10.1.1.1 dev eth1 metric 600"},
		{"a card with no default route leads to a VPN box", plan.KindPlain, eth1, nil, []string{gateway, lan, "10.0.0.0/8 via 10.1.1.1 dev eth1"}, ""},
		{"the first of two default routes", plan.KindPlain, eth0, nil, []string{gateway, "default via 192.168.1.2 dev eth0 metric 9"}, "default route 0.0.0.0/0 via 192.168.1.1 dev eth0"},
		{"a default route that rejects", plan.KindPlain, eth1, nil, []string{gateway, "unreachable default dev eth1"}, ""},
		{"a default route of ours", plan.KindPlain, eth1, nil, []string{gateway, "default dev eth1 proto own"}, ""},
		{"a dead default route", plan.KindPlain, eth1, nil, []string{"default via 10.1.1.1 dev eth1 dead"}, ""},
		{"the only way to the server", plan.KindUnknown, eth0, hosts(server), []string{gateway, lan}, server + " 0.0.0.0/0 via 192.168.1.1 dev eth0"},
		{"its host route is the one that is named", plan.KindUnknown, eth0, hosts(server), []string{gateway, server + " via 192.168.1.2 dev eth0"}, server + " 198.51.100.7/32 via 192.168.1.2 dev eth0"},
		{"unknown, without a server", plan.KindUnknown, eth0, nil, []string{gateway}, ""},
		{"unknown, with its own default route and the server's host route", plan.KindUnknown, tun0, hosts(server), []string{"default dev tun0", server + " via 192.168.1.1 dev eth0"}, ""},
		{"unknown, the server's address is the peer's", plan.KindUnknown, tun0, hosts(server), []string{gateway, server + " dev tun0"}, ""},
		{"no way to the server at all", plan.KindUnknown, tun0, hosts(server), []string{lan}, ""},
		{"the server is on this host", plan.KindUnknown, tun0, hosts("127.0.0.1"), []string{"default dev tun0", "127.0.0.0/8 dev tun0"}, ""},
		{"a tunnel with the default route", plan.KindTunnel, tun0, nil, []string{"default via 10.8.0.1 dev tun0"}, ""},
		{"a tunnel while the network is away", plan.KindTunnel, tun0, hosts(server), []string{"default via 10.8.0.1 dev tun0"}, ""},
		{"a VPN in a VPN", plan.KindTunnel, tun1, hosts("10.0.0.5"), []string{gateway, "10.0.0.0/8 dev tun0", "172.16.0.0/12 dev tun1"}, ""},
		{"a VPN in a VPN, unknown", plan.KindUnknown, tun1, hosts("10.0.0.5"), []string{gateway, "10.0.0.0/8 dev tun0", "172.16.0.0/12 dev tun1"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up, ok := plan.FindUplink(&plan.Link{Index: tt.link, Kind: tt.kind}, tt.servers, slices.Values(routes(tt.table...)))
			got := ""
			if ok {
				got = "default route " + say(up.Route)
			}
			if up.Server.IsValid() {
				got = up.Server.String() + " " + say(up.Route)
			}
			if got != tt.want {
				t.Errorf("found %q, want %q", got, tt.want)
			}
		})
	}
}

func hosts(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}
