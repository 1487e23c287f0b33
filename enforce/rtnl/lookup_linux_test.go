package rtnl_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/culvert-project/culvert/enforce/rtnl"
	"github.com/culvert-project/culvert/testenv"
)

// lookupWorld is a namespace with the same routes and rules in both families;
// {4} and {6} stand for the networks.
func lookupWorld(t *testing.T) *testenv.NS {
	t.Helper()
	ns, far := testenv.Namespace(t, "lookup"), testenv.Namespace(t, "far")
	testenv.Veth(t, testenv.End{NS: ns, Name: "eth0", Addrs: testenv.Prefixes("192.168.1.2/24", "192.168.1.3/24", "2001:db8:1::2/64", "2001:db8:1::3/64")},
		testenv.End{NS: far, Name: "eth0", Addrs: testenv.Prefixes("192.168.1.1/24", "2001:db8:1::1/64")})
	testenv.OpenTun(t, ns, "tun0", testenv.Prefixes("10.8.0.2/24", "fd08::2/64")...)
	for _, f := range []struct{ ip, net, gate, from string }{
		{"-4", "10.%d.0.0/16", "192.168.1.1", "192.168.1.3"},
		{"-6", "2001:db8:%d0::/48", "2001:db8:1::1", "2001:db8:1::3"},
	} {
		at := func(n int) string { return fmt.Sprintf(f.net, n) }
		for _, cmd := range []string{
			"route add " + at(10) + " dev tun0",
			"route add " + at(11) + " via " + f.gate,
			"route add blackhole " + at(12),
			"route add unreachable " + at(13),
			"route add prohibit " + at(14),
			"route add " + at(15) + " via " + f.gate + " table 77",
			"route add " + at(16) + " via " + f.gate + " table 78",
			"route add " + at(17) + " dev tun0 table 79",
			"route add throw " + at(18) + " table 77",
			"rule add fwmark 7 lookup 77 pref 100",
			"rule add from " + f.from + " lookup 78 pref 101",
			"rule add uidrange 1000-1000 lookup 79 pref 102",
			"rule add to " + at(19) + " prohibit pref 103",
			"rule add ipproto udp dport 53 lookup 79 pref 104",
		} {
			ns.IP(t, f.ip+" "+cmd)
		}
	}
	return ns
}

// TestLookup asks the same of both families: they take different flags, and
// what is wrong with a question must never be taken for the answer.
func TestLookup(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.TUN, testenv.IPRoute)
	ns := lookupWorld(t)
	sys := open(t, ns)
	from := map[bool]netip.Addr{true: netip.MustParseAddr("192.168.1.3"), false: netip.MustParseAddr("2001:db8:1::3")}
	tests := []struct {
		name string
		net  int
		q    rtnl.Query
		want string
	}{
		{"tunnel", 10, rtnl.Query{}, "tun0 table 254"},
		{"gateway", 11, rtnl.Query{}, "eth0 table 254"},
		{"blackhole", 12, rtnl.Query{}, "blackhole: invalid argument"},
		{"unreachable", 13, rtnl.Query{}, "unreachable: no route to host"},
		{"prohibit", 14, rtnl.Query{}, "prohibit: permission denied"},
		{"in no table", 15, rtnl.Query{}, "unreachable: network is unreachable"},
		{"mark", 15, rtnl.Query{Mark: 7}, "eth0 table 77"},
		{"another mark", 15, rtnl.Query{Mark: 8}, "unreachable: network is unreachable"},
		{"source", 16, rtnl.Query{Src: from[true]}, "eth0 table 78"},
		{"user", 17, rtnl.Query{UID: 1000}, "tun0 table 79"},
		{"throw", 18, rtnl.Query{Mark: 7}, "unreachable: network is unreachable"},
		{"rule that forbids", 19, rtnl.Query{}, "prohibit: permission denied"},
		{"protocol and port", 17, rtnl.Query{Proto: unix.IPPROTO_UDP, Port: 53}, "tun0 table 79"},
		{"another port", 17, rtnl.Query{Proto: unix.IPPROTO_UDP, Port: 54}, "unreachable: network is unreachable"},
		{"a protocol that the kernel is not asked about", 11, rtnl.Query{Proto: unix.IPPROTO_ESP}, "eth0 table 254"},
		{"device of the route", 11, rtnl.Query{Link: "eth0"}, "eth0 table 254"},
	}
	for _, tt := range tests {
		for _, addr := range []string{fmt.Sprintf("10.%d.0.1", tt.net), fmt.Sprintf("2001:db8:%d0::1", tt.net)} {
			q := tt.q
			q.Dst = netip.MustParseAddr(addr)
			if q.Src.IsValid() {
				q.Src = from[q.Dst.Is4()]
			}
			t.Run(tt.name+"/"+addr, func(t *testing.T) {
				if got := lookedUp(t, ns, sys, q); got != tt.want {
					t.Errorf("got %s, want %s", got, tt.want)
				}
			})
		}
	}
	for _, addr := range []string{"192.168.1.2", "10.8.0.2", "2001:db8:1::2", "fd08::2"} {
		got := lookedUp(t, ns, sys, rtnl.Query{Dst: netip.MustParseAddr(addr)})
		if !strings.HasPrefix(got, "local ") || !strings.HasSuffix(got, " table 255") {
			t.Errorf("the host's own %s: got %s, want local … table 255", addr, got)
		}
	}
}

