package plan_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce/plan"
)

// situation is one table, one policy, and what Make has to say of them.
type situation struct {
	name     string
	spec     plan.Spec
	table    []string
	held     []plan.Held
	links    []plan.Link // nil: links()
	baseline bool
	before   *plan.Spec
	want     []string
}

func (s situation) run(t *testing.T) plan.Plan {
	t.Helper()
	in := plan.Input{Policy: build(t, s.spec), Table: slices.Values(routes(s.table...)), Held: s.held, Links: s.links, Baseline: s.baseline}
	if in.Links == nil {
		in.Links = links()
	}
	if s.before != nil {
		in.Before = build(t, *s.before)
	}
	pl := plan.Make(in)
	if got := lines(pl); !slices.Equal(got, s.want) {
		t.Errorf("actions are\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(s.want, "\n  "))
	}
	return pl
}

// session returns a spec of one session on tun0, changed by f.
func session(protect string, change func(*plan.Session)) plan.Spec {
	s := plan.Session{Tunnel: tun0, TunnelUp: true, Protect: prefixes(protect)}
	if change != nil {
		change(&s)
	}
	return plan.Spec{Sessions: []plan.Session{s}}
}

func server(addr string) func(*plan.Session) {
	return func(s *plan.Session) { s.Servers = []netip.Addr{netip.MustParseAddr(addr)} }
}

func held(id uint64, route string) plan.Held { return plan.Held{ID: id, Route: rt(route)} }

const (
	lan     = "192.168.1.0/24 dev eth0 proto kernel src 192.168.1.10"
	gateway = "default via 192.168.1.1 dev eth0"
)

// TestMustExist has a row for each sentence of "What must exist".
func TestMustExist(t *testing.T) {
	full := "0.0.0.0/1 128.0.0.0/1"
	fullRoutes := []string{"0.0.0.0/1 via 10.8.0.1 dev tun0", "128.0.0.0/1 via 10.8.0.1 dev tun0"}
	seen := session("10.0.0.0/8", nil)
	seen.Seen = routes("10.0.0.0/8 via 10.8.0.1 dev tun0 metric 50 proto static")
	split, gated, gated6 := session("10.0.0.0/8", nil), session(full, server("203.0.113.5")), session("2000::/3", server("2001:db8:77::5"))
	gated.Pinholes, gated.Gateways = prefixes("192.168.1.1/32"), prefixes("192.168.1.1/32")
	gated6.Pinholes, gated6.Gateways = prefixes("2001:db8:2::1/128"), prefixes("2001:db8:2::1/128")
	const subnet6 = "2001:db8:2::/64 dev eth0 metric 256 proto kernel"
	vpn6 := []string{"2000::/3 dev tun0 metric 1", "::/0 via 2001:db8:2::1 dev eth0 metric 1024", "2001:db8:77::5/128 via 2001:db8:2::1 dev eth0 metric 1 proto own"}
	behind := session("::/0", server("2001:db8:77::5"))
	behind.Seen = routes("::/0 dev tun0 metric 3000")
	for _, s := range []situation{
		{name: "nothing to do", spec: session("10.0.0.0/8", nil), table: []string{gateway, lan, "10.0.0.0/8 dev tun0 metric 50"}},
		{name: "missing: put first, then conflicts are removed", spec: session("10.0.0.0/8 fd00::/8", nil),
			table: []string{gateway, "10.1.0.0/16 dev eth0"},
			want:  []string{"put 10.0.0.0/8 dev tun0", "put fd00::/8 dev tun0 metric 1", "remove 10.1.0.0/16 dev eth0"}},
		{name: "put back as it was seen last", spec: seen, table: []string{gateway},
			want: []string{"put 10.0.0.0/8 via 10.8.0.1 dev tun0 metric 50 proto static"}},
		{name: "replaced by someone", spec: seen, table: []string{"10.0.0.0/8 dev eth0 metric 50"},
			want: []string{"put 10.0.0.0/8 via 10.8.0.1 dev tun0 metric 50 proto static", "remove 10.0.0.0/8 dev eth0 metric 50"}},
		{name: "dead: as good as missing", spec: seen, table: []string{"10.0.0.0/8 via 10.8.0.1 dev tun0 metric 50 dead"},
			want: []string{"put 10.0.0.0/8 via 10.8.0.1 dev tun0 metric 50 proto static"}},
		{name: "seen through a nexthop object: put back by value", spec: plan.Spec{Sessions: seen.Sessions, Seen: routes("10.0.0.0/8 dev tun0 nhid 7 metric 50 proto static")},
			table: []string{"10.0.0.0/8 via 192.168.1.1 dev eth0 nhid 7 metric 50 proto static"},
			want:  []string{"put 10.0.0.0/8 dev tun0 metric 50", "remove 10.0.0.0/8 via 192.168.1.1 dev eth0 metric 50 nhid 7 proto static"}},
		{name: "a tunnel route for a TOS or a source alone does not count", spec: session("10.0.0.0/8 fd00::/8", nil),
			table: []string{"10.0.0.0/8 dev tun0 tos 0x10", "fd00::/8 from fd08::/64 dev tun0 metric 1024"},
			want:  []string{"put 10.0.0.0/8 dev tun0", "put fd00::/8 dev tun0 metric 1", "remove fd00::/8 from fd08::/64 dev tun0 metric 1024"}},
		{name: "a family that the tunnel leaves out is rejected, whatever the tunnel's state",
			spec:  session("10.0.0.0/8", func(s *plan.Session) { s.Reject, s.TunnelUp = prefixes("2000::/3"), false }),
			table: []string{"10.0.0.0/8 dev tun0", "default via fe80::1 dev eth0 metric 1024", "2001:db8:1::/64 dev eth0 metric 256"},
			want:  []string{"put unreachable 2000::/3 metric 1 [ahead]", "remove 2001:db8:1::/64 dev eth0 metric 256"}},
		{name: "rejected already, and what the tunnel takes of it after all stays",
			spec:  session("10.0.0.0/8", func(s *plan.Session) { s.Reject = prefixes("2000::/3") }),
			table: []string{"10.0.0.0/8 dev tun0", "unreachable 2000::/3 dev lo metric 1 proto own", "2001:db8:1::/64 dev tun0 metric 1024"}},
		{name: "another's rejecting route is not ours",
			spec:  session("10.0.0.0/8", func(s *plan.Session) { s.Reject = prefixes("2000::/3") }),
			table: []string{"10.0.0.0/8 dev tun0", "unreachable 2000::/3 dev lo metric 1024"},
			want:  []string{"put unreachable 2000::/3 metric 1 [ahead]"}},
		{name: "IPv4 is rejected at the lowest metric, as its other routes stand",
			spec:  session("fd00::/8", func(s *plan.Session) { s.Reject = prefixes("128.0.0.0/1") }),
			table: []string{"fd00::/8 dev tun0 metric 1024"}, want: []string{"put unreachable 128.0.0.0/1 [ahead]"}},
		{name: "rejected no longer", spec: session("10.0.0.0/8", nil),
			table: []string{"10.0.0.0/8 dev tun0", "unreachable 2000::/3 dev lo metric 1 proto own"},
			want:  []string{"withdraw unreachable 2000::/3 dev lo metric 1 proto own"}},
		{name: "a table of its own: nothing put, equal stays, longer goes",
			spec:  session("0.0.0.0/0", func(s *plan.Session) { s.OtherTable = prefixes("0.0.0.0/0") }),
			table: []string{gateway, "10.1.0.0/16 dev eth1"}, want: []string{"remove 10.1.0.0/16 dev eth1"}},
		{name: "tunnel down: nothing put", spec: session("10.0.0.0/8", func(s *plan.Session) { s.TunnelUp = false }), table: []string{gateway}},
		{name: "pinhole: the gateway's connected route goes, its host route comes before",
			spec: session(full, server("203.0.113.5")), baseline: true,
			table: append([]string{gateway, lan, "203.0.113.5 via 192.168.1.1 dev eth0"}, fullRoutes...),
			want: []string{"put 192.168.1.1/32 dev eth0 src 192.168.1.10",
				"remove 192.168.1.0/24 dev eth0 proto kernel src 192.168.1.10 [hold]"}},
		{name: "pinhole: standing, nothing to do", spec: session(full, server("203.0.113.5")), held: []plan.Held{held(1, lan)},
			table: append([]string{gateway, "192.168.1.1 dev eth0 src 192.168.1.10 proto own", "203.0.113.5 via 192.168.1.1 dev eth0"}, fullRoutes...)},
		{name: "the server's own host route is put back", spec: session(full, server("203.0.113.5")), held: []plan.Held{held(1, lan)},
			table: append([]string{gateway, "192.168.1.1 dev eth0 src 192.168.1.10 proto own"}, fullRoutes...),
			want:  []string{"put 203.0.113.5/32 via 192.168.1.1 dev eth0"}},
		{name: "no pinhole where the LAN is not protected", spec: session("10.0.0.0/8", server("203.0.113.5")),
			table: []string{gateway, lan, "10.0.0.0/8 dev tun0"}},
		{name: "the server inside a protected prefix", spec: session("203.0.113.0/24", server("203.0.113.5")),
			table: []string{gateway, lan, "203.0.113.0/24 dev tun0"}, want: []string{"put 203.0.113.5/32 via 192.168.1.1 dev eth0"}},
		{name: "a server in an ignored range needs nothing", spec: session("0.0.0.0/0", server("127.0.0.1")),
			table: []string{"default dev tun0", gateway}, want: []string{"remove 0.0.0.0/0 via 192.168.1.1 dev eth0 [behind]"}},
		{name: "the way to the server is a held route", spec: session("0.0.0.0/0", server("203.0.113.5")),
			held:  []plan.Held{held(1, gateway), held(2, lan)},
			table: []string{"default dev tun0"},
			want:  []string{"put 192.168.1.1/32 dev eth0 src 192.168.1.10", "put 203.0.113.5/32 via 192.168.1.1 dev eth0"}},
		{name: "a held way by an interface that has no address of its family is none", spec: session("0.0.0.0/0", server("203.0.113.5")),
			held: []plan.Held{held(1, gateway+" onlink")}, links: changed(eth0, addrs("2001:db8:2::10/64")), table: []string{"default dev tun0"}},
		{name: "a held default route is no subnet of its gateway",
			spec: session("0.0.0.0/0", func(s *plan.Session) {
				s.Servers, s.Exclude = []netip.Addr{netip.MustParseAddr("203.0.113.5")}, prefixes("192.168.1.0/24")
			}),
			held: []plan.Held{held(1, gateway)}, table: []string{"default dev tun0", lan},
			want: []string{"put 203.0.113.5/32 via 192.168.1.1 dev eth0"}},
		{name: "nor is one whose first leg is down", spec: session("0.0.0.0/0", server("203.0.113.5")), links: changed(eth0, down),
			held: []plan.Held{held(1, "default nexthop via 192.168.1.1 dev eth0 nexthop via 192.168.7.1 dev eth1")}, table: []string{"default dev tun0"}},
		{name: "nor is one whose first leg is gone", spec: session("0.0.0.0/0", server("203.0.113.5")), links: without(eth0),
			held: []plan.Held{held(1, "default nexthop via 192.168.1.1 dev eth0 nexthop via 192.168.7.1 dev eth1 nhid 7")}, table: []string{"default dev tun0"}},
		{name: "what carries nothing, or not all, is no way to the server", spec: session("203.0.113.0/24", server("203.0.113.5")),
			table: []string{"203.0.113.0/24 dev tun0", gateway + " dead", "default via 192.168.1.2 dev eth0 tos 0x10", "default via 192.168.1.3", "unreachable default dev eth0"}},
		{name: "the same of IPv6", spec: session("2001:db8:77::/48", server("2001:db8:77::5")),
			table: []string{"2001:db8:77::/48 dev tun0 metric 1024", "::/0 from 2001:db8:2::/64 via fe80::1 dev eth0 metric 1024"}},
		{name: "a link-local gateway needs no route", spec: behind, baseline: true,
			table: []string{"::/0 via fe80::1 dev eth0 metric 1024", "::/0 dev eth0 metric 2000", "::/0 dev tun0 metric 3000"},
			want:  []string{"put 2001:db8:77::5/128 via fe80::1 dev eth0 metric 1", "remove ::/0 via fe80::1 dev eth0 metric 1024 [hold]", "remove ::/0 dev eth0 metric 2000 [hold]"}},
		{name: "ours serves, if its source address is ours to choose", spec: session(full, server("203.0.113.5")),
			table: append([]string{gateway, "203.0.113.5 via 192.168.1.1 dev eth0 src 192.168.1.10 proto own"}, fullRoutes...)},
		{name: "but not with another source address than the gateway's subnet has", spec: session(full, server("203.0.113.5")), held: []plan.Held{held(1, lan)},
			table: append([]string{gateway, "192.168.1.1 dev eth0 src 192.168.1.99 proto own", "203.0.113.5 via 192.168.1.1 dev eth0 proto own"}, fullRoutes...),
			want:  []string{"put 192.168.1.1/32 dev eth0 src 192.168.1.10", "withdraw 192.168.1.1/32 dev eth0 proto own src 192.168.1.99"}},
		{name: "nor is one of a network that was left", spec: session("0.0.0.0/0", server("203.0.113.5")),
			held: []plan.Held{in("192.168.9.0/24", held(1, gateway))}, table: []string{"default dev tun0"},
			want: []string{"forget 0.0.0.0/0 via 192.168.1.1 dev eth0 [held=1]: its interface is in another network now"}},
		{name: "nor is one to whose gateway nothing leads", spec: session("0.0.0.0/0", server("203.0.113.5")), links: changed(eth0, addrs("10.44.0.20/24")),
			held: []plan.Held{held(1, gateway)}, table: []string{"default dev tun0"}},
		{name: "a subnet that is lost leads to no gateway", spec: session(full, server("203.0.113.5")), links: changed(eth0, addrs("192.168.1.77/24")),
			held: []plan.Held{held(1, lan)}, table: append([]string{gateway}, fullRoutes...),
			want: []string{"put 203.0.113.5/32 via 192.168.1.1 dev eth0", "forget " + lan + " [held=1]: its address was removed"}},
		{name: "the gateway's subnet is the longest one on its interface that holds it", spec: session(full, server("203.0.113.5")), baseline: true,
			table: append([]string{gateway, "192.168.0.0/16 dev eth0 src 192.168.0.9", lan, "192.168.1.0/25 dev eth1 src 192.168.1.9", "192.168.1.128/25 dev eth0 src 192.168.1.200"}, fullRoutes...),
			want: []string{"put 192.168.1.1/32 dev eth0 src 192.168.1.10", "put 203.0.113.5/32 via 192.168.1.1 dev eth0",
				"remove 192.168.0.0/16 dev eth0 src 192.168.0.9 [hold]", "remove 192.168.1.0/24 dev eth0 proto kernel src 192.168.1.10 [hold]",
				"remove 192.168.1.0/25 dev eth1 src 192.168.1.9 [hold]", "remove 192.168.1.128/25 dev eth0 src 192.168.1.200 [hold]"}},
		{name: "a subnet that merely loses against the tunnel's is no way that went", spec: session("192.168.1.0/24 203.0.113.0/24", server("203.0.113.5")), baseline: true,
			table: []string{gateway, "192.168.1.0/24 dev tun0", "192.168.1.0/24 dev eth0 metric 100 proto kernel src 192.168.1.10", "203.0.113.0/24 dev tun0"},
			want:  []string{"put 203.0.113.5/32 via 192.168.1.1 dev eth0"}},
		{name: "ours to other places do not serve", spec: session(full, server("203.0.113.5")), held: []plan.Held{held(1, lan)},
			table: append([]string{gateway, "192.168.1.9 dev eth0 src 192.168.1.10 proto own", "203.0.113.5 via 192.168.1.2 dev eth0 proto own"}, fullRoutes...),
			want: []string{"put 192.168.1.1/32 dev eth0 src 192.168.1.10", "put 203.0.113.5/32 via 192.168.1.1 dev eth0",
				"withdraw 192.168.1.9/32 dev eth0 proto own src 192.168.1.10", "withdraw 203.0.113.5/32 via 192.168.1.2 dev eth0 proto own"}},
		{name: "the server inside what the VPN routes in a table of its own",
			spec:  session("0.0.0.0/0", func(s *plan.Session) { s.Servers, s.OtherTable = hosts("203.0.113.5"), prefixes("0.0.0.0/0") }),
			table: []string{gateway}},
		{name: "an attack on the way to the server, read first", spec: session("203.0.0.0/16", server("203.0.113.5")),
			table: []string{"203.0.0.0/16 dev tun0", "203.0.113.0/24 via 192.168.1.66 dev eth0", gateway},
			want:  []string{"put 203.0.113.5/32 via 192.168.1.1 dev eth0", "remove 203.0.113.0/24 via 192.168.1.66 dev eth0"}},
		{name: "an attack on the way to the server, read last", spec: session("203.0.0.0/16", server("203.0.113.5")),
			table: []string{"203.0.0.0/16 dev tun0", gateway, "203.0.113.0/24 via 192.168.1.66 dev eth0"},
			want:  []string{"put 203.0.113.5/32 via 192.168.1.1 dev eth0", "remove 203.0.113.0/24 via 192.168.1.66 dev eth0"}},
		{name: "where there are attacks alone, the longest one leads", spec: session("203.0.0.0/16", server("203.0.113.5")),
			table: []string{"203.0.0.0/16 dev tun0", "203.0.113.0/24 via 192.168.1.66 dev eth0", "203.0.112.0/20 via 192.168.1.67 dev eth0"},
			want:  []string{"put 203.0.113.5/32 via 192.168.1.66 dev eth0", "remove 203.0.112.0/20 via 192.168.1.67 dev eth0", "remove 203.0.113.0/24 via 192.168.1.66 dev eth0"}},
		{name: "of two honest ways the one with the lower metric, read first", spec: session("203.0.113.0/24", server("203.0.113.5")),
			table: []string{"203.0.113.0/24 dev tun0", gateway + " metric 5", "default via 192.168.7.1 dev eth1 metric 9"},
			want:  []string{"put 203.0.113.5/32 via 192.168.1.1 dev eth0"}},
		{name: "of two honest ways the longer one, read last", spec: session("203.0.113.0/24", server("203.0.113.5")),
			table: []string{"203.0.113.0/24 dev tun0", gateway, "203.0.0.0/16 via 192.168.7.1 dev eth1 metric 9"},
			want:  []string{"put 203.0.113.5/32 via 192.168.7.1 dev eth1"}},
		{name: "what stood under the policy before leads, not what conflicted", spec: session("0.0.0.0/0", server("10.200.0.1")), before: &split,
			table: []string{"default dev tun0", gateway, "10.200.0.0/16 via 192.168.1.66 dev eth0"},
			want:  []string{"put 10.200.0.1/32 via 192.168.1.1 dev eth0", "remove 0.0.0.0/0 via 192.168.1.1 dev eth0 [hold] [behind]", "remove 10.200.0.0/16 via 192.168.1.66 dev eth0"}},
		{name: "a connected route leads, not an attack on it", spec: session("192.168.0.0/16", server("192.168.1.5")),
			table: []string{"192.168.0.0/16 dev tun0", lan, "192.168.1.0/25 via 192.168.1.66 dev eth0"},
			want:  []string{"put 192.168.1.5/32 dev eth0 src 192.168.1.10", "remove " + lan + " [hold]", "remove 192.168.1.0/25 via 192.168.1.66 dev eth0"}},
		{name: "a lease's subnet leads, not an attack on it", spec: session("192.168.0.0/16", server("192.168.1.5")),
			table: []string{"192.168.0.0/16 dev tun0", "192.168.1.0/24 dev eth0 proto dhcp src 192.168.1.10", "192.168.1.0/25 via 192.168.1.66 dev eth0"},
			want:  []string{"put 192.168.1.5/32 dev eth0 src 192.168.1.10", "remove 192.168.1.0/24 dev eth0 proto dhcp src 192.168.1.10 [hold]", "remove 192.168.1.0/25 via 192.168.1.66 dev eth0"}},
		{name: "what merely looks connected does not", spec: session("192.168.0.0/16", server("192.168.1.5")),
			table: []string{"192.168.0.0/16 dev tun0", gateway, "192.168.1.0/24 dev eth0 proto static", "192.168.1.0/25 dev eth0 proto kernel src 192.168.1.99"},
			want:  []string{"put 192.168.1.5/32 via 192.168.1.1 dev eth0", "remove 192.168.1.0/24 dev eth0 proto static", "remove 192.168.1.0/25 dev eth0 proto kernel src 192.168.1.99"}},
		{name: "a kept route to the server needs none of ours",
			spec:  session(full, func(s *plan.Session) { s.Servers, s.KeepLinks = hosts("203.0.113.5"), []uint32{docker0} }),
			table: append([]string{gateway, "203.0.113.0/24 dev docker0"}, fullRoutes...)},
		{name: "but one that is no longer than what is protected",
			spec:  session("203.0.113.0/24", func(s *plan.Session) { s.Servers, s.KeepLinks = hosts("203.0.113.5"), []uint32{docker0} }),
			table: []string{gateway, "203.0.113.0/24 dev docker0", "203.0.113.0/24 dev tun0"}, want: []string{"put 203.0.113.5/32 dev docker0"}},
		{name: "another's host route to the gateway may go any time: ours stands beside it", spec: gated, held: []plan.Held{held(1, lan)},
			table: append([]string{gateway, "192.168.1.1 dev eth0 proto static", "203.0.113.5 via 192.168.1.1 dev eth0 proto own"}, fullRoutes...),
			want:  []string{"put 192.168.1.1/32 dev eth0"}},
		{name: "also where nothing else is known to lead to it", spec: gated,
			table: append([]string{gateway, "192.168.1.1 dev eth0 proto static", "203.0.113.5 via 192.168.1.1 dev eth0 proto own"}, fullRoutes...),
			want:  []string{"put 192.168.1.1/32 dev eth0"}},
		{name: "but not where the operator excluded it",
			spec:  session(full, func(s *plan.Session) { s.Servers, s.Exclude = hosts("203.0.113.5"), prefixes("192.168.1.1/32") }),
			table: append([]string{gateway, "192.168.1.1 dev eth0 proto static", "203.0.113.5 via 192.168.1.1 dev eth0 proto own"}, fullRoutes...)},
		{name: "IPv6 cannot tell ours from another's that goes the same way", spec: gated6, held: []plan.Held{held(1, subnet6)},
			table: append([]string{"2001:db8:2::1/128 dev eth0 metric 1 proto static"}, vpn6...)},
		{name: "IPv6, at another metric", spec: gated6, held: []plan.Held{held(1, subnet6)},
			table: append([]string{"2001:db8:2::1/128 dev eth0 metric 5 proto static"}, vpn6...), want: []string{"put 2001:db8:2::1/128 dev eth0 metric 1"}},
		{name: "IPv6, by another interface", spec: gated6, held: []plan.Held{held(1, subnet6)},
			table: append([]string{"2001:db8:2::1/128 dev eth1 metric 1 proto static"}, vpn6...), want: []string{"put 2001:db8:2::1/128 dev eth0 metric 1"}},
		{name: "ours that lies inside a wider one of the tunnel's", spec: session("10.0.0.0/8", nil),
			table: []string{"10.0.0.0/8 dev tun0", "10.1.0.0/16 dev tun0 proto own"}, want: []string{"withdraw 10.1.0.0/16 dev tun0 proto own"}},
		{name: "a default route for a source prefix is not the tunnel's route", spec: session("::/0", nil),
			table: []string{"::/0 from fd08::/64 dev tun0 metric 1024"}, want: []string{"put ::/0 dev tun0 metric 1"}},
		{name: "an attack does not lead the transport astray", spec: session("0.0.0.0/0", server("203.0.113.5")), held: []plan.Held{held(1, gateway), held(2, lan)},
			table: []string{"default dev tun0", "192.168.1.1 dev eth0 src 192.168.1.10 proto own", "203.0.113.5 via 192.168.1.1 dev eth0 proto own",
				"203.0.113.0/24 via 192.168.1.66 dev eth0", "192.168.1.0/25 dev eth1"},
			want: []string{"remove 192.168.1.0/25 dev eth1", "remove 203.0.113.0/24 via 192.168.1.66 dev eth0"}},
		{name: "but a new network does, when the old one is gone", spec: session("0.0.0.0/0", server("203.0.113.5")), held: []plan.Held{held(1, gateway)},
			links: []plan.Link{{Index: eth0, Name: "eth0", Up: true}, {Index: eth1, Name: "eth1", Up: true, Addrs: addresses("192.168.7.10/24")}, {Index: tun0, Name: "tun0", Up: true}},
			table: []string{"default dev tun0", "default via 192.168.7.1 dev eth1 metric 600", "192.168.7.0/24 dev eth1 proto kernel src 192.168.7.10"},
			want: []string{"put 192.168.7.1/32 dev eth1 src 192.168.7.10", "put 203.0.113.5/32 via 192.168.7.1 dev eth1",
				"remove 192.168.7.0/24 dev eth1 proto kernel src 192.168.7.10 [hold]"}},
		{name: "a pinhole that nothing needs is withdrawn", spec: session("10.0.0.0/8", server("203.0.113.5")),
			table: []string{gateway, lan, "10.0.0.0/8 dev tun0", "192.168.1.1 dev eth0 proto own"},
			want:  []string{"withdraw 192.168.1.1/32 dev eth0 proto own"}},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t) })
	}
}

