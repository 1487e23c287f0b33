package winroute

import (
	"net/netip"
	"testing"

	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// TestConform holds the adapter, on the fake IP Helper API, to the one contract.
func TestConform(t *testing.T) { enforcetest.Conform(t, newLab) }

// ground returns a machine with two networks and a tunnel, and the routes that
// Windows keeps for them.
func ground() *fakeKernel {
	p := netip.MustParsePrefix
	k := &fakeKernel{failing: map[string]error{}, nics: []*fakeNIC{
		{luid: 24 << 48, index: 1, name: "Loopback Pseudo-Interface 1", up: true, metric: [2]uint32{75, 75}, addrs: []netip.Prefix{p("127.0.0.1/8"), p("::1/128")}},
		{luid: 6<<48 | 1<<24, index: 7, name: "Ethernet", up: true, metric: [2]uint32{25, 26}, addrs: []netip.Prefix{p("192.168.1.42/24"), p("2001:db8:1::42/64")}},
		{luid: 71<<48 | 1<<24, index: 9, name: "WLAN für Gäste", up: true, metric: [2]uint32{35, 36}, addrs: []netip.Prefix{p("192.168.2.42/24"), p("2001:db8:2::42/64")}},
		{luid: 53<<48 | 1<<24, index: 21, name: "OpenVPN Wintun", up: true, metric: [2]uint32{5, 6}, addrs: []netip.Prefix{p("10.8.0.2/24"), p("2001:db8:8::2/64")}},
	}}
	for _, n := range k.nics {
		for _, a := range n.addrs {
			k.keep(n, a)
		}
	}
	return k
}

func labLink(k *fakeKernel, index uint32, gate4, gate6 string) enforcetest.LabLink {
	n := k.byIndex(index)
	return enforcetest.LabLink{Index: index, Name: n.name, Addr4: n.addrs[0], Addr6: n.addrs[1],
		Gate4: netip.MustParseAddr(gate4), Gate6: netip.MustParseAddr(gate6)}
}

func newLab(*testing.T) enforcetest.Lab {
	k := ground()
	lab := enforcetest.Lab{
		System: newSystem(k),
		Links: [2]enforcetest.LabLink{
			labLink(k, 7, "192.168.1.1", "2001:db8:1::1"),
			labLink(k, 9, "192.168.2.1", "2001:db8:2::1"),
		},
		Tunnel: labLink(k, 21, "10.8.0.1", "2001:db8:8::1"),
		// A route is its destination, interface and next hop: metrics alone do
		// not tell two apart. Notifications carry no more than that.
		Features: enforcetest.Features{IPv6: true, NextHops: true, KeyOnly: true},
		Native:   k.native,
	}
	lab.Add = func(r plan.Route, _ enforcetest.How) error { return k.create(k.fakeRow(r, uint32(r.Protocol))) }
	lab.Delete = func(r plan.Route) error { return k.delete(k.fakeRow(r, 3)) }
	lab.SetUp, lab.AddAddress, lab.RemoveAddress = k.setUp, k.addAddress, k.removeAddress
	lab.Shapes = shapes(k)
	return lab
}

// native says a route as Windows reads it back: the metric is the sum.
func (k *fakeKernel) native(r plan.Route) plan.Route {
	r.PrefSrc = netip.Addr{}
	if r.Origin == plan.Kernel {
		r.Metric = 256
	}
	if n := k.byIndex(r.Hop.Link); n != nil {
		family := 0
		if r.Dst.Addr().Is6() {
			family = 1
		}
		r.Metric += n.metric[family]
	}
	return r
}

// shapes are the rows that programs make beyond a gateway or an interface.
func shapes(k *fakeKernel) []enforcetest.Shape {
	shape := func(name, dst string, change func(row)) enforcetest.Shape {
		r := plan.Route{Dst: netip.MustParsePrefix(dst), Hop: plan.Hop{Link: 7, Via: netip.MustParseAddr("192.168.1.1")}}
		if r.Dst.Addr().Is6() {
			r.Hop.Via = netip.MustParseAddr("fe80::1")
		}
		return enforcetest.Shape{Name: name, Dst: r.Dst, Add: func() error {
			b := k.fakeRow(r, 3)
			change(b)
			return k.create(b)
		}}
	}
	return []enforcetest.Shape{
		shape("metric not used", "172.20.0.0/24", func(r row) { le.PutUint32(r[84:], 0xffffffff) }),
		shape("persistent static", "172.20.1.0/24", func(r row) { le.PutUint32(r[88:], 10006) }),
		shape("routing daemon", "172.20.2.0/24", func(r row) { le.PutUint32(r[88:], 13) }),
		shape("all booleans", "172.20.3.0/24", func(r row) { copy(r[92:], []byte{1, 1, 1, 1}) }),
		shape("published site prefix", "2001:db8:20::/64", func(r row) { r[72], r[94] = 48, 1 }),
		shape("lifetimes", "2001:db8:21::/64", func(r row) { le.PutUint32(r[76:], 1800); le.PutUint32(r[80:], 600) }),
		shape("scoped next hop", "2001:db8:22::/64", func(r row) { le.PutUint32(r[44+24:], 7) }),
	}
}