// TestLookupBound: with a device IPv4 takes what no route covers to be on its
// link, and sends; IPv6 does not.
func TestLookupBound(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.TUN, testenv.IPRoute)
	ns := lookupWorld(t)
	sys := open(t, ns)
	for addr, want := range map[string]string{
		"10.99.0.1": "eth0 table 0 on link", "10.10.0.1": "eth0 table 0 on link",
		"2001:db8:990::1": "unreachable: network is unreachable", "2001:db8:100::1": "unreachable: network is unreachable",
	} {
		if got := lookedUp(t, ns, sys, rtnl.Query{Dst: netip.MustParseAddr(addr), Link: "eth0"}); got != want {
			t.Errorf("%s by eth0: got %s, want %s", addr, got, want)
		}
	}
}

// TestLookupError: the kernel's refusal of a question is an error of the
// question, and its words reach whoever asked.
func TestLookupError(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.IPRoute)
	ns := testenv.Namespace(t, "lookup")
	sys := open(t, ns)
	ns.Run(t, func() {
		if a, err := sys.Lookup(context.Background(), rtnl.Query{Dst: netip.MustParseAddr("10.1.2.3"), Link: "none0"}); err == nil {
			t.Errorf("an interface that is not there: %+v", a)
		}
		// The kernel looks at the protocol of what it is asked, and has words for this.
		a, err := rtnl.LookupFlags(sys, rtnl.Query{Dst: netip.MustParseAddr("2001:db8::1")}, unix.RTM_F_LOOKUP_TABLE)
		if !errors.Is(err, unix.EINVAL) || !strings.Contains(fmt.Sprint(err), "Invalid flags") {
			t.Errorf("a question that IPv6 refuses: %+v, %v", a, err)
		}
	})
}

// TestLookupNexthopObject: an answer that names a nexthop object alone has its legs
// all the same, through groups too.
func TestLookupNexthopObject(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.TUN, testenv.IPRoute)
	ns := lookupWorld(t)
	for _, mode := range []string{"0", "1"} {
		ns.Sysctl(t, "net.ipv4.nexthop_compat_mode", mode)
		sys := open(t, ns)
		for i, f := range []struct{ gate, dst, asked string }{
			{"192.168.1.1", "10.4%d.0.0/16", "10.4%d.0.1"},
			{"2001:db8:1::1", "2001:db8:4%d0::/48", "2001:db8:4%d0::1"},
		} {
			id := 10 * (i + 1)
			for _, cmd := range []string{
				fmt.Sprintf("nexthop replace id %d via %s dev eth0", id, f.gate),
				fmt.Sprintf("nexthop replace id %d group %d", id+1, id),
				fmt.Sprintf("route replace "+f.dst+" nhid %d", 0, id),
				fmt.Sprintf("route replace "+f.dst+" nhid %d", 1, id+1),
			} {
				ns.IP(t, cmd)
			}
			for n := range 2 {
				dst := netip.MustParseAddr(fmt.Sprintf(f.asked, n))
				if got := lookedUp(t, ns, sys, rtnl.Query{Dst: dst}); got != "eth0 table 254" {
					t.Errorf("compat mode %s, %v: got %s, want eth0", mode, dst, got)
				}
				ns.Run(t, func() {
					ways, err := sys.Ways(t.Context(), []netip.Addr{dst, dst})
					if err != nil || ways[1].Route.Hop.Via.String() != f.gate {
						t.Errorf("compat mode %s, the ways to %v: %+v, %v", mode, dst, ways, err)
					}
				})
			}
		}
	}
}

// lookedUp asks inside the namespace and tells the answer in few words.
func lookedUp(t *testing.T, ns *testenv.NS, sys *rtnl.System, q rtnl.Query) string {
	t.Helper()
	var a rtnl.Answer
	var err error
	ns.Run(t, func() { a, err = sys.Lookup(context.Background(), q) })
	if err != nil {
		return "error: " + err.Error()
	}
	if a.Err != nil {
		return a.Type.String() + ": " + a.Err.Error()
	}
	text := fmt.Sprintf("%s table %d", linkName(t, ns, a.Route.Hop.Link), a.Table)
	if a.Type != plan.Unicast {
		text = a.Type.String() + " " + text
	}
	if a.OnLink {
		text += " on link"
	}
	return text
}

func linkName(t *testing.T, ns *testenv.NS, index uint32) string {
	t.Helper()
	name := "?"
	ns.Run(t, func() {
		if l, err := net.InterfaceByIndex(int(index)); err == nil {
			name = l.Name
		}
	})
	return name
}
