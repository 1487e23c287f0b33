package rtnl_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/culvert-project/culvert/enforce/rtnl"
	"github.com/culvert-project/culvert/testenv"
)

// TestConform holds the kernel's System to the one contract.
func TestConform(t *testing.T) {
	testenv.Require(t, testenv.Root)
	enforcetest.Conform(t, newLab)
}

// kernelLab acts on a namespace's routing by iproute2, as somebody else would.
type kernelLab struct {
	ns    *testenv.NS
	names map[uint32]string
	six   map[uint32]bool // nexthop objects of IPv6
}

// open makes a System of the namespace.
func open(t *testing.T, ns *testenv.NS) *rtnl.System {
	t.Helper()
	var sys *rtnl.System
	var err error
	ns.Run(t, func() { sys, err = rtnl.New() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sys.Close() })
	return sys
}

func newLab(t *testing.T) enforcetest.Lab {
	ns, far := testenv.Namespace(t, "lab"), testenv.Namespace(t, "far")
	k := &kernelLab{ns: ns, names: map[uint32]string{}, six: map[uint32]bool{}}
	lab := enforcetest.Lab{
		Features: enforcetest.Features{IPv6: true, TOS: true, Types: true, Multipath: true, Nexthops: true,
			Sources: true, PrefSrc: true, Metrics: true, Order: true, Protocols: true},
	}
	for i := range lab.Links {
		lab.Links[i] = k.link(t, far, i)
	}
	testenv.OpenTun(t, ns, "tun0", testenv.Prefixes("10.8.0.2/24", "fd08::2/64")...)
	lab.Tunnel = enforcetest.LabLink{Name: "tun0", Index: k.index(t, "tun0"),
		Addr4: netip.MustParsePrefix("10.8.0.2/24"), Addr6: netip.MustParsePrefix("fd08::2/64"),
		Gate4: netip.MustParseAddr("10.8.0.1"), Gate6: netip.MustParseAddr("fd08::1")}
	lab.System = open(t, ns)
	lab.Add, lab.Delete = k.add, k.delete
	lab.SetUp, lab.AddAddress, lab.RemoveAddress = k.setUp, k.addAddress, k.removeAddress
	lab.SetNexthop, lab.DeleteNexthop = k.setNexthop, k.deleteNexthop
	lab.AddRule = func() error { return k.ip("rule", "add", "fwmark", "7", "lookup", "77") }
	lab.AddElsewhere = func(r plan.Route) error { return k.ip(append(k.words(r, "append"), "table", "77")...) }
	lab.Shapes = k.shapes(lab.Links[0])
	lab.Text = func() string { return ns.MainTable(t) }
	return lab
}

func (k *kernelLab) link(t *testing.T, far *testenv.NS, i int) enforcetest.LabLink {
	name := "eth" + strconv.Itoa(i)
	l := enforcetest.LabLink{Name: name,
		Addr4: netip.MustParsePrefix(fmt.Sprintf("192.168.%d.2/24", i+1)),
		Addr6: netip.MustParsePrefix(fmt.Sprintf("fd0%d::2/64", i+1)),
		Gate4: netip.MustParseAddr(fmt.Sprintf("192.168.%d.1", i+1)),
		Gate6: netip.MustParseAddr(fmt.Sprintf("fd0%d::1", i+1))}
	testenv.Veth(t, testenv.End{NS: k.ns, Name: name, Addrs: []netip.Prefix{l.Addr4, l.Addr6}},
		testenv.End{NS: far, Name: name})
	l.Index = k.index(t, name)
	return l
}