// TestRemove has a row for each sentence of "Removing and restoring" that is
// about removing.
func TestRemove(t *testing.T) {
	spec := session("10.0.0.0/8 fd00::/8 192.168.0.0/16", nil)
	ours := []string{"10.0.0.0/8 dev tun0", "192.168.0.0/16 dev tun0", "fd00::/8 via fd08::1 dev tun0 metric 1024"}
	all := spec
	all.RestoreAll = true
	for _, s := range []situation{
		{name: "what stood before the connection is held", spec: spec, baseline: true, table: append(ours, "10.1.0.0/16 dev eth0"),
			want: []string{"remove 10.1.0.0/16 dev eth0 [hold]"}},
		{name: "what came while connected is not", spec: spec, table: append(ours, "10.1.0.0/16 dev eth0"),
			want: []string{"remove 10.1.0.0/16 dev eth0"}},
		{name: "but a connected route is, if its address stands", spec: spec, table: append(ours, lan),
			want: []string{"remove 192.168.1.0/24 dev eth0 proto kernel src 192.168.1.10 [hold]"}},
		{name: "and not, if its address is gone", spec: spec, table: append(ours, "192.168.9.0/24 dev eth0 proto kernel src 192.168.9.10"),
			want: []string{"remove 192.168.9.0/24 dev eth0 proto kernel src 192.168.9.10"}},
		{name: "nor, if it is another of the same network", spec: spec, table: append(ours, "192.168.1.0/24 dev eth0 proto kernel src 192.168.1.99"),
			want: []string{"remove 192.168.1.0/24 dev eth0 proto kernel src 192.168.1.99"}},
		{name: "nor, if its interface is gone", spec: spec, links: without(eth1), table: append(ours, "192.168.7.0/24 dev eth1 proto kernel src 192.168.7.10"),
			want: []string{"remove 192.168.7.0/24 dev eth1 proto kernel src 192.168.7.10"}},
		{name: "restore: all holds whatever is removed", spec: all, table: append(ours, "10.1.0.0/16 dev eth0"),
			want: []string{"remove 10.1.0.0/16 dev eth0 [hold]"}},
		{name: "added again by its owner: the newer copy replaces the held one", spec: spec, held: []plan.Held{held(7, "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static")},
			table: append(ours, "10.1.0.0/16 via 192.168.1.1 dev eth0 src 192.168.1.10 proto static"),
			want:  []string{"remove 10.1.0.0/16 via 192.168.1.1 dev eth0 proto static src 192.168.1.10 [hold] [held=7]"}},
		{name: "by another gateway it is a rival's, which takes no held one's place", spec: spec, held: []plan.Held{held(7, "10.1.0.0/16 via 192.168.1.1 dev eth0 proto dhcp")},
			table: append(ours, "10.1.0.0/16 via 192.168.1.66 dev eth0 proto dhcp"),
			want:  []string{"remove 10.1.0.0/16 via 192.168.1.66 dev eth0 proto dhcp"}},
		{name: "nor does the first leg alone take the place of all", spec: spec, held: []plan.Held{held(7, "10.1.0.0/16 nexthop via 192.168.1.1 dev eth0 nexthop via 192.168.7.1 dev eth1")},
			table: append(ours, "10.1.0.0/16 via 192.168.1.1 dev eth0"),
			want:  []string{"remove 10.1.0.0/16 via 192.168.1.1 dev eth0"}},
		{name: "nor does one of more legs", spec: spec, held: []plan.Held{held(7, "10.1.0.0/16 via 192.168.1.1 dev eth0")},
			table: append(ours, "10.1.0.0/16 nexthop via 192.168.1.1 dev eth0 nexthop via 192.168.7.1 dev eth1"),
			want:  []string{"remove 10.1.0.0/16 via 192.168.1.1 dev eth0 via 192.168.7.1 dev eth1"}},
		{name: "the identical one is taken for itself, not for another's copy", spec: spec,
			held:  []plan.Held{held(7, "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static")},
			table: append(ours, "10.1.0.0/16 via 192.168.1.9 dev eth0 proto static", "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static"),
			want: []string{"remove 10.1.0.0/16 via 192.168.1.9 dev eth0 proto static",
				"remove 10.1.0.0/16 via 192.168.1.1 dev eth0 proto static [hold] [held=7]"}},
		{name: "nor is it taken for itself twice", spec: spec,
			held:  []plan.Held{held(7, "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static")},
			table: append(ours, "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static src 192.168.1.10", "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static"),
			want: []string{"remove 10.1.0.0/16 via 192.168.1.1 dev eth0 proto static src 192.168.1.10",
				"remove 10.1.0.0/16 via 192.168.1.1 dev eth0 proto static [hold] [held=7]"}},
		{name: "nor for another one too", spec: spec,
			held:  []plan.Held{held(7, "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static"), held(8, "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static src 192.168.1.10")},
			table: append(ours, "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static"),
			want:  []string{"remove 10.1.0.0/16 via 192.168.1.1 dev eth0 proto static [hold] [held=7]"}},
		{name: "the newer copy of one that is lost takes its place", spec: spec,
			held:  []plan.Held{held(7, "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static src 192.168.9.9")},
			table: append(ours, "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static"),
			want:  []string{"remove 10.1.0.0/16 via 192.168.1.1 dev eth0 proto static [hold] [held=7]"}},
		{name: "what is lost is forgotten, while it conflicts too", spec: spec, links: without(eth1), held: []plan.Held{held(7, "10.1.0.0/16 dev eth1")}, table: ours,
			want: []string{"forget 10.1.0.0/16 dev eth1 [held=7]: its interface is gone"}},
		{name: "at the first look a newer copy too", spec: spec, baseline: true,
			held:  []plan.Held{held(7, "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static")},
			table: append(ours, "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static src 192.168.1.10"),
			want:  []string{"remove 10.1.0.0/16 via 192.168.1.1 dev eth0 proto static src 192.168.1.10 [hold]"}},
		{name: "at the first look what stands was there beside what is held", spec: spec, baseline: true,
			held:  []plan.Held{held(7, "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static")},
			table: append(ours, "10.1.0.0/16 via 192.168.1.9 dev eth0 proto static"),
			want:  []string{"remove 10.1.0.0/16 via 192.168.1.9 dev eth0 proto static [hold]"}},
		{name: "added by another: the held one stays", spec: spec, held: []plan.Held{held(7, "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static")},
			table: append(ours, "10.1.0.0/16 via 192.168.1.9 dev eth0 proto boot"),
			want:  []string{"remove 10.1.0.0/16 via 192.168.1.9 dev eth0 proto boot"}},
		{name: "IPv6 ECMP entry: the foreign leg alone", spec: spec, table: []string{ours[0], ours[1],
			"fd00::/8 metric 1024 nexthop via fd08::1 dev tun0 nexthop via fe80::1 dev eth0"},
			want: []string{"remove fd00::/8 via fe80::1 dev eth0 metric 1024"}},
		{name: "a longer IPv6 ECMP entry: whole", spec: spec, table: append(ours, "fd00:1::/32 metric 5 nexthop via fd08::1 dev tun0 nexthop via fe80::1 dev eth0"),
			want: []string{"remove fd00:1::/32 via fd08::1 dev tun0 via fe80::1 dev eth0 metric 5"}},
		{name: "an IPv6 ECMP entry for a source prefix: whole", spec: spec, table: append(ours, "fd00::/8 from fd08::/64 metric 5 nexthop via fd08::1 dev tun0 nexthop via fe80::1 dev eth0"),
			want: []string{"remove fd00::/8 from fd08::/64 via fd08::1 dev tun0 via fe80::1 dev eth0 metric 5"}},
		{name: "behind one that the operator keeps", spec: session("10.0.0.0/8", func(s *plan.Session) { s.KeepLinks = []uint32{docker0} }),
			table: []string{"10.0.0.0/8 dev docker0", "10.0.0.0/8 dev eth0", "10.0.0.0/8 dev tun0"}, want: []string{"remove 10.0.0.0/8 dev eth0 [behind]"}},
		{name: "IPv6 ECMP entry by a nexthop group: whole, and the tunnel's put back", spec: spec, table: []string{ours[0], ours[1],
			"fd00::/8 metric 1 nexthop via fd08::1 dev tun0 nexthop via fe80::1 dev eth0 nhid 8"},
			want: []string{"put fd00::/8 dev tun0 metric 1", "remove fd00::/8 via fd08::1 dev tun0 via fe80::1 dev eth0 metric 1 nhid 8"}},
		{name: "IPv4 multipath with the tunnel's leg: whole, and the tunnel's put back", spec: spec, table: []string{ours[1], ours[2],
			"10.0.0.0/8 nexthop dev tun0 nexthop via 192.168.1.1 dev eth0"},
			want: []string{"put 10.0.0.0/8 dev tun0", "remove 10.0.0.0/8 dev tun0 via 192.168.1.1 dev eth0"}},
		{name: "a tie on metric: who stood before and who behind is told", spec: spec, baseline: true,
			table: []string{"10.0.0.0/8 dev eth0", "10.0.0.0/8 dev tun0", "10.0.0.0/8 dev eth1", ours[1], ours[2]},
			want:  []string{"remove 10.0.0.0/8 dev eth0 [hold]", "remove 10.0.0.0/8 dev eth1 [hold] [behind]"}},
		{name: "a slot is taken out from its ends inward", spec: spec, baseline: true,
			table: []string{"10.0.0.0/8 dev eth0", "10.0.0.0/8 dev eth1", "10.0.0.0/8 dev tun0", "10.0.0.0/8 dev docker0", "10.0.0.0/8 via 192.168.1.1 dev eth0", ours[1], ours[2]},
			want: []string{"remove 10.0.0.0/8 dev eth0 [hold]", "remove 10.0.0.0/8 dev eth1 [hold]",
				"remove 10.0.0.0/8 via 192.168.1.1 dev eth0 [hold] [behind]", "remove 10.0.0.0/8 dev docker0 [hold] [behind]"}},
		{name: "a slot of which nothing stays is taken out from its front: each delete finds first what it means", spec: spec, baseline: true,
			table: append(ours, "10.1.0.0/16 dev eth0 src 192.168.1.10", "10.1.0.0/16 dev eth0"),
			want:  []string{"remove 10.1.0.0/16 dev eth0 src 192.168.1.10 [hold]", "remove 10.1.0.0/16 dev eth0 [hold]"}},
		{name: "one of IPv6 from its end: it can be given back there alone", spec: spec, baseline: true,
			table: append(ours, "fd00:1::/32 dev eth0 metric 50", "fd00:1::/32 via fe80::1 dev eth0 metric 50"),
			want:  []string{"remove fd00:1::/32 via fe80::1 dev eth0 metric 50 [hold]", "remove fd00:1::/32 dev eth0 metric 50 [hold]"}},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t) })
	}
}

