package rtnl_test

import (
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/culvert-project/culvert/enforce/rtnl"
	"github.com/culvert-project/culvert/testenv"
)

// TestLookAlikes deletes a route that is not there while another like it is. What can
// be named is: the other stays. What the kernel takes for "any" takes it, and then
// plan says before that it may.
func TestLookAlikes(t *testing.T) {
	testenv.Require(t, testenv.Root)
	ns, far := testenv.Namespace(t, "alike"), testenv.Namespace(t, "far")
	testenv.Veth(t, testenv.End{NS: ns, Name: "eth0", Addrs: testenv.Prefixes("192.168.1.2/24", "192.168.1.3/24", "fd01::2/64")}, testenv.End{NS: far, Name: "eth0"})
	sys := open(t, ns)
	const via = "via 192.168.1.1 dev eth0"
	for _, c := range []struct {
		name        string
		gone, alike string
		taken       bool
		unseen      bool // plan does not know what they differ in
	}{
		{"a source address", via, via + " src 192.168.1.2", true, false},
		{"no source address", via + " src 192.168.1.2", via, false, false},
		{"another source address", via + " src 192.168.1.2", via + " src 192.168.1.3", false, false},
		{"a higher metric", via, via + " metric 5", true, false},
		{"a lower metric", via + " metric 5", via, false, false},
		{"an MTU", via, via + " mtu 1400", false, true},
		{"no MTU", via + " mtu 1400", via, false, true},
		{"another MTU", via + " mtu 1400", via + " mtu 1300", false, true},
		{"a locked window", via, via + " window lock 4000", false, true},
		{"an RTT", via + " mtu 1400", via + " mtu 1400 rtt 10", false, true},
		{"a hop limit and quick acknowledgements", via, via + " hoplimit 9 quickack 1", false, true},
		{"another protocol", via + " proto 4", via + " proto 5", false, false},
		{"another gateway", via, "via 192.168.1.9 dev eth0", false, false},
		{"a gateway, in one scope", "dev eth0 scope global", via, true, false},
		{"no gateway", via, "dev eth0 scope global", false, false},
		{"more legs", via, "nexthop via 192.168.1.1 dev eth0 nexthop via 192.168.1.9 dev eth0", false, false},
		{"the first leg alone", "nexthop via 192.168.1.1 dev eth0 nexthop via 192.168.1.9 dev eth0", via, true, false},
		{"another type", "unreachable 10.1.0.0/16", via, false, false},
		{"a TOS", via, via + " tos 0x10", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			one := func(words string) plan.Route {
				ns.IP(t, strings.Fields("route add "+named(words))...)
				for r, err := range sys.Table(t.Context()) {
					if err != nil {
						t.Fatal(err)
					}
					if r.Dst.String() == "10.1.0.0/16" {
						return r.Clone()
					}
				}
				t.Fatal("it is not there")
				return plan.Route{}
			}
			gone := one(c.gone)
			if err := rtnl.DeleteOnce(sys, &gone); err != nil {
				t.Fatalf("the delete of what is there: %v", err)
			}
			alike := one(c.alike)
			defer ns.IP(t, "route", "flush", "10.1.0.0/16")
			err := rtnl.DeleteOnce(sys, &gone)
			if taken := err == nil; taken != c.taken {
				t.Errorf("taken: %v (%v)", taken, err)
			}
			if may := gone.MayTake(&alike); may != c.taken && !c.unseen {
				t.Errorf("plan says %v", may)
			}
		})
	}
}

func named(words string) string {
	if strings.Contains(words, "10.1.0.0/16") {
		return words
	}
	return "10.1.0.0/16 " + words
}
