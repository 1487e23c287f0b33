package plan_test

import (
	"strings"
	"testing"
)

// TestMayTake: what a delete does not name, or not for certain, the kernel takes for
// any. The same is asked of the kernel in rtnl's TestLookAlikes.
func TestMayTake(t *testing.T) {
	for _, c := range []struct {
		name, route, other string
		want               bool
	}{
		{"itself", "10.1.0.0/16 via 192.168.1.1 dev eth0", "10.1.0.0/16 via 192.168.1.1 dev eth0", false},
		{"a source address", "10.1.0.0/16 dev eth0", "10.1.0.0/16 dev eth0 src 192.168.1.10", true},
		{"a source address, by the same gateway", "10.1.0.0/16 via 192.168.1.1 dev eth0", "10.1.0.0/16 via 192.168.1.1 dev eth0 src 192.168.1.10", true},
		{"a source address, of the same protocol", "10.1.0.0/16 dev eth0 proto static", "10.1.0.0/16 dev eth0 proto static src 192.168.1.10", true},
		{"a protocol that is not named", "10.1.0.0/16 dev eth0", "10.1.0.0/16 dev eth0 proto static", true},
		{"another type by the same interface", "10.1.0.0/16 dev eth0", "local 10.1.0.0/16 dev eth0", false},
		{"no source address", "10.1.0.0/16 dev eth0 src 192.168.1.10", "10.1.0.0/16 dev eth0", false},
		{"another source address", "10.1.0.0/16 dev eth0 src 192.168.1.10", "10.1.0.0/16 dev eth0 src 192.168.1.11", false},
		{"a gateway", "10.1.0.0/16 dev eth0", "10.1.0.0/16 via 192.168.1.1 dev eth0", true},
		{"another gateway", "10.1.0.0/16 via 192.168.1.9 dev eth0", "10.1.0.0/16 via 192.168.1.1 dev eth0", false},
		{"a higher metric", "10.1.0.0/16 dev eth0", "10.1.0.0/16 dev eth0 metric 5", true},
		{"another metric", "10.1.0.0/16 dev eth0 metric 4", "10.1.0.0/16 dev eth0 metric 5", false},
		{"a protocol", "10.1.0.0/16 dev eth0 proto static", "10.1.0.0/16 dev eth0 proto boot", false},
		{"IPv6 leaves the protocol open", "fd00:1::/32 dev eth0 metric 5 proto static", "fd00:1::/32 via fe80::1 dev eth0 metric 5 proto boot", true},
		{"another interface", "10.1.0.0/16 dev eth0", "10.1.0.0/16 dev eth1", false},
		{"another destination", "10.1.0.0/16 dev eth0", "10.2.0.0/16 dev eth0 src 192.168.1.10", false},
		{"a TOS", "10.1.0.0/16 dev eth0", "10.1.0.0/16 dev eth0 tos 0x10", false},
		{"another type", "10.1.0.0/16 dev eth0", "throw 10.1.0.0/16", false},
		{"the first leg alone", "10.1.0.0/16 nexthop dev eth0 nexthop dev eth1", "10.1.0.0/16 dev eth0", true},
		{"more legs", "10.1.0.0/16 dev eth0", "10.1.0.0/16 nexthop dev eth0 nexthop dev eth1", false},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			r, o := rt(c.route), rt(c.other)
			if got := r.MayTake(&o); got != c.want {
				t.Errorf("%s may take %s: %v", c.route, c.other, got)
			}
		})
	}
}
