package rtnl_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/culvert-project/culvert/testenv"
)

// TestDisplacedRoute: the kernel takes another route for one that has gone. It is
// put back although what led to its gateway is out by now, or it is named.
func TestDisplacedRoute(t *testing.T) {
	testenv.Require(t, testenv.Root)
	ns, far := testenv.Namespace(t, "displaced"), testenv.Namespace(t, "far")
	testenv.Veth(t, testenv.End{NS: ns, Name: "eth0", Addrs: testenv.Prefixes("192.168.1.2/24")}, testenv.End{NS: far, Name: "eth0"})
	sys := open(t, ns)
	ns.IP(t, "route", "add", "10.1.0.0/16", "via", "192.168.1.1", "dev", "eth0")
	var gone plan.Route
	for r, err := range sys.Table(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Dst.String() == "10.1.0.0/16" {
			gone = r.Clone()
		}
	}
	ns.IP(t, "route", "del", "10.1.0.0/16")
	ns.IP(t, "route", "add", "10.1.0.0/16", "via", "192.168.1.1", "dev", "eth0", "metric", "5")
	ns.IP(t, "route", "del", "192.168.1.0/24", "dev", "eth0")
	err := sys.Apply(t.Context(), []plan.Action{{Kind: plan.Remove, Route: gone}})[0]
	table := ns.MainTable(t)
	if !errors.Is(err, enforce.ErrAlready) || !strings.Contains(table, "10.1.0.0/16 via 192.168.1.1 dev eth0") {
		t.Errorf("%v, and the table is\n%s", err, table)
	}
}
