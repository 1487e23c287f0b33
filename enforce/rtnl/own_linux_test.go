package rtnl_test

import (
	"testing"

	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/culvert-project/culvert/testenv"
)

// TestOthersWithOurNumber: a route with our protocol number is ours only if we
// could have built it.
func TestOthersWithOurNumber(t *testing.T) {
	testenv.Require(t, testenv.Root)
	ns, far := testenv.Namespace(t, "own"), testenv.Namespace(t, "far")
	testenv.Veth(t, testenv.End{NS: ns, Name: "eth0", Addrs: testenv.Prefixes("192.168.1.2/24", "fd01::2/64")}, testenv.End{NS: far, Name: "eth0"})
	sys := open(t, ns)
	testenv.OpenTun(t, ns, "tun0", testenv.Prefixes("10.8.0.2/24")...)
	for _, words := range [][]string{
		{"10.1.0.0/16", "via", "192.168.1.1", "proto", "117"},
		{"10.2.0.0/16", "dev", "eth0", "mtu", "1300", "proto", "117"},
		{"10.3.0.0/16", "dev", "eth0", "scope", "global", "proto", "117"},
		{"10.4.0.0/16", "dev", "eth0", "tos", "0x10", "proto", "117"},
		{"10.5.0.0/16", "proto", "117", "nexthop", "via", "192.168.1.1", "nexthop", "via", "192.168.1.3"},
		{"blackhole", "10.6.0.0/16", "proto", "117"},
		{"fd99::/64", "via", "fd01::1", "proto", "117"},
	} {
		ns.IP(t, append([]string{"route", "add"}, words...)...)
	}
	var index uint32
	for r, err := range sys.Table(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Origin == plan.Own {
			t.Errorf("taken for ours: %+v", r)
		}
		if r.Dst.String() == "192.168.1.0/24" {
			index = r.Hop.Link
		}
	}
	hop := func(dst, via string) plan.Route {
		r := plan.Route{Dst: testenv.Prefixes(dst)[0], Hop: plan.Hop{Link: index}, Origin: plan.Own}
		if via != "" {
			r.Hop.Via = testenv.Prefixes(via + "/32")[0].Addr()
		}
		if r.Dst.Addr().Is6() {
			r.Metric = 1
		}
		return r
	}
	ours := []plan.Route{hop("10.11.0.0/16", ""), hop("10.12.0.1/32", "192.168.1.1"), hop("fd98::/64", "")}
	for _, dst := range []string{"10.13.0.0/16", "fd97::/64"} { // what a tunnel leaves out is rejected
		r := hop(dst, "")
		r.Type, r.Hop = plan.Unreachable, plan.Hop{}
		ours = append(ours, r)
	}
	for i := range ours {
		if err := sys.Apply(t.Context(), []plan.Action{{Kind: plan.Put, Route: ours[i]}})[0]; err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for r, err := range sys.Table(t.Context()) {
		if err == nil && r.Origin == plan.Own {
			n++
		}
	}
	if n != len(ours) {
		t.Errorf("%d of our %d routes are known as ours", n, len(ours))
	}
}
