package pfroute

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// TestConform holds the adapter, on the fake kernel, to the one contract.
func TestConform(t *testing.T) { enforcetest.Conform(t, newLab) }

// ground returns a Mac with two Ethernet interfaces and a tunnel, and what
// stands in such a table besides routes.
func ground() *fakeKernel {
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	k := &fakeKernel{failing: map[string]error{}, ifs: []*fakeIf{
		{index: 1, name: "lo0", flags: 0x8049, mtu: 16384, addrs: []fakeAddr{{Prefix: p("127.0.0.1/8")}, {Prefix: p("::1/128")}}},
		{index: 4, name: "en0", flags: 0x8863, mtu: 1500, addrs: []fakeAddr{{Prefix: p("192.168.1.42/24")}, {Prefix: p("2001:db8:1::42/64")}}},
		{index: 6, name: "en1", flags: 0x8863, mtu: 1500, addrs: []fakeAddr{{Prefix: p("192.168.2.42/24")}, {Prefix: p("2001:db8:2::42/64")}}},
		{index: 16, name: "utun3", flags: 0x8051, mtu: 1380, addrs: []fakeAddr{
			{Prefix: p("10.8.0.2/32"), peer: a("10.8.0.1")}, {Prefix: p("2001:db8:8::2/64")}}},
	}}
	for _, f := range k.ifs[1:3] {
		for _, addr := range f.addrs {
			k.connect(f, addr.Prefix)
		}
	}
	own := a("192.168.1.42")
	k.routes = append(k.routes,
		fakeRoute{dst: p("0.0.0.0/0"), scope: 6, gw: fakeSockaddr(a("192.168.2.1")), flags: 0x1000803, index: 6, ifa: a("192.168.2.42")},
		fakeRoute{dst: p("192.168.1.1/32"), host: true, gw: fakeLinkAddr(4, "en0"), flags: 0x20405, index: 4, ifa: own},
		fakeRoute{dst: p("192.168.1.7/32"), host: true, scope: 4, gw: fakeLinkAddr(4, "en0"), flags: 0x1020405, index: 4, ifa: own},
		fakeRoute{dst: p("192.168.1.42/32"), gw: fakeLinkAddr(4, ""), flags: 0x901, index: 4, ifa: own},
		fakeRoute{dst: p("192.168.1.42/32"), host: true, gw: fakeLinkAddr(1, "lo0"), flags: 0x200405, index: 1, ifa: own},
		fakeRoute{dst: p("127.0.0.0/8"), gw: fakeSockaddr(a("127.0.0.1")), flags: 0x801, index: 1, ifa: a("127.0.0.1")},
		fakeRoute{dst: p("10.8.0.1/32"), host: true, gw: fakeSockaddr(a("10.8.0.2")), flags: 0x5, index: 16, ifa: a("10.8.0.2")},
		fakeRoute{dst: p("224.0.0.0/4"), gw: fakeLinkAddr(4, "en0"), flags: 0x800901, index: 4, ifa: own},
	)
	return k
}

func labLink(k *fakeKernel, index uint16, gate4, gate6 string) enforcetest.LabLink {
	f := k.iface(index)
	return enforcetest.LabLink{Index: uint32(index), Name: f.name, Addr4: f.addrs[0].Prefix, Addr6: f.addrs[1].Prefix,
		Gate4: netip.MustParseAddr(gate4), Gate6: netip.MustParseAddr(gate6)}
}

