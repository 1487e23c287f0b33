package plan_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/culvert-project/culvert/enforce/plan"
)

// changed returns the interfaces with one of them changed.
func changed(index uint32, change func(*plan.Link)) []plan.Link {
	all := links()
	change(&all[slices.IndexFunc(all, func(l plan.Link) bool { return l.Index == index })])
	return all
}

func without(indices ...uint32) []plan.Link {
	return slices.DeleteFunc(links(), func(l plan.Link) bool { return slices.Contains(indices, l.Index) })
}

func addrs(words string) func(*plan.Link) {
	return func(l *plan.Link) { l.Addrs = addresses(words) }
}

func down(l *plan.Link) { l.Up = false }

// in says in which networks a held route's interfaces were.
func in(nets string, h plan.Held) plan.Held {
	h.Nets = prefixes(nets)
	return h
}

// TestLeftNetwork: what is held is forgotten when the kernel would have dropped
// it, or when the network that it belongs to was left. The session has ended.
func TestLeftNetwork(t *testing.T) {
	const back4, back = "restore 0.0.0.0/0 via 192.168.1.1 dev eth0 [held=1]", "restore 10.1.0.0/16 dev eth0 [held=1]"
	default4 := in("192.168.1.0/24", held(1, gateway))
	other := changed(eth0, addrs("10.44.0.20/24 2001:db8:2::10/64"))
	for _, s := range []situation{
		{name: "its interface lost its last address", links: changed(eth0, addrs("2001:db8:2::10/64")), held: []plan.Held{default4},
			want: []string{"forget 0.0.0.0/0 via 192.168.1.1 dev eth0 [held=1]: its interface is in another network now"}},
		{name: "its interface has another network's address", links: other, held: []plan.Held{default4},
			want: []string{"forget 0.0.0.0/0 via 192.168.1.1 dev eth0 [held=1]: its interface is in another network now"}},
		{name: "the same of a route with no gateway", links: other, held: []plan.Held{in("192.168.1.0/24", held(1, "10.1.0.0/16 dev eth0"))},
			want: []string{"forget 10.1.0.0/16 dev eth0 [held=1]: its interface is in another network now"}},
		{name: "another address of the same network", links: changed(eth0, addrs("192.168.1.77/24")), held: []plan.Held{default4}, want: []string{back4}},
		{name: "its interface never had an address", links: changed(eth0, addrs("")), held: []plan.Held{held(1, "10.1.0.0/16 dev eth0")}, want: []string{back}},
		{name: "its interface went down", links: changed(eth0, down), held: []plan.Held{default4},
			want: []string{"forget 0.0.0.0/0 via 192.168.1.1 dev eth0 [held=1]: its interface went down"}},
		{name: "IPv6: its interface went down", links: changed(eth0, down), held: []plan.Held{held(1, "fd00::/8 via fe80::1 dev eth0")},
			want: []string{"forget fd00::/8 via fe80::1 dev eth0 [held=1]: its interface went down"}},
		{name: "IPv6 outlives its network's address", links: changed(eth0, addrs("192.168.1.10/24 2001:db8:9::10/64")),
			held: []plan.Held{in("2001:db8:2::/64", held(1, "fd00::/8 via fe80::1 dev eth0"))}, want: []string{"restore fd00::/8 via fe80::1 dev eth0 [held=1]"}},

		{name: "nothing leads to its gateway", links: other, held: []plan.Held{held(1, gateway)},
			want: []string{"forget 0.0.0.0/0 via 192.168.1.1 dev eth0 [held=1]: nothing leads to its gateway any more"}},
		{name: "IPv6: nothing leads to its gateway", held: []plan.Held{held(1, "fd00::/8 via 2001:db8:99::1 dev eth0")},
			want: []string{"forget fd00::/8 via 2001:db8:99::1 dev eth0 [held=1]: nothing leads to its gateway any more"}},
		{name: "nothing leads to any of two gateways", links: other, held: []plan.Held{held(1, gateway), held(2, "10.1.0.0/16 via 192.168.1.2 dev eth0")},
			want: []string{"forget 0.0.0.0/0 via 192.168.1.1 dev eth0 [held=1]: nothing leads to its gateway any more",
				"forget 10.1.0.0/16 via 192.168.1.2 dev eth0 [held=2]: nothing leads to its gateway any more"}},
		{name: "a link-local gateway of IPv4 is asked for as any other", held: []plan.Held{held(1, "10.1.0.0/16 via 169.254.1.1 dev eth0")},
			want: []string{"forget 10.1.0.0/16 via 169.254.1.1 dev eth0 [held=1]: nothing leads to its gateway any more"}},
		{name: "a gateway that a nexthop object names", held: []plan.Held{held(1, "10.1.0.0/16 via 192.168.99.1 dev eth0 nhid 7")},
			want: []string{"restore 10.1.0.0/16 via 192.168.99.1 dev eth0 nhid 7 [held=1]"}},
		{name: "a gateway on no interface that is known", held: []plan.Held{held(1, "10.1.0.0/16 via 192.168.99.1")},
			want: []string{"restore 10.1.0.0/16 via 192.168.99.1 [held=1]"}},
		{name: "its address has another length now", links: changed(eth0, addrs("192.168.1.10/32")), held: []plan.Held{in("192.168.1.0/24", held(1, lan))},
			want: []string{"restore " + lan + " [held=1]"}},
		{name: "its address went, another inside it came", links: changed(eth0, addrs("192.168.1.77/32")), held: []plan.Held{in("192.168.1.10/32", held(1, lan))},
			want: []string{"forget " + lan + " [held=1]: its address was removed"}},
		{name: "IPv6 outlives its source address", held: []plan.Held{held(1, "fd00::/8 via fe80::1 dev eth0 src 2001:db8:99::1")},
			want: []string{"restore fd00::/8 via fe80::1 dev eth0 src 2001:db8:99::1 [held=1]"}},
		{name: "what has a lifetime outlives its address", held: []plan.Held{held(1, "2001:db8:99::/64 dev eth0 metric 256 proto kernel expires 600")},
			want: []string{"restore 2001:db8:99::/64 dev eth0 metric 256 proto kernel expires 600 [held=1]"}},
		{name: "a route by another interface does not lead there", links: other, table: []string{"192.168.1.0/24 dev eth1"}, held: []plan.Held{held(1, gateway)},
			want: []string{"forget 0.0.0.0/0 via 192.168.1.1 dev eth0 [held=1]: nothing leads to its gateway any more"}},
		{name: "our own stand-in does not count", links: other, table: []string{"192.168.1.1 dev eth0 proto own"}, held: []plan.Held{held(1, gateway)},
			want: []string{"withdraw 192.168.1.1/32 dev eth0 proto own", "forget 0.0.0.0/0 via 192.168.1.1 dev eth0 [held=1]: nothing leads to its gateway any more"}},
		{name: "a standing route leads there", links: other, table: []string{"192.168.1.1 dev eth0 proto static"}, held: []plan.Held{held(1, gateway)}, want: []string{back4}},
		{name: "another held route leads there", links: other, held: []plan.Held{held(1, gateway), held(2, "192.168.1.0/24 dev eth0 proto static")},
			want: []string{"restore 192.168.1.0/24 dev eth0 proto static [held=2]", back4}},
		{name: "a held route that is lost does not", links: other, held: []plan.Held{held(1, gateway), held(2, lan)},
			want: []string{"forget 0.0.0.0/0 via 192.168.1.1 dev eth0 [held=1]: nothing leads to its gateway any more",
				"forget 192.168.1.0/24 dev eth0 proto kernel src 192.168.1.10 [held=2]: its address was removed"}},
		{name: "a gateway that was never asked to be on the link", links: other, held: []plan.Held{held(1, gateway+" onlink")}, want: []string{back4}},
		{name: "a gateway that is an address's peer", links: changed(eth0, func(l *plan.Link) { l.Addrs, l.Peers = addresses("10.0.0.1/32"), prefixes("192.168.1.1/32") }),
			held: []plan.Held{held(1, gateway)}, want: []string{back4}},
		{name: "one leg's gateway is enough", links: other, held: []plan.Held{held(1, "10.1.0.0/16 nexthop via 192.168.1.1 dev eth0 nexthop via 192.168.7.1 dev eth1")},
			want: []string{"restore 10.1.0.0/16 via 192.168.1.1 dev eth0 via 192.168.7.1 dev eth1 [held=1]"}},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t) })
	}
}