// TestStood: what the policy by which the table was last right let stand comes back,
// the first look asked or not.
func TestStood(t *testing.T) {
	less, more := session("10.0.0.0/8", nil), session("10.0.0.0/8 172.16.0.0/12", nil)
	table := []string{"10.0.0.0/8 dev tun0", "172.16.0.0/12 dev tun0", "10.1.0.0/16 dev eth0", "172.18.0.0/16 dev eth0"}
	for _, baseline := range []bool{false, true} {
		situation{spec: more, before: &less, baseline: baseline, table: table,
			want: []string{"remove 10.1.0.0/16 dev eth0", "remove 172.18.0.0/16 dev eth0 [hold]"}}.run(t)
	}
}

// TestStead: the tunnel's own route that another session took out is put where the
// one we would make up could not be told from it.
func TestStead(t *testing.T) {
	known := session("10.0.0.0/8", nil)
	known.Seen = routes("10.0.0.0/8 dev tun0 proto boot")
	const same = "10.0.0.0/8 dev tun0 proto static"
	for _, c := range []struct {
		name, held string
		spec       plan.Spec
		put        string
	}{
		{"it goes the same way", same, session("10.0.0.0/8", nil), same},
		{"another was seen", same, known, "10.0.0.0/8 dev tun0 proto boot"},
		{"another metric", same + " metric 5", session("10.0.0.0/8", nil), "10.0.0.0/8 dev tun0"},
		{"a gateway", "10.0.0.0/8 via 10.8.0.1 dev tun0", session("10.0.0.0/8", nil), "10.0.0.0/8 dev tun0"},
		{"more legs", "10.0.0.0/8 nexthop dev tun0 nexthop via 10.8.0.1 dev tun0", session("10.0.0.0/8", nil), "10.0.0.0/8 dev tun0"},
		{"a TOS", "10.0.0.0/8 dev tun0 tos 16", session("10.0.0.0/8", nil), "10.0.0.0/8 dev tun0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			situation{spec: c.spec, held: []plan.Held{held(1, c.held)},
				want: []string{"put " + c.put, "restore " + say(rt(c.held)) + " [held=1]"}}.run(t)
		})
	}
}