func (k *kernelLab) index(t *testing.T, name string) uint32 {
	out := k.ns.IP(t, "-o", "link", "show", "dev", name)
	n, err := strconv.Atoi(strings.SplitN(out, ":", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	k.names[uint32(n)] = name
	return uint32(n)
}

func (k *kernelLab) ip(args ...string) error {
	out, err := k.ns.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

var verbs = map[enforcetest.How]string{
	enforcetest.Add: "add", enforcetest.Append: "append",
	enforcetest.Prepend: "prepend", enforcetest.Replace: "replace",
}

func (k *kernelLab) add(r plan.Route, how enforcetest.How) error {
	return k.ip(k.words(r, verbs[how])...)
}

func (k *kernelLab) delete(r plan.Route) error { return k.ip(k.words(r, "del")...) }

// words is the route as iproute2 wants it.
func (k *kernelLab) words(r plan.Route, verb string) []string {
	w := []string{"-4", "route", verb}
	if r.Dst.Addr().Is6() {
		w[0] = "-6"
	}
	if r.Type != plan.Unicast {
		w = append(w, r.Type.String())
	}
	w = append(w, r.Dst.String())
	if r.Src.IsValid() {
		w = append(w, "from", r.Src.String())
	}
	if r.TOS != 0 {
		w = append(w, "tos", fmt.Sprintf("%#x", r.TOS))
	}
	if r.Metric != 0 {
		w = append(w, "metric", strconv.Itoa(int(r.Metric)))
	}
	if r.Protocol != 0 {
		w = append(w, "proto", strconv.Itoa(int(r.Protocol)))
	}
	if r.PrefSrc.IsValid() {
		w = append(w, "src", r.PrefSrc.String())
	}
	if r.Expires != 0 {
		w = append(w, "expires", strconv.Itoa(int(r.Expires)))
	}
	if r.Pref != 0 {
		w = append(w, "pref", map[plan.Pref]string{plan.PrefHigh: "high", plan.PrefLow: "low"}[r.Pref])
	}
	return append(w, k.hops(r)...)
}

func (k *kernelLab) hops(r plan.Route) (w []string) {
	if r.NexthopID != 0 {
		return []string{"nhid", strconv.Itoa(int(r.NexthopID))}
	}
	for h := range r.Hops() {
		if r.Multipath() {
			w = append(w, "nexthop")
		}
		if h.Via.IsValid() {
			w = append(w, "via", h.Via.String())
		}
		if h.Link != 0 {
			w = append(w, "dev", k.names[h.Link])
		}
	}
	return w
}

func (k *kernelLab) setUp(link uint32, up bool) error {
	return k.ip("link", "set", k.names[link], map[bool]string{true: "up", false: "down"}[up])
}

func (k *kernelLab) addAddress(link uint32, a netip.Prefix) error {
	return k.ip("addr", "add", a.String(), "dev", k.names[link])
}

func (k *kernelLab) removeAddress(link uint32, a netip.Prefix) error {
	return k.ip("addr", "del", a.String(), "dev", k.names[link])
}

// setNexthop makes or replaces a nexthop object; of several legs it makes a
// group, of none a blackhole, which has the family that the object had.
func (k *kernelLab) setNexthop(id uint32, hops ...plan.Hop) error {
	n := strconv.Itoa(int(id))
	if len(hops) > 0 {
		k.six[id] = hops[0].Via.Is6()
	}
	family := map[bool]string{true: "-6", false: "-4"}[k.six[id]]
	switch len(hops) {
	case 0:
		return k.ip(family, "nexthop", "replace", "id", n, "blackhole")
	case 1:
		return k.ip(append([]string{family, "nexthop", "replace", "id", n}, k.hops(plan.Route{}.WithHops(hops...))...)...)
	}
	var members []string
	for i, h := range hops {
		member := id*100 + uint32(i)
		if err := k.setNexthop(member, h); err != nil {
			return err
		}
		members = append(members, strconv.Itoa(int(member)))
	}
	return k.ip("nexthop", "replace", "id", n, "group", strings.Join(members, "/"))
}

func (k *kernelLab) deleteNexthop(id uint32) error {
	return k.ip("nexthop", "del", "id", strconv.Itoa(int(id)))
}

// shapes are the routes that iproute2 can make beyond what plan.Route says.
func (k *kernelLab) shapes(l enforcetest.LabLink) []enforcetest.Shape {
	dev, gw, gw6 := l.Name, l.Gate4.String(), l.Gate6.String()
	src, src6 := l.Addr4.Addr().String(), l.Addr6.Addr().String()
	lines := []string{
		"172.20.0.0/24 via " + gw + " dev " + dev + " mtu lock 1300 advmss 1200 hoplimit 5 initcwnd 20 initrwnd 30",
		"172.20.1.0/24 via " + gw + " dev " + dev + " rtt 20ms rttvar 5ms rto_min 200ms ssthresh 7 cwnd lock 9 window 1000",
		"172.20.2.0/24 via " + gw + " dev " + dev + " congctl reno features ecn quickack 1 fastopen_no_cookie 1",
		"172.20.3.0/24 via 203.0.113.9 dev " + dev + " onlink",
		"172.20.4.0/24 via inet6 " + gw6 + " dev " + dev,
		"172.20.5.0/24 dev " + dev + " scope link src " + src + " proto dhcp metric 77",
		"172.20.6.0/24 dev " + dev + " scope host",
		"172.20.7.0/24 nexthop via " + gw + " dev " + dev + " weight 3 nexthop via 192.168.2.1 dev eth1 weight 7",
		"172.20.8.0/24 via " + gw + " dev " + dev + " realm 5/6",
		"172.20.9.0/24 via " + gw + " dev " + dev + " tos 0x10 metric 3",
		"local 172.20.10.1 dev " + dev + " table main",
		"broadcast 172.20.11.255 dev " + dev + " table main",
		"multicast 172.20.12.0/24 dev " + dev,
		"throw 172.20.13.0/24 metric 4", "prohibit 172.20.14.0/24", "unreachable 172.20.15.0/24 proto static", "blackhole 172.20.16.0/24 tos 0x8",
		"172.20.17.0/24 nexthop via 203.0.113.7 dev " + dev + " onlink weight 2 nexthop via inet6 " + gw6 + " dev " + dev,
		"172.20.18.0/24 via " + gw + " dev " + dev + " ttl-propagate enabled",
		"172.20.20.0/24 encap ip id 7 dst 192.0.2.1 ttl 3 tos 4 dev " + dev,
		"fd20:0::/64 via " + gw6 + " dev " + dev + " metric 512 mtu 1400 advmss 1300 pref high",
		"fd20:1::/64 dev " + dev + " src " + src6 + " proto static",
		"fd20:2::/64 via " + gw6 + " dev " + dev + " expires 3000",
		"fd20:3::/64 nexthop via " + gw6 + " dev " + dev + " weight 2 nexthop via fd02::1 dev eth1 weight 5",
		"fd20:4::/64 from fd99::/16 via " + gw6 + " dev " + dev,
		"fd20:5::/64 via fd77::1 dev " + dev + " onlink",
		"fd20:6::/64 encap seg6 mode encap segs fd88::1,fd88::2 dev " + dev,
		"blackhole fd20:7::/64", "unreachable fd20:8::/64 metric 7", "prohibit fd20:9::/64", "throw fd20:a::/64",
		"fd20:b::/64 via fe80::1 dev " + dev + " pref low hoplimit 3",
		"local fd20:c::1 dev " + dev + " table main", "anycast fd20:d::1 dev " + dev + " table main",
		"multicast fd20:f::/64 dev " + dev,
	}
	var out []enforcetest.Shape
	for _, line := range lines {
		out = append(out, k.shape(line))
	}
	return out
}

// shape is one line of iproute2.
func (k *kernelLab) shape(line string) enforcetest.Shape {
	words := strings.Fields(line)
	dst := words[0]
	if !strings.ContainsAny(dst, "0123456789") {
		dst = words[1]
	}
	p, err := netip.ParsePrefix(dst)
	if err != nil {
		a := netip.MustParseAddr(dst)
		p = netip.PrefixFrom(a, a.BitLen())
	}
	family := "-4"
	if p.Addr().Is6() {
		family = "-6"
	}
	return enforcetest.Shape{Name: line, Dst: p, Add: func() error {
		return k.ip(append([]string{family, "route", "add"}, words...)...)
	}}
}