// TestLegsGo: IPv6 drops the legs by an interface that goes, IPv4 the route, and
// a nexthop object knows by itself.
func TestLegsGo(t *testing.T) {
	const two4 = "10.1.0.0/16 nexthop via 192.168.1.1 dev eth0 nexthop via 192.168.7.1 dev eth1"
	const two6 = "fd00::/8 nexthop via fe80::1 dev eth0 nexthop via fe80::2 dev eth1"
	for _, s := range []situation{
		{name: "IPv6: the leg alone", links: without(eth1), held: []plan.Held{held(1, two6)}, want: []string{"restore fd00::/8 via fe80::1 dev eth0 [held=1]"}},
		{name: "IPv6: the first leg", links: without(eth0), held: []plan.Held{held(1, two6)}, want: []string{"restore fd00::/8 via fe80::2 dev eth1 [held=1]"}},
		{name: "IPv6: all legs", links: without(eth0, eth1), held: []plan.Held{held(1, two6)},
			want: []string{"forget fd00::/8 via fe80::1 dev eth0 via fe80::2 dev eth1 [held=1]: its interface is gone"}},
		{name: "IPv4: the whole route", links: without(eth1), held: []plan.Held{held(1, two4)},
			want: []string{"forget 10.1.0.0/16 via 192.168.1.1 dev eth0 via 192.168.7.1 dev eth1 [held=1]: its interface is gone"}},
		{name: "a leg that is down stays", links: changed(eth1, down), held: []plan.Held{held(1, two6)},
			want: []string{"restore fd00::/8 via fe80::1 dev eth0 via fe80::2 dev eth1 [held=1]"}},
		{name: "one leg is down, the other gone", links: slices.DeleteFunc(changed(eth1, down), func(l plan.Link) bool { return l.Index == eth0 }), held: []plan.Held{held(1, two6)},
			want: []string{"forget fd00::/8 via fe80::1 dev eth0 via fe80::2 dev eth1 [held=1]: its interface went down"}},
		{name: "a leg by no interface stays", links: without(eth1), held: []plan.Held{held(1, two6+" nexthop via fe80::3")},
			want: []string{"restore fd00::/8 via fe80::1 dev eth0 via fe80::3 [held=1]"}},
		{name: "a route by no interface has none to lose", links: without(eth0, eth1), held: []plan.Held{held(1, "blackhole 10.1.0.0/16")},
			want: []string{"restore blackhole 10.1.0.0/16 [held=1]"}},
		{name: "a nexthop group stays", links: without(eth1), held: []plan.Held{held(1, two4+" nhid 7")},
			want: []string{"restore 10.1.0.0/16 via 192.168.1.1 dev eth0 via 192.168.7.1 dev eth1 nhid 7 [held=1]"}},
		{name: "a leg that is added again is no copy of both", spec: session("fd00::/8", nil), held: []plan.Held{held(1, "fd00:1::/32 nexthop via fe80::1 dev eth0 nexthop via fe80::2 dev eth1")},
			table: []string{"fd00::/8 dev tun0", "fd00:1::/32 via fe80::1 dev eth0"}, want: []string{"remove fd00:1::/32 via fe80::1 dev eth0"}},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t) })
	}
}