// TestLearnt: the policy learns how the tunnel's routes stand, and is the same one
// while it has nothing to learn.
func TestLearnt(t *testing.T) {
	spec := session("10.0.0.0/8 fd00::/8", nil)
	learn := func(p *plan.Policy, table ...string) (*plan.Policy, []string) {
		next := plan.Make(plan.Input{Policy: p, Table: slices.Values(routes(table...)), Links: links()}).Policy
		var seen []string
		for _, r := range next.Spec().Seen {
			seen = append(seen, say(r))
		}
		return next, seen
	}
	p := build(t, spec)
	if same, _ := learn(p, gateway); same != p {
		t.Error("another policy, though nothing was learnt")
	}
	p, seen := learn(p, gateway, "10.0.0.0/8 dev tun0 metric 70", "10.0.0.0/8 dev tun0 metric 50", "10.0.0.0/8 via 10.8.0.1 dev tun0 metric 50")
	if want := []string{"10.0.0.0/8 dev tun0 metric 50"}; !slices.Equal(seen, want) {
		t.Errorf("seen %q, want %q", seen, want)
	}
	if _, seen := learn(p, gateway, "10.0.0.0/8 dev tun0 metric 40"); !slices.Equal(seen, []string{"10.0.0.0/8 dev tun0 metric 40"}) {
		t.Errorf("seen %q after it changed", seen)
	}
	if same, seen := learn(p, gateway); same != p || len(seen) != 1 {
		t.Errorf("what was seen is forgotten as it goes: %q", seen)
	}
}

