package enforcetest_test

import (
	"net/netip"
	"testing"

	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

func labLink(index uint32, name, addr4, gate4, addr6, gate6 string) enforcetest.LabLink {
	return enforcetest.LabLink{
		Index: index, Name: name,
		Addr4: netip.MustParsePrefix(addr4), Gate4: netip.MustParseAddr(gate4),
		Addr6: netip.MustParsePrefix(addr6), Gate6: netip.MustParseAddr(gate6),
	}
}

// newLab is the in-memory System's Lab.
func newLab(*testing.T) enforcetest.Lab {
	lab := enforcetest.Lab{
		Links: [2]enforcetest.LabLink{
			labLink(2, "eth0", "192.0.2.1/24", "192.0.2.254", "2001:db8:2::1/64", "2001:db8:2::fe"),
			labLink(3, "eth1", "198.51.100.1/24", "198.51.100.254", "2001:db8:3::1/64", "2001:db8:3::fe"),
		},
		Tunnel: labLink(9, "tun0", "10.8.0.2/24", "10.8.0.1", "2001:db8:9::2/64", "2001:db8:9::1"),
		Features: enforcetest.Features{
			IPv6: true, TOS: true, Types: true, Multipath: true, Nexthops: true, Sources: true,
			PrefSrc: true, Metrics: true, Order: true, Protocols: true,
		},
	}
	var table enforcetest.Table
	for _, l := range append(lab.Links[:], lab.Tunnel) {
		table.AddLink(plan.Link{Index: l.Index, Name: l.Name, Up: true, Addrs: []netip.Prefix{l.Addr4, l.Addr6}})
	}
	s := enforcetest.NewSystem(&table)
	lab.System, lab.Text = s, s.Text
	act(&lab, s)
	return lab
}

// act gives the Lab its means to act as port 1000.
func act(lab *enforcetest.Lab, s *enforcetest.System) {
	do := func(f func(*enforcetest.Table) error) error { return s.Do(1000, f) }
	lab.Add = func(r plan.Route, how enforcetest.How) error {
		return do(func(t *enforcetest.Table) error { return t.Add(r, how) })
	}
	lab.Delete = func(r plan.Route) error {
		return do(func(t *enforcetest.Table) error { return t.Delete(r) })
	}
	lab.SetUp = func(link uint32, up bool) error {
		return do(func(t *enforcetest.Table) error { return t.SetUp(link, up) })
	}
	lab.AddAddress = func(link uint32, a netip.Prefix) error {
		return do(func(t *enforcetest.Table) error { return t.AddAddress(link, a) })
	}
	lab.RemoveAddress = func(link uint32, a netip.Prefix) error {
		return do(func(t *enforcetest.Table) error { return t.RemoveAddress(link, a) })
	}
	lab.SetNexthop = func(id uint32, hops ...plan.Hop) error {
		return do(func(t *enforcetest.Table) error { t.SetNexthop(id, hops...); return nil })
	}
	lab.DeleteNexthop = func(id uint32) error {
		return do(func(t *enforcetest.Table) error { t.DeleteNexthop(id); return nil })
	}
	lab.AddRule = func() error { s.SetBypasses("from all lookup 51820"); return nil }
	extra := netip.MustParsePrefix("203.0.113.7/32")
	lab.Shapes = []enforcetest.Shape{{Name: "mtu", Dst: extra, Add: func() error {
		r := plan.Route{Dst: extra, Hop: plan.Hop{Link: 2, Via: netip.MustParseAddr("203.0.113.1")}}
		return lab.Add(enforcetest.WithExtra(r, "onlink mtu 1400"), enforcetest.Add)
	}}}
}

func TestConform(t *testing.T) { enforcetest.Conform(t, newLab) }