// TestLeasedRoutes: what a network's client makes of a lease comes back like
// what the kernel makes of an address.
func TestLeasedRoutes(t *testing.T) {
	const (
		subnet = "192.168.1.0/24 dev eth0 proto dhcp src 192.168.1.10"
		host   = "192.168.1.1/32 dev eth0 metric 1024 proto dhcp src 192.168.1.10"
		attack = "192.168.1.66/32 dev eth0 metric 1024 proto dhcp src 192.168.1.10"
	)
	spec := session("192.168.0.0/16", nil)
	for _, s := range []situation{
		{name: "written down although it came while connected", spec: spec, table: []string{"192.168.0.0/16 dev tun0", subnet, host},
			want: []string{"remove " + subnet + " [hold]", "remove " + host + " [hold]"}},
		{name: "but not what merely comes from such a client", spec: spec, table: []string{"192.168.0.0/16 dev tun0",
			"192.168.9.0/24 dev eth0 proto dhcp src 192.168.1.10", "192.168.8.0/24 via 192.168.1.66 dev eth0 proto dhcp src 192.168.1.10"},
			want: []string{"remove 192.168.8.0/24 via 192.168.1.66 dev eth0 proto dhcp src 192.168.1.10", "remove 192.168.9.0/24 dev eth0 proto dhcp src 192.168.1.10"}},
		{name: "nor when its address is not there", spec: spec, table: []string{"192.168.0.0/16 dev tun0", "192.168.9.0/24 dev eth0 proto dhcp src 192.168.9.10"},
			want: []string{"remove 192.168.9.0/24 dev eth0 proto dhcp src 192.168.9.10"}},
		{name: "kept while it conflicts, whatever goes by it now", spec: spec, table: []string{"192.168.0.0/16 dev tun0"}, held: []plan.Held{held(1, host)}},
		{name: "comes back: the subnet, and the host that a route goes by", table: []string{gateway}, held: []plan.Held{held(1, subnet), held(2, host), held(3, attack)},
			want: []string{"restore " + subnet + " [held=1]", "restore " + host + " [held=2]",
				"forget " + attack + " [held=3]: no route goes by it any more"}},
		{name: "the route that goes by it may be held", held: []plan.Held{held(1, gateway), held(2, host)},
			want: []string{"restore " + host + " [held=2]", "restore 0.0.0.0/0 via 192.168.1.1 dev eth0 [held=1]"}},
		{name: "forgotten with its address", links: changed(eth0, addrs("192.168.1.11/24")), table: []string{gateway}, held: []plan.Held{held(1, subnet), held(2, host)},
			want: []string{"forget " + subnet + " [held=1]: its address was removed", "forget " + host + " [held=2]: its address was removed"}},
		{name: "an advertised prefix", spec: session("2001:db8::/32", nil), table: []string{"2001:db8::/32 dev tun0", "2001:db8:2::/64 dev eth0 metric 1024 proto dhcp"},
			want: []string{"remove 2001:db8:2::/64 dev eth0 metric 1024 proto dhcp [hold]"}},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t) })
	}
	r := rt(subnet)
	if !plan.MustReturn(build(t, spec), &r) {
		t.Error("the edge path would delete a lease's subnet unwritten")
	}
}