func newLab(*testing.T) enforcetest.Lab {
	k := ground()
	lab := enforcetest.Lab{
		System: newSystem(fakeRIB{k}),
		Links: [2]enforcetest.LabLink{
			labLink(k, 4, "192.168.1.1", "2001:db8:1::1"),
			labLink(k, 6, "192.168.2.1", "2001:db8:2::1"),
		},
		Tunnel: labLink(k, 16, "10.8.0.1", "2001:db8:8::1"),
		// One route to a destination: no metrics, no order, no multipath. Its
		// source is the interface's address and cannot be chosen.
		Features: enforcetest.Features{IPv6: true},
		Native:   nativeRoute,
	}
	lab.Add = func(r plan.Route, _ enforcetest.How) error { return k.other(route8(1, r)) }
	lab.Delete = func(r plan.Route) error { return k.other(route8(2, r)) }
	lab.SetUp = func(link uint32, up bool) error { return k.setUp(uint16(link), up) }
	lab.AddAddress = func(link uint32, a netip.Prefix) error { return k.addAddress(uint16(link), a) }
	lab.RemoveAddress = func(link uint32, a netip.Prefix) error { return k.removeAddress(uint16(link), a) }
	lab.AddElsewhere = func(r plan.Route) error {
		m := route8(1, r)
		le.PutUint16(m[4:], uint16(r.Hop.Link))
		le.PutUint32(m[8:], le.Uint32(m[8:])|0x1000000)
		return k.other(m)
	}
	lab.Shapes = shapes(k)
	return lab
}

// nativeRoute takes out what macOS does not have.
func nativeRoute(r plan.Route) plan.Route {
	r.Metric, r.Protocol, r.PrefSrc = 0, 0, netip.Addr{}
	return r
}

// shapes are the routes that macOS can make beyond a gateway or an interface.
func shapes(k *fakeKernel) []enforcetest.Shape {
	gated := func(dst string) plan.Route {
		return plan.Route{Dst: netip.MustParsePrefix(dst), Hop: plan.Hop{Via: netip.MustParseAddr("192.168.1.1")}}
	}
	shape := func(name string, r plan.Route, change func(m []byte)) enforcetest.Shape {
		return enforcetest.Shape{Name: name, Dst: r.Dst, Add: func() error {
			m := route8(1, r)
			if change != nil {
				change(m)
			}
			return k.other(m)
		}}
	}
	set := func(inits uint32, values map[int]uint32) func([]byte) {
		return func(m []byte) {
			le.PutUint32(m[32:], inits)
			for at, v := range values {
				le.PutUint32(m[at:], v)
			}
		}
	}
	black, reject := gated("172.20.5.0/24"), gated("172.20.6.0/24")
	black.Type, reject.Type = plan.Blackhole, plan.Unreachable
	six := plan.Route{Dst: netip.MustParsePrefix("2001:db8:20::/64"), Hop: plan.Hop{Via: netip.MustParseAddr("fe80:4::1")}}
	return []enforcetest.Shape{
		shape("mtu", gated("172.20.0.0/24"), set(1, map[int]uint32{40: 1300})),
		shape("mtu locked", gated("172.20.1.0/24"), set(1, map[int]uint32{36: 1, 40: 1300})),
		shape("every metric", gated("172.20.2.0/24"), set(0xfb, map[int]uint32{40: 1400, 44: 7, 52: 8, 56: 9, 60: 10, 64: 11, 68: 12})),
		shape("host route", gated("172.20.3.1/32"), func(m []byte) { le.PutUint32(m[8:], le.Uint32(m[8:])|4) }),
		shape("proto flags", gated("172.20.4.0/24"), func(m []byte) { le.PutUint32(m[8:], le.Uint32(m[8:])|0xc000) }),
		shape("blackhole", black, nil), shape("reject", reject, nil),
		shape("link-local gateway", six, nil), // route(8) puts the scope into the address
	}
}

// TestFakeRefuses checks that the fake is as strict as it says.
func TestFakeRefuses(t *testing.T) {
	k := ground()
	if err := k.other([]byte{1, 2, 3}); err == nil {
		t.Error("a message of three bytes was accepted")
	}
	m := route8(1, plan.Route{Dst: netip.MustParsePrefix("10.0.0.0/8"), Hop: plan.Hop{Link: 99}})
	if err := k.other(m); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("a route on no interface: %v", err)
	}
	m[3] = 9
	if err := k.other(m); err == nil {
		t.Error("an old message type was accepted")
	}
}