// TestShadowed: what stays in a conflict's place, and may be taken in its stead, is told.
func TestShadowed(t *testing.T) {
	spec := session("10.0.0.0/8 172.16.0.0/12 fd00::/8", nil)
	spec.Seen = routes("10.0.0.0/8 dev tun0 metric 50", "172.16.0.0/12 dev tun0", "fd00::/8 dev tun0 metric 50")
	pl := situation{spec: spec, table: []string{
		"172.16.0.0/12 dev tun0",
		"10.0.0.0/8 dev tun0 metric 50", "10.0.0.0/8 dev eth0 metric 50", "10.0.0.0/8 dev eth0 metric 70", "10.0.0.0/8 dev eth0 metric 60",
		"fd00::/8 metric 50 nexthop dev tun0 nexthop via fe80::1 dev eth0"},
		want: []string{"remove 10.0.0.0/8 dev eth0 metric 50 [behind]", "remove fd00::/8 via fe80::1 dev eth0 metric 50"}}.run(t)
	var got []string
	for _, r := range pl.Shadowed {
		got = append(got, say(r))
	}
	if want := []string{"10.0.0.0/8 dev tun0 metric 50", "10.0.0.0/8 dev eth0 metric 60", "10.0.0.0/8 dev eth0 metric 70"}; !slices.Equal(got, want) {
		t.Errorf("shadowed %q, want %q", got, want)
	}
}