// TestConnectedWithoutAnAddress: some of the kernel's routes follow from no
// address of the host.
func TestConnectedWithoutAnAddress(t *testing.T) {
	peer := changed(eth0, func(l *plan.Link) { l.Peers = prefixes("fd00::1/128") })
	const advertised = "2001:db8:5::/64 dev eth0 metric 256 proto kernel"
	single := changed(eth0, addrs("2001:db8:5::9/128"))
	for _, s := range []situation{
		{name: "a peer's", links: peer, held: []plan.Held{held(1, "fd00::1/128 dev eth0 metric 256 proto kernel")},
			want: []string{"restore fd00::1/128 dev eth0 metric 256 proto kernel [held=1]"}},
		{name: "a router's prefix, the host's address is a single one", links: single, held: []plan.Held{in("2001:db8:5::9/128", held(1, advertised))},
			want: []string{"restore " + advertised + " [held=1]"}},
		{name: "goes with the network", held: []plan.Held{in("2001:db8:5::9/128", held(1, advertised))},
			want: []string{"forget " + advertised + " [held=1]: its address was removed"}},
		{name: "an address of the network led to it, and went", links: single, held: []plan.Held{in("2001:db8:5::/64", held(1, advertised))},
			want: []string{"forget " + advertised + " [held=1]: its address was removed"}},
		{name: "by no interface that is known", held: []plan.Held{in("2001:db8:5::9/128", held(1, "2001:db8:5::/64 metric 256 proto kernel"))},
			want: []string{"forget 2001:db8:5::/64 metric 256 proto kernel [held=1]: its address was removed"}},
		{name: "what led to it is not known", links: single, held: []plan.Held{held(1, advertised)},
			want: []string{"forget " + advertised + " [held=1]: its address was removed"}},
		{name: "a peer's, whose address went", links: changed(eth0, func(l *plan.Link) { l.Peers = prefixes("192.168.50.1/32") }),
			held: []plan.Held{held(1, "192.168.50.1/32 dev eth0 proto kernel src 192.168.9.9")},
			want: []string{"forget 192.168.50.1/32 dev eth0 proto kernel src 192.168.9.9 [held=1]: its address was removed"}},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t) })
	}
}

