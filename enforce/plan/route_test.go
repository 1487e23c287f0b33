package plan_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/culvert-project/culvert/enforce/plan"
)

// TestFlaw: what a damaged file can say is told from what a route can be.
func TestFlaw(t *testing.T) {
	good := rt("fd00::/8 from fd08::/64 via fe80::1 dev eth0 metric 5")
	for _, c := range []struct {
		name   string
		change func(*plan.Route)
		want   string
	}{
		{"none", func(*plan.Route) {}, ""},
		{"no source", func(r *plan.Route) { r.Src = netip.Prefix{} }, ""},
		{"the last type and the last origin", func(r *plan.Route) { r.Type, r.Origin = plan.Other, plan.Leased }, ""},
		{"two legs", func(r *plan.Route) { *r = rt("10.0.0.0/8 nexthop dev eth0 nexthop via 192.168.7.1 dev eth1") }, ""},
		{"no destination", func(r *plan.Route) { r.Dst = netip.Prefix{} }, "its destination is no prefix"},
		{"host bits in the destination", func(r *plan.Route) { r.Dst = netip.MustParsePrefix("fd00::1/8") }, "its destination is no prefix"},
		{"host bits in the source", func(r *plan.Route) { r.Src = netip.MustParsePrefix("fd08::1/64") }, "its source is no prefix"},
		{"a source of the other family", func(r *plan.Route) { r.Src = netip.MustParsePrefix("10.0.0.0/8") }, "its source is no prefix"},
		{"a type that is none", func(r *plan.Route) { r.Type = plan.Other + 1 }, "its type is not known"},
		{"an origin that is none", func(r *plan.Route) { r.Origin = plan.Leased + 1 }, "its type is not known"},
		{"a leg with a longer address than there is", func(r *plan.Route) { r.More = "\x00\x00\x00\x02\xc8" + strings.Repeat("\x00", 16) }, "its legs cannot be told apart"},
		{"half a leg", func(r *plan.Route) { r.More = "half a leg" }, "its legs cannot be told apart"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := good
			c.change(&r)
			if got := r.Flaw(); got != c.want {
				t.Errorf("flaw %q, want %q", got, c.want)
			}
		})
	}
}

// TestReplaces: a newer copy is in all that names it what the older one is.
func TestReplaces(t *testing.T) {
	const old = "10.1.0.0/16 via 192.168.1.1 dev eth0 metric 5 proto static"
	for _, c := range []struct {
		name, old, newer string
		want             bool
	}{
		{"other attributes", old, old + " src 192.168.1.10 expires 60", true},
		{"another destination", old, "10.2.0.0/16 via 192.168.1.1 dev eth0 metric 5 proto static", false},
		{"another metric", old, "10.1.0.0/16 via 192.168.1.1 dev eth0 metric 6 proto static", false},
		{"another gateway", old, "10.1.0.0/16 via 192.168.1.2 dev eth0 metric 5 proto static", false},
		{"another interface", old, "10.1.0.0/16 via 192.168.1.1 dev eth1 metric 5 proto static", false},
		{"another owner", old, "10.1.0.0/16 via 192.168.1.1 dev eth0 metric 5 proto dhcp", false},
		{"another type", "10.1.0.0/16 metric 5 proto static", "blackhole 10.1.0.0/16 metric 5 proto static", false},
		{"more legs", "10.1.0.0/16 dev eth0", "10.1.0.0/16 nexthop dev eth0 nexthop dev eth1", false},
		{"fewer legs", "10.1.0.0/16 nexthop dev eth0 nexthop dev eth1", "10.1.0.0/16 dev eth0", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			newer, old := rt(c.newer), rt(c.old)
			if newer.Replaces(&old) != c.want {
				t.Errorf("%s replaces %s: want %t", c.newer, c.old, c.want)
			}
		})
	}
}

// TestCompare has routes in order: each differs from the one before in what counts
// less than all that they have in common.
func TestCompare(t *testing.T) {
	last := rt("10.1.0.0/16 via 192.168.1.2 dev eth1 metric 1 proto static nhid 1")
	last.TOS, last.Type = 1, plan.Blackhole
	twoLegs, source := rt("10.2.0.0/16 nexthop dev eth0 nexthop dev eth1"), rt("10.2.0.0/16 dev eth0 src 192.168.1.10")
	ordered := append([]plan.Route{last}, routes("10.2.0.0/16 dev eth0")...)
	ordered = append(ordered, source, twoLegs)
	ordered = append(ordered, routes("10.2.0.0/16 dev eth0 nhid 1", "10.2.0.0/16 via 192.168.1.1 dev eth0", "10.2.0.0/16 dev eth1",
		"10.2.0.0/16 proto static dev eth0", "blackhole 10.2.0.0/16", "10.2.0.0/16 dev eth0 metric 1", "10.2.0.0/16 dev eth0 tos 1",
		"10.2.0.0/24 dev eth0", "10.3.0.0/16 dev eth0", "fd00::/8 dev eth0", "fd00::/8 from fd08::/64 dev eth0")...)
	for i, a := range ordered {
		for j, b := range ordered {
			if got := plan.Compare(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%s and %s compare %d", say(a), say(b), got)
			}
		}
	}
}

