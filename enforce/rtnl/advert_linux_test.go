package rtnl

import (
	"net/netip"
	"testing"

	"github.com/culvert-project/culvert/enforce/plan"
	"golang.org/x/sys/unix"
)

// TestExpires: the kernel dumps a route whose life is over, with what has passed since
// then, until it clears it away. It is dead, not endless.
func TestExpires(t *testing.T) {
	for ticks, want := range map[int32]struct {
		seconds uint32
		over    bool
	}{0: {0, false}, 1: {1, false}, 100: {1, false}, 101: {2, false}, -1: {1, true}, -1100: {1, true}} {
		b := native.AppendUint32(make([]byte, 8), uint32(ticks))
		if seconds, over := expires(b); seconds != want.seconds || over != want.over {
			t.Errorf("%d ticks: %d s, over %v", ticks, seconds, over)
		}
	}
}

// TestOfAdvertisement: what the kernel cares for is told by its form, whatever name it
// has; nothing else is given back in that way.
func TestOfAdvertisement(t *testing.T) {
	ra := func(change func(*plan.Route)) plan.Route {
		r := plan.Route{Dst: netip.MustParsePrefix("::/0"), Hop: plan.Hop{Link: 2, Via: netip.MustParseAddr("fe80::1")}, Metric: 1024, Expires: 1800, Protocol: unix.RTPROT_RA}
		if change != nil {
			change(&r)
		}
		return r
	}
	for name, c := range map[string]struct {
		r    plan.Route
		want bool
	}{
		"one":                   {ra(nil), true},
		"given back once":       {ra(func(r *plan.Route) { r.Protocol = unix.RTPROT_BOOT }), true},
		"of no lifetime":        {ra(func(r *plan.Route) { r.Expires = 0 }), false},
		"a person's":            {ra(func(r *plan.Route) { r.Protocol = unix.RTPROT_STATIC }), false},
		"by a global gateway":   {ra(func(r *plan.Route) { r.Hop.Via = netip.MustParseAddr("2001:db8::1") }), false},
		"on the link":           {ra(func(r *plan.Route) { r.Hop.Via = netip.Addr{} }), false},
		"longer":                {ra(func(r *plan.Route) { r.Dst = netip.MustParsePrefix("fd31::/48") }), false},
		"with a source address": {ra(func(r *plan.Route) { r.PrefSrc = netip.MustParseAddr("2001:db8::2") }), false},
		"for a source prefix":   {ra(func(r *plan.Route) { r.Src = netip.MustParsePrefix("2001:db8::/64") }), false},
		"of several legs":       {ra(func(r *plan.Route) { *r = r.WithHops(r.Hop, plan.Hop{Link: 3, Via: netip.MustParseAddr("fe80::2")}) }), false},
		"unreachable":           {ra(func(r *plan.Route) { r.Type = plan.Unreachable }), false},
		"of a nexthop object":   {ra(func(r *plan.Route) { r.NexthopID = 7 }), false},
		"of IPv4, and link-local": {ra(func(r *plan.Route) {
			r.Dst, r.Hop.Via = netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("169.254.0.1")
		}), false},
	} {
		if got := ofAdvertisement(&c.r); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
		r := c.r
		if relabel(&r); (r.Protocol != c.r.Protocol) != (name == "given back once") {
			t.Errorf("%s is shown as protocol %d", name, r.Protocol)
		}
	}
}
