package rtnl_test

import (
	"errors"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/culvert-project/culvert/testenv"
)

// TestRestoreWithOneLeg: a crash between the deletes of two legs of an IPv6 multipath
// route leaves one of them. The whole comes back, in its order and with its weights;
// one that stands whole is left alone.
func TestRestoreWithOneLeg(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.IPRoute)
	ns, far := testenv.Namespace(t, "legs"), testenv.Namespace(t, "far")
	testenv.Veth(t, testenv.End{NS: ns, Name: "eth0", Addrs: testenv.Prefixes("fd01::2/64")}, testenv.End{NS: far, Name: "eth0"})
	testenv.Veth(t, testenv.End{NS: ns, Name: "eth1", Addrs: testenv.Prefixes("fd02::2/64")}, testenv.End{NS: far, Name: "eth1"})
	sys := open(t, ns)
	legs := []string{"via fd01::1 dev eth0", "via fd02::1 dev eth1", "via fd01::9 dev eth0"}
	ns.IP(t, "-6 route add fd77::/64 nexthop "+legs[0]+" weight 2 nexthop "+legs[1]+" weight 5 nexthop "+legs[2]+" weight 3")
	whole := ns.MainTable(t)
	var r plan.Route
	for o, err := range sys.Table(t.Context()) {
		if err == nil && o.Multipath() {
			r = o.Clone()
		}
	}
	if !r.Multipath() {
		t.Fatal("no multipath route is read")
	}
	for _, gone := range [][]string{{legs[0]}, {legs[1]}, {legs[2]}, legs[:2], legs[1:], {legs[0], legs[2]}} {
		for _, leg := range gone {
			ns.IP(t, "-6 route del fd77::/64 "+leg)
		}
		err := sys.Apply(t.Context(), []plan.Action{{Kind: plan.Restore, Route: r}})[0]
		if got := ns.MainTable(t); err != nil || got != whole {
			t.Errorf("without %v: %v\n%s\nwant\n%s", gone, err, got, whole)
		}
	}
	err := sys.Apply(t.Context(), []plan.Action{{Kind: plan.Restore, Route: r}})[0]
	if got := ns.MainTable(t); !errors.Is(err, enforce.ErrAlready) || got != whole {
		t.Errorf("one that stands: %v\n%s", err, got)
	}
}