// TestClone: a table reader uses its buffer again.
func TestClone(t *testing.T) {
	r := rt("10.0.0.0/8 dev eth0")
	r.Raw, r.Expires, r.Dead, r.AnyGateway = "bytes", 5, true, true
	if r.Clone() != r {
		t.Errorf("the clone of %+v is %+v", r, r.Clone())
	}
	if unsafe.StringData(r.Clone().Raw) == unsafe.StringData(r.Raw) {
		t.Error("the clone's bytes are the reader's")
	}
	if other := rt("10.0.0.0/8 dev eth0"); !r.Same(other) {
		t.Error("two readings of one route are two routes")
	}
}

func TestTypes(t *testing.T) {
	if got := []string{plan.Unicast.String(), plan.Other.String(), (plan.Other + 1).String(), plan.Protected.String(), plan.Gateway.String(), plan.Conflict.String(), plan.Forget.String()}; !slices.Equal(got, []string{"unicast", "other", "other", "protected", "gateway", "conflict", "forget"}) {
		t.Errorf("they are called %q", got)
	}
}

// TestLinkType: which interface may be one that was of another type.
func TestLinkType(t *testing.T) {
	tun, tap := plan.LinkType{Kind: "tun", Frames: 65534}, plan.LinkType{Kind: "tun", Frames: 1}
	card, bridge, unknown := plan.LinkType{Frames: 1}, plan.LinkType{Kind: "bridge", Frames: 1}, plan.LinkType{}
	for _, c := range []struct {
		name          string
		a, b          plan.LinkType
		fits, another bool
	}{
		{"the same", tun, tun, true, false},
		{"other frames of one driver", tun, tap, false, false},
		{"another driver", tap, bridge, false, true},
		{"a card and a driver", card, bridge, false, true},
		{"not known now", tun, unknown, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, is := range []bool{c.a.Fits(c.b), c.b.Fits(c.a)} {
				if is != c.fits {
					t.Errorf("fits: %t", is)
				}
			}
			for _, is := range []bool{c.a.Another(c.b), c.b.Another(c.a)} {
				if is != c.another {
					t.Errorf("another: %t", is)
				}
			}
		})
	}
	for typ, want := range map[plan.LinkType]string{tun: "tun", tap: "tap", card: "network card", bridge: "bridge"} {
		if typ.String() != want {
			t.Errorf("%+v is called %s, want %s", typ, typ, want)
		}
	}
}

// TestMustReturn: what the kernel derives from an address, or the network's client from
// a lease, and what merely looks so.
func TestMustReturn(t *testing.T) {
	p, empty := one(t, "10.0.0.0/8", ""), one(t, "", "")
	for route, want := range map[string]bool{
		lan:                                    true,
		"192.168.1.0/24 dev eth0 proto static": false,
		"2001:db8:2::/64 via fe80::1 dev eth0 proto kernel":           false,
		"broadcast 192.168.1.255/32 dev eth0 proto kernel":            false,
		"192.168.1.0/24 dev eth0 proto dhcp src 192.168.1.10":         true,
		"192.168.9.0/24 dev eth0 proto dhcp src 192.168.1.10":         false,
		"192.168.9.0/24 dev eth0 proto dhcp":                          false,
		"192.168.1.5/32 dev eth0 proto dhcp src 192.168.1.10":         true,
		"192.168.1.5/32 via 192.168.1.66 dev eth0 proto dhcp":         false,
		"192.168.1.5/32 nexthop dev eth0 nexthop dev eth1 proto dhcp": false,
		"blackhole 192.168.1.5/32 dev eth0 proto dhcp":                false,
		"2001:db8:2::/64 dev eth0 proto dhcp":                         true,
		"2001:db8:2::/64 dev eth0 proto dhcp src 2001:db8:9::1":       false,
	} {
		if r := rt(route); plan.MustReturn(p, &r) != want {
			t.Errorf("%s: want %t", route, want)
		}
	}
	if !empty.Empty() || p.Empty() {
		t.Error("a policy that protects something is empty, or one that does not is not")
	}
}

// TestSuperseded: a newer copy takes the place of the identical one, else of the first
// that it replaces.
func TestSuperseded(t *testing.T) {
	all := routes("10.1.0.0/16 via 192.168.1.9 dev eth0 proto static", "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static src 192.168.1.11",
		"10.1.0.0/16 via 192.168.1.1 dev eth0 proto static src 192.168.1.12", "10.1.0.0/16 via 192.168.1.1 dev eth0 proto static")
	held := func(yield func(uint64, *plan.Route) bool) {
		for i := range all {
			if !yield(uint64(i)+1, &all[i]) {
				return
			}
		}
	}
	for route, want := range map[string]uint64{
		"10.1.0.0/16 via 192.168.1.1 dev eth0 proto static":                  4,
		"10.1.0.0/16 via 192.168.1.1 dev eth0 proto static src 192.168.1.13": 2,
		"10.1.0.0/16 via 192.168.1.66 dev eth0 proto static":                 0,
	} {
		if r := rt(route); plan.Superseded(held, &r) != want {
			t.Errorf("%s takes the place of %d, want %d", route, plan.Superseded(held, &r), want)
		}
	}
}