// TestRestore has a row for each sentence of "Removing and restoring" that is
// about restoring. The policy is empty: the session has ended.
func TestRestore(t *testing.T) {
	default4 := held(1, gateway)
	eth0Gone := slices.DeleteFunc(links(), func(l plan.Link) bool { return l.Index == eth0 })
	for _, s := range []situation{
		{name: "connected before gatewayed, then what was standing in", table: []string{"192.168.1.1 dev eth0 proto own", "10.0.0.0/8 dev tun0"},
			held: []plan.Held{default4, held(2, lan)},
			want: []string{"restore 192.168.1.0/24 dev eth0 proto kernel src 192.168.1.10 [held=2]",
				"restore 0.0.0.0/0 via 192.168.1.1 dev eth0 [held=1]", "withdraw 192.168.1.1/32 dev eth0 proto own"}},
		{name: "the tunnel's routes that we put are withdrawn, the VPN's own are not", table: []string{"10.0.0.0/8 dev tun0 proto own", "10.0.0.0/9 dev tun0"},
			want: []string{"withdraw 10.0.0.0/8 dev tun0 proto own"}},
		{name: "ours are withdrawn in order, in whatever order they were read", table: []string{"10.2.0.0/16 dev eth0 proto own", "10.1.0.0/16 dev eth0 proto own"},
			want: []string{"withdraw 10.1.0.0/16 dev eth0 proto own", "withdraw 10.2.0.0/16 dev eth0 proto own"}},
		{name: "places that may hold a gateway come back before those that only need one", held: []plan.Held{
			held(1, "10.1.0.0/16 via 192.168.1.1 dev eth0"),
			held(2, "10.2.0.0/16 via 192.168.1.1 dev eth0"), held(3, "10.2.0.0/16 dev eth0"),
			held(4, "192.168.1.0/24 via 192.168.7.1 dev eth1"), held(5, lan),
			held(6, "192.168.9.0/24 dev eth0"), held(7, "10.3.0.0/16 dev eth0"), held(8, "10.3.0.0/16 via 192.168.1.1 dev eth0")},
			want: []string{"restore 192.168.9.0/24 dev eth0 [held=6]",
				"restore " + lan + " [held=5]", "restore 192.168.1.0/24 via 192.168.7.1 dev eth1 [held=4]",
				"restore 10.2.0.0/16 dev eth0 [held=3]", "restore 10.2.0.0/16 via 192.168.1.1 dev eth0 [held=2]",
				"restore 10.3.0.0/16 via 192.168.1.1 dev eth0 [held=8]", "restore 10.3.0.0/16 dev eth0 [held=7]",
				"restore 10.1.0.0/16 via 192.168.1.1 dev eth0 [held=1]"}},
		{name: "a tie on metric keeps its position", held: []plan.Held{
			{ID: 1, Route: rt("10.0.0.0/8 dev eth0"), First: true}, {ID: 2, Route: rt("10.0.0.0/8 dev eth1"), First: true},
			{ID: 3, Route: rt("10.0.0.0/8 via 192.168.1.1 dev eth0")}, {ID: 4, Route: rt("10.0.0.0/8 dev docker0")}},
			want: []string{"restore 10.0.0.0/8 dev docker0 [held=4]", "restore 10.0.0.0/8 via 192.168.1.1 dev eth0 [held=3]",
				"restore 10.0.0.0/8 dev eth1 [first] [held=2]", "restore 10.0.0.0/8 dev eth0 [first] [held=1]"}},
		{name: "a newer copy has the place of the one that it replaced", held: []plan.Held{
			{ID: 2, Route: rt("10.0.0.0/8 dev eth1"), First: true}, {ID: 3, Route: rt("10.0.0.0/8 dev docker0"), First: true},
			{ID: 9, Route: rt("10.0.0.0/8 dev eth0"), First: true, Place: 1}},
			want: []string{"restore 10.0.0.0/8 dev docker0 [first] [held=3]", "restore 10.0.0.0/8 dev eth1 [first] [held=2]", "restore 10.0.0.0/8 dev eth0 [first] [held=9]"}},
		{name: "the process died in a delete that had taken a look-alike: what stands before its place is lifted", table: []string{"10.0.0.0/8 dev tun0", "10.0.0.0/8 dev docker0", "10.0.0.0/8 dev eth0"},
			held: []plan.Held{held(1, "10.0.0.0/8 dev eth0"), held(2, "10.0.0.0/8 dev eth0 src 192.168.1.10"), held(3, "10.0.0.0/8 dev docker0")},
			want: []string{"lift 10.0.0.0/8 dev eth0 [held=1]", "restore 10.0.0.0/8 dev docker0 [held=3]",
				"restore 10.0.0.0/8 dev eth0 src 192.168.1.10 [held=2]", "restore 10.0.0.0/8 dev eth0 [held=1]"}},
		{name: "all that stand before one that comes back are lifted", table: []string{"10.0.0.0/8 dev eth1", "10.0.0.0/8 dev eth0"},
			held: []plan.Held{held(1, "10.0.0.0/8 dev eth0"), held(2, "10.0.0.0/8 dev eth1"), held(3, "10.0.0.0/8 dev docker0")},
			want: []string{"lift 10.0.0.0/8 dev eth1 [held=2]", "lift 10.0.0.0/8 dev eth0 [held=1]",
				"restore 10.0.0.0/8 dev docker0 [held=3]", "restore 10.0.0.0/8 dev eth1 [held=2]", "restore 10.0.0.0/8 dev eth0 [held=1]"}},
		{name: "one of another place comes back before it: nothing is lifted", table: []string{"10.0.0.0/8 dev eth1"},
			held: []plan.Held{held(1, "10.0.0.0/8 dev eth0"), held(2, "10.0.0.0/8 dev eth1"), held(3, "9.0.0.0/8 dev eth0")},
			want: []string{"restore 9.0.0.0/8 dev eth0 [held=3]", "restore 10.0.0.0/8 dev eth1 [held=2]", "restore 10.0.0.0/8 dev eth0 [held=1]"}},
		{name: "its place is another slot's: nothing is lifted", table: []string{"10.0.0.0/8 dev eth0"},
			held: []plan.Held{held(1, "10.0.0.0/8 dev eth0"), held(2, "10.0.0.0/8 dev eth0 metric 5"), held(3, "9.0.0.0/8 dev eth0")},
			want: []string{"restore 9.0.0.0/8 dev eth0 [held=3]", "restore 10.0.0.0/8 dev eth0 [held=1]", "restore 10.0.0.0/8 dev eth0 metric 5 [held=2]"}},
		{name: "forgotten when its interface is gone", links: eth0Gone, held: []plan.Held{default4},
			want: []string{"forget 0.0.0.0/0 via 192.168.1.1 dev eth0 [held=1]: its interface is gone"}},
		{name: "forgotten when its connected address was removed", held: []plan.Held{held(1, "192.168.9.0/24 dev eth0 proto kernel src 192.168.9.10")},
			want: []string{"forget 192.168.9.0/24 dev eth0 proto kernel src 192.168.9.10 [held=1]: its address was removed"}},
		{name: "forgotten when its source address was removed", held: []plan.Held{held(1, "10.1.0.0/16 dev eth0 src 192.168.9.10")},
			want: []string{"forget 10.1.0.0/16 dev eth0 src 192.168.9.10 [held=1]: its source address was removed"}},
		{name: "a lifetime goes on, and ends", held: []plan.Held{
			{ID: 1, Route: rt("fd00:1::/32 via fe80::1 dev eth0 expires 600"), Age: 200}, {ID: 2, Route: rt("fd00:2::/32 via fe80::1 dev eth0 expires 600"), Age: 600}},
			want: []string{"restore fd00:1::/32 via fe80::1 dev eth0 expires 600 [held=1] [age=200]",
				"forget fd00:2::/32 via fe80::1 dev eth0 expires 600 [held=2]: its lifetime ended"}},
		{name: "an IPv6 connected route without source comes back while its address stands", held: []plan.Held{
			held(1, "2001:db8:2::/64 dev eth0 metric 256 proto kernel"), held(2, "2001:db8:99::/64 dev eth0 metric 256 proto kernel")},
			want: []string{"restore 2001:db8:2::/64 dev eth0 metric 256 proto kernel [held=1]",
				"forget 2001:db8:99::/64 dev eth0 metric 256 proto kernel [held=2]: its address was removed"}},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t) })
	}
	t.Run("while connected what no longer conflicts comes back", func(t *testing.T) {
		situation{spec: session("10.0.0.0/8", nil), held: []plan.Held{held(1, "10.1.0.0/16 dev eth0"), held(2, "172.16.0.0/12 dev eth0")},
			table: []string{"10.0.0.0/8 dev tun0"}, want: []string{"restore 172.16.0.0/12 dev eth0 [held=2]"}}.run(t)
	})
}