// TestGatewayWhileNoWayIsKnown: for the moment that the default route is away the
// gateway stays reachable, by our own route or by one that stood before.
func TestGatewayWhileNoWayIsKnown(t *testing.T) {
	spec := session("0.0.0.0/1 128.0.0.0/1", server("203.0.113.5"))
	spec.Pinholes = prefixes("192.168.1.1/32 203.0.113.5/32")
	vpn := []string{"0.0.0.0/1 dev tun0", "128.0.0.0/1 dev tun0"}
	t.Run("ours", func(t *testing.T) {
		situation{spec: spec, table: append(vpn, "192.168.1.1 dev eth0 proto own", "203.0.113.5 via 192.168.1.1 dev eth0 proto own")}.run(t)
	})
	t.Run("ours to others go", func(t *testing.T) {
		situation{spec: spec, table: append(vpn, "192.168.1.1 dev eth0 proto own", "198.51.100.9 via 192.168.1.1 dev eth0 proto own", "203.0.113.5 via 192.168.1.1 dev eth0 proto own"),
			want: []string{"withdraw 198.51.100.9/32 via 192.168.1.1 dev eth0 proto own"}}.run(t)
	})
	t.Run("one into the tunnel leads nowhere", func(t *testing.T) {
		situation{spec: spec, table: append(vpn, "203.0.113.5 dev tun0 proto own"), want: []string{"withdraw 203.0.113.5/32 dev tun0 proto own"}}.run(t)
	})
	t.Run("one from before", func(t *testing.T) {
		situation{spec: spec, table: append(vpn, "192.168.1.1 dev eth0 proto static", "203.0.113.5 via 192.168.1.1 dev eth0 proto own")}.run(t)
	})
}

func TestNets(t *testing.T) {
	all := links()
	link := func(index uint32) *plan.Link {
		for i := range all {
			if all[i].Index == index {
				return &all[i]
			}
		}
		return nil
	}
	all[1].Addrs = append(all[1].Addrs, netip.MustParsePrefix("fe80::10/64"), netip.MustParsePrefix("192.168.1.11/24"))
	for text, want := range map[string]string{
		"10.1.0.0/16 dev eth0":                                "192.168.1.0/24",
		"10.1.0.0/16 nexthop dev eth0 nexthop dev eth1":       "192.168.1.0/24 192.168.7.0/24",
		"fd00::/8 via fe80::1 dev eth0":                       "2001:db8:2::/64",
		"blackhole 10.1.0.0/16":                               "",
		"10.1.0.0/16 dev docker0 proto kernel src 172.17.0.1": "172.17.0.0/16",
	} {
		r := rt(text)
		if got := plan.Nets(&r, link); !slices.Equal(got, prefixes(want)) {
			t.Errorf("%s: %v, want %s", text, got, want)
		}
	}
}