// TestReported: what cannot or may not be enforced is said.
func TestReported(t *testing.T) {
	spec := session("172.16.0.0/12 192.168.0.0/16", func(s *plan.Session) { s.KeepLinks = []uint32{docker0} })
	pl := situation{spec: spec, table: []string{
		"172.16.0.0/12 dev tun0", "192.168.0.0/16 dev tun0 metric 100", "172.17.0.0/16 dev docker0 proto kernel", "192.168.0.0/16 dev docker0 metric 50"}}.run(t)
	var reported []string
	for _, r := range pl.Reported {
		reported = append(reported, say(r))
	}
	if want := []string{"172.17.0.0/16 dev docker0 proto kernel", "192.168.0.0/16 dev docker0 metric 50"}; !slices.Equal(reported, want) {
		t.Errorf("reported %q, want %q", reported, want)
	}
	var unfit []string
	for _, f := range pl.Unfit {
		unfit = append(unfit, f.Prefix.String()+" "+f.Text)
	}
	if want := []string{
		"192.168.1.10/32 is this host's own address on eth0: packets to it stay local",
		"192.168.7.10/32 is this host's own address on eth1: packets to it stay local",
		"172.17.0.1/32 is this host's own address on docker0: packets to it stay local",
	}; !slices.Equal(unfit, want) {
		t.Errorf("unfit %q, want %q", unfit, want)
	}
}

// TestServersWayWins: a host route to the server by its own tunnel stands (the
// VPN pushed it, or the server is the tunnel's peer). Ours goes ahead of it, or it
// is said that none can.
func TestServersWayWins(t *testing.T) {
	const pushed, peer = "203.0.113.5/32 via 10.8.0.1 dev tun0", "203.0.113.5/32 dev tun0 proto kernel src 10.8.0.2"
	const put, ours = "203.0.113.5/32 via 192.168.1.1 dev eth0", "203.0.113.5/32 via 192.168.1.1 dev eth0 proto own"
	full := session("0.0.0.0/1 128.0.0.0/1", server("203.0.113.5"))
	split := session("10.0.0.0/8", server("203.0.113.5"))
	vpn := []string{"0.0.0.0/1 dev tun0", "128.0.0.0/1 dev tun0", "10.0.0.0/8 dev tun0", gateway}
	kept := session("0.0.0.0/1 128.0.0.0/1", func(s *plan.Session) {
		s.Servers, s.Exclude = []netip.Addr{netip.MustParseAddr("203.0.113.5")}, prefixes("203.0.113.0/24")
	})
	two := session("0.0.0.0/1 128.0.0.0/1", server("203.0.113.5"))
	two.Sessions = append(two.Sessions, plan.Session{Tunnel: tun1, TunnelUp: true, Protect: prefixes("fd00::/8"), OtherTable: prefixes("fd00::/8")})
	for _, s := range []situation{
		{name: "pushed, full", spec: full, table: append(vpn, pushed), want: []string{"put " + put + " [ahead]"}},
		{name: "pushed, split", spec: split, table: append(vpn, pushed), want: []string{"put " + put + " [ahead]"}},
		{name: "the tunnel's peer", spec: full, table: append(vpn, peer), want: []string{"put " + put + " [ahead]"}},
		{name: "ahead already", spec: full, table: append(vpn, ours, pushed)},
		{name: "ahead already, and ours to the gateway is no rival's", spec: full, held: []plan.Held{held(1, lan)}, table: append(vpn, ours, pushed, "192.168.1.1/32 dev eth0 proto own src 192.168.1.10")},
		{name: "behind: it is put anew", spec: full, table: append(vpn, pushed, ours), want: []string{"put " + put + " [ahead]", "withdraw " + ours}},
		{name: "a route that survives is not as long", spec: kept, table: append(vpn, pushed, "203.0.113.0/24 via 192.168.1.1 dev eth0"), want: []string{"put " + put + " [ahead]"}},
		{name: "a route that survives, and no rival", spec: kept, table: append(vpn, "203.0.113.0/24 via 192.168.1.1 dev eth0")},
		{name: "a route that survives, and ours beside it", spec: kept, table: append(vpn, "203.0.113.0/24 via 192.168.1.1 dev eth0", ours)},
		{name: "a rival that carries nothing is none", spec: full, table: append(vpn, pushed+" dead"), want: []string{"put " + put}},
		{name: "nor is one for a TOS", spec: full, table: append(vpn, pushed+" tos 0x10"), want: []string{"put " + put}},
		{name: "nor is one that rejects", spec: full, table: append(vpn, "blackhole 203.0.113.5/32 dev tun0"), want: []string{"put " + put}},
		{name: "nor is a route to more than the server", spec: full, table: append(vpn, "203.0.113.0/24 dev tun0"), want: []string{"put " + put}},
		{name: "a rival with a higher metric never wins, and ours is put all the same", spec: full, table: append(vpn, pushed+" metric 9"), want: []string{"put " + put + " [ahead]"}},
		{name: "another session's tunnel may carry it", spec: two, table: append(vpn, "203.0.113.5/32 dev tun1"), want: []string{"put " + put}},
	} {
		t.Run(s.name, func(t *testing.T) {
			if pl := s.run(t); len(pl.Swallowed) > 0 {
				t.Errorf("swallowed by %v", pl.Swallowed)
			}
		})
	}
	six := session("::/1 8000::/1", server("2001:db8:77::5"))
	vpn6 := []string{"::/1 dev tun0", "8000::/1 dev tun0", "::/0 via fe80::1 dev eth0 metric 1024"}
	for _, s := range []struct {
		situation
		swallowed bool
	}{
		{situation{name: "IPv6, at the usual metric", spec: six, table: append(vpn6, "2001:db8:77::5/128 dev tun0 metric 1024"),
			want: []string{"put 2001:db8:77::5/128 via fe80::1 dev eth0 metric 1 [ahead]"}}, false},
		{situation{name: "IPv6, at the lowest", spec: six, table: append(vpn6, "2001:db8:77::5/128 dev tun0 metric 1"),
			want: []string{"put 2001:db8:77::5/128 via fe80::1 dev eth0 metric 1 [ahead]"}}, true},
		{situation{name: "IPv6, the best of two counts", spec: six, table: append(vpn6, "2001:db8:77::5/128 dev tun0 metric 1", "2001:db8:77::5/128 dev tun0 metric 1024"),
			want: []string{"put 2001:db8:77::5/128 via fe80::1 dev eth0 metric 1 [ahead]"}}, true},
		{situation{name: "IPv6, the best of two counts, read last", spec: six, table: append(vpn6, "2001:db8:77::5/128 dev tun0 metric 1024", "2001:db8:77::5/128 dev tun0 metric 1"),
			want: []string{"put 2001:db8:77::5/128 via fe80::1 dev eth0 metric 1 [ahead]"}}, true},
		{situation{name: "IPv6, ours stands beside it: there is no order", spec: six, table: append(vpn6, "2001:db8:77::5/128 dev tun0 metric 1", "2001:db8:77::5/128 via fe80::1 dev eth0 metric 1 proto own")}, true},
		{situation{name: "IPv6, ours was merged with it: nothing is put again and again", spec: six,
			table: append(vpn6, "2001:db8:77::5/128 metric 1 nexthop dev tun0 nexthop via fe80::1 dev eth0")}, true},
		{situation{name: "IPv6, another's stands where ours would", spec: six,
			table: append(vpn6, "2001:db8:77::5/128 via fe80::1 dev eth0 metric 1", "2001:db8:77::5/128 dev tun0 metric 1024")}, false},
		{situation{name: "IPv6, for a source prefix", spec: six, table: append(vpn6, "2001:db8:77::5/128 from 2001:db8:8::/64 dev tun0 metric 1"),
			want: []string{"put 2001:db8:77::5/128 via fe80::1 dev eth0 metric 1"}}, false},
		{situation{name: "no way outside at all", spec: full, table: append(vpn[:3:3], pushed)}, true},
		{situation{name: "no way is known, and ours stands ahead", spec: full, table: append(vpn[:3:3], ours, pushed)}, false},
		{situation{name: "no way is known, and ours stands behind: it goes ahead", spec: full, table: append(vpn[:3:3], pushed, ours),
			want: []string{"put " + put + " [ahead]", "withdraw " + ours}}, false},
	} {
		t.Run(s.name, func(t *testing.T) {
			if pl := s.run(t); (len(pl.Swallowed) > 0) != s.swallowed {
				t.Errorf("swallowed by %v", pl.Swallowed)
			}
		})
	}
}

// TestGatewaysOfExcludedRoutes: the next hop of what is excluded stays reachable
// as a server's does. (The server is a proxy on this host, its far end excluded.)
func TestGatewaysOfExcludedRoutes(t *testing.T) {
	spec := session("0.0.0.0/1 128.0.0.0/1", func(s *plan.Session) {
		s.Servers, s.Exclude = []netip.Addr{netip.MustParseAddr("127.0.0.1")}, prefixes("203.0.113.9/32")
	})
	vpn := []string{"0.0.0.0/1 dev tun0", "128.0.0.0/1 dev tun0", gateway, "203.0.113.9/32 via 192.168.1.1 dev eth0"}
	nested := spec
	several := session("0.0.0.0/1 128.0.0.0/1", func(s *plan.Session) { s.Exclude = prefixes("203.0.113.0/24") })
	nested.Sessions = append(slices.Clone(spec.Sessions), plan.Session{Tunnel: tun1, TunnelUp: true, Protect: prefixes("fd00::/8"), OtherTable: prefixes("fd00::/8")})
	const put, ours = "192.168.1.1/32 dev eth0 src 192.168.1.10", "192.168.1.1/32 dev eth0 proto own src 192.168.1.10"
	for _, s := range []situation{
		{name: "put before the subnet goes", spec: spec, baseline: true, table: append(vpn, lan), want: []string{"put " + put, "remove " + lan + " [hold]"}},
		{name: "kept while the subnet is out", spec: spec, table: append(vpn, ours), held: []plan.Held{held(1, lan)}},
		{name: "no more than needed", spec: spec, table: append(vpn[:3:3], lan), want: []string{"remove " + lan + " [hold]"}},
		{name: "nor of what carries nothing there", spec: spec, table: append(vpn[:3:3], lan, "other 203.0.113.9/32 via 192.168.1.1 dev eth0"), want: []string{"remove " + lan + " [hold]"}},
		{name: "several are put in order", spec: several, baseline: true, table: []string{"0.0.0.0/1 dev tun0", "128.0.0.0/1 dev tun0", lan,
			"203.0.113.7/32 via 192.168.1.4 dev eth0", "203.0.113.8/32 via 192.168.1.2 dev eth0", "203.0.113.9/32 via 192.168.1.5 dev eth0", "203.0.113.10/32 via 192.168.1.3 dev eth0"},
			want: []string{"put 192.168.1.2/32 dev eth0 src 192.168.1.10", "put 192.168.1.3/32 dev eth0 src 192.168.1.10",
				"put 192.168.1.4/32 dev eth0 src 192.168.1.10", "put 192.168.1.5/32 dev eth0 src 192.168.1.10", "remove " + lan + " [hold]"}},
		{name: "a next hop inside another tunnel needs nothing", spec: nested, table: []string{"0.0.0.0/1 dev tun0", "128.0.0.0/1 dev tun0", "203.0.113.9/32 via 10.9.0.1 dev tun1", "10.9.0.0/24 dev tun1"},
			baseline: true, want: []string{"remove 10.9.0.0/24 dev tun1 [hold]"}},
	} {
		t.Run(s.name, func(t *testing.T) {
			pl := s.run(t)
			if s.name == "several are put in order" {
				return
			}
			class, _ := pl.Policy.Lookup(netip.MustParseAddr("192.168.1.1"))
			if want := strings.HasPrefix(s.name, "put") || strings.HasPrefix(s.name, "kept"); (class == plan.Gateway) != want {
				t.Errorf("the router is %v", class)
			}
		})
	}
}

// TestDefaults: of each family the default route that wins outside the tunnels, the
// first of those that win alike.
func TestDefaults(t *testing.T) {
	pl := situation{spec: session("10.0.0.0/8", nil), table: []string{
		"10.0.0.0/8 dev tun0", lan,
		"default dev tun0 metric 1", "default dev eth0 metric 2 proto own", "default dev eth0 metric 3 dead", "default dev eth0 metric 4 tos 0x10",
		"default via fe80::9 dev eth1 metric 5", "default via 192.168.1.1 dev eth0 metric 9", "default via 192.168.7.1 dev eth1 metric 6", "default via 192.168.1.2 dev eth0 metric 6",
		"default via fe80::1 dev eth0 metric 1024"}, want: []string{"withdraw 0.0.0.0/0 dev eth0 metric 2 proto own"}}.run(t)
	var got []string
	for _, r := range pl.Defaults {
		got = append(got, say(r))
	}
	if want := []string{"::/0 via fe80::9 dev eth1 metric 5", "0.0.0.0/0 via 192.168.7.1 dev eth1 metric 6"}; !slices.Equal(got, want) {
		t.Errorf("default routes %q, want %q", got, want)
	}
}

// TestMissing: a protected prefix without its tunnel route is told, whether or not it
// can be put.
func TestMissing(t *testing.T) {
	pl := situation{spec: session("10.0.0.0/8 172.16.0.0/12 fd00::/8", func(s *plan.Session) {
		s.Mute6, s.OtherTable, s.Reject = true, prefixes("172.16.0.0/12"), prefixes("2000::/3")
	}), want: []string{"put 10.0.0.0/8 dev tun0", "put unreachable 2000::/3 metric 1 [ahead]"}}.run(t)
	if want := prefixes("10.0.0.0/8 fd00::/8"); !slices.Equal(pl.Missing, want) {
		t.Errorf("missing %v, want %v", pl.Missing, want)
	}
}

// TestPinholes: the policy knows the host routes that the transport needs, and those of
// them that are next hops, in order and no longer than they are needed.
func TestPinholes(t *testing.T) {
	spec := session("0.0.0.0/1 128.0.0.0/1", func(s *plan.Session) { s.Servers = hosts("203.0.113.9", "203.0.113.5") })
	vpn := []string{"0.0.0.0/1 dev tun0", "128.0.0.0/1 dev tun0", gateway}
	seen := routes(vpn[:2]...)
	const servers = "203.0.113.5/32 203.0.113.9/32"
	for _, c := range []struct {
		name, pinholes, gateways string // known before
		table                    []string
		want, wantGateways       string
	}{
		{"the first look", "", "", append(vpn, lan), "192.168.1.1/32 " + servers, "192.168.1.1/32"},
		{"known as pinholes alone", "192.168.1.1/32 " + servers, "", append(vpn, lan), "192.168.1.1/32 " + servers, "192.168.1.1/32"},
		{"the servers alone are new", "", "", vpn, servers, ""},
		{"an older one", "192.168.99.1/32 " + servers, "192.168.99.1/32", vpn, servers, ""},
		{"no way is known now", "192.168.99.1/32 " + servers, "192.168.99.1/32", vpn[:2], "192.168.99.1/32 " + servers, "192.168.99.1/32"},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := spec
			spec.Pinholes, spec.Gateways, spec.Seen = prefixes(c.pinholes), prefixes(c.gateways), seen
			got := plan.Make(plan.Input{Policy: build(t, spec), Table: slices.Values(routes(c.table...)), Links: links(), Baseline: true}).Policy.Spec()
			if !slices.Equal(got.Pinholes, prefixes(c.want)) || !slices.Equal(got.Gateways, prefixes(c.wantGateways)) {
				t.Errorf("pinholes %v, of them next hops %v", got.Pinholes, got.Gateways)
			}
		})
	}
}

// TestSlower: the tunnel's routes have higher metrics now, so that others win that never
// did. Of one place one may stay, and the other is behind it.
func TestSlower(t *testing.T) {
	spec := session("172.16.0.0/12 192.168.0.0/16", func(s *plan.Session) { s.KeepLinks = []uint32{docker0} })
	spec.Seen = routes("172.16.0.0/12 dev tun0 metric 50", "192.168.0.0/16 dev tun0 metric 50")
	pl := situation{spec: spec, table: []string{
		"192.168.0.0/16 dev tun0 metric 100", "192.168.0.0/16 dev docker0 metric 60", "192.168.0.0/16 dev eth0 metric 60",
		"172.16.0.0/12 dev tun0 metric 100", "172.16.0.0/12 dev docker0 metric 60"}, want: []string{"remove 192.168.0.0/16 dev eth0 metric 60 [behind]"}}.run(t)
	var got []string
	for _, r := range pl.Reported {
		got = append(got, say(r))
	}
	if want := []string{"172.16.0.0/12 dev docker0 metric 60", "192.168.0.0/16 dev docker0 metric 60"}; !slices.Equal(got, want) {
		t.Errorf("reported %q, want %q", got, want)
	}
}

// TestTunnelsAddress: the tunnel's own address is no address of this host's that
// protected packets would stay at.
func TestTunnelsAddress(t *testing.T) {
	if pl := (situation{spec: session("10.8.0.0/16", nil), table: []string{"10.8.0.0/16 dev tun0"}}).run(t); len(pl.Unfit) > 0 {
		t.Errorf("unfit: %v", pl.Unfit)
	}
}
