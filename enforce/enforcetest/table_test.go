package enforcetest_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

var (
	dst4  = netip.MustParsePrefix("10.1.0.0/16")
	dst6  = netip.MustParsePrefix("2001:db8:10::/48")
	gate4 = netip.MustParseAddr("192.0.2.254")
	gate6 = netip.MustParseAddr("2001:db8:2::fe")
	none  netip.Addr
)

// table returns newLab's table: eth0 is 2, eth1 is 3, tun0 is 9.
func table(t *testing.T, routes ...plan.Route) *enforcetest.Table {
	t.Helper()
	tb := newLab(t).System.(*enforcetest.System).Snapshot()
	for _, r := range routes {
		if err := tb.Add(r, enforcetest.Append); err != nil {
			t.Fatalf("%s: %v", enforcetest.Text(r), err)
		}
	}
	return tb
}

func to(tb *enforcetest.Table, dst netip.Prefix) (out []string) {
	for r := range tb.Routes() {
		if r.Dst == dst {
			out = append(out, strings.TrimPrefix(enforcetest.Text(r), dst.String()))
		}
	}
	return out
}

func via(link uint32, gate netip.Addr) plan.Hop { return plan.Hop{Link: link, Via: gate} }

// TestSlotOrder follows fib_table_insert: TOS first, then metric, then append
// and prepend; and fib6_add_rt2node: metric, then as they come.
func TestSlotOrder(t *testing.T) {
	tb := table(t,
		plan.Route{Dst: dst4, Hop: via(2, none), Metric: 5},
		plan.Route{Dst: dst4, Hop: via(3, none), Metric: 5},
		plan.Route{Dst: dst4, Hop: via(2, none), TOS: 8, Metric: 9},
		plan.Route{Dst: dst4, Hop: via(2, none), TOS: 16, Metric: 900},
		plan.Route{Dst: dst4, Hop: via(2, none)})
	if err := tb.Add(plan.Route{Dst: dst4, Hop: via(9, none), Metric: 5}, enforcetest.Prepend); err != nil {
		t.Fatal(err)
	}
	want := []string{" dev 2 metric 900 tos 16", " dev 2 metric 9 tos 8", " dev 2", " dev 9 metric 5", " dev 2 metric 5", " dev 3 metric 5"}
	if got := to(tb, dst4); !slices.Equal(got, want) {
		t.Errorf("slot order %q, want %q", got, want)
	}
}

func TestAddRefuses(t *testing.T) {
	there := plan.Route{Dst: dst4, Hop: via(2, none)}
	other := plan.Route{Dst: dst4, Hop: via(3, none)}
	six := plan.Route{Dst: dst6, Type: plan.Blackhole, Metric: 5}
	for _, c := range []struct {
		name string
		r    plan.Route
		how  enforcetest.How
		want error
	}{
		{"exact twin", there, enforcetest.Append, enforcetest.ErrExists},
		{"slot taken", other, enforcetest.Add, enforcetest.ErrExists},
		{"slot shared", other, enforcetest.Append, nil},
		{"nothing to change", plan.Route{Dst: dst4, Hop: via(2, none), Metric: 77}, enforcetest.Change, enforcetest.ErrAbsent},
		{"no such link", plan.Route{Dst: dst4, Hop: via(77, none)}, enforcetest.Append, enforcetest.ErrNoLink},
		{"gateway out of reach", plan.Route{Dst: dst4, Hop: via(3, gate4)}, enforcetest.Append, enforcetest.ErrGateway},
		{"gateway on-link by word", enforcetest.WithExtra(plan.Route{Dst: dst4, Hop: via(3, gate4)}, "onlink"), enforcetest.Append, nil},
		{"foreign source", plan.Route{Dst: dst4, Hop: via(2, none), PrefSrc: gate4}, enforcetest.Append, enforcetest.ErrSource},
		{"no such nexthop object", plan.Route{Dst: dst4, NexthopID: 5}, enforcetest.Append, enforcetest.ErrNexthop},
		{"IPv6 rejecting twins of any type", plan.Route{Dst: dst6, Type: plan.Prohibit, Metric: 5}, enforcetest.Append, enforcetest.ErrExists},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := table(t, there, six).Add(c.r, c.how); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// TestDeleteWildcard: an IPv4 metric of 0 matches any.
func TestDeleteWildcard(t *testing.T) {
	tb := table(t, plan.Route{Dst: dst4, Hop: via(2, none), Metric: 100})
	zero := plan.Route{Dst: dst4, Hop: via(2, none)}
	if err := tb.DeleteExact(zero); !errors.Is(err, enforcetest.ErrNotFound) {
		t.Errorf("exact delete of what is not there: %v", err)
	}
	if err := tb.Delete(zero); err != nil || len(to(tb, dst4)) != 0 {
		t.Errorf("delete with metric 0: %v, left %q", err, to(tb, dst4))
	}
}

// TestMerge: gatewayed IPv6 routes of one metric become one, lose single legs,
// and hide what stands between the legs from dumps.
func TestMerge(t *testing.T) {
	tb := table(t,
		plan.Route{Dst: dst6, Hop: via(2, gate6), Metric: 5},
		plan.Route{Dst: dst6, Hop: via(3, none), Metric: 5},
		plan.Route{Dst: dst6, Hop: via(9, netip.MustParseAddr("fe80::9")), Metric: 5})
	if got, want := to(tb, dst6), []string{" via 2001:db8:2::fe dev 2 via fe80::9 dev 9 metric 5"}; !slices.Equal(got, want) || !tb.Hidden() {
		t.Errorf("dump %q, want %q; hidden %v", got, want, tb.Hidden())
	}
	if err := tb.Delete(plan.Route{Dst: dst6, Hop: via(2, gate6), Metric: 5}); err != nil {
		t.Fatal(err)
	}
	if got, want := to(tb, dst6), []string{" dev 3 metric 5", " via fe80::9 dev 9 metric 5"}; !slices.Equal(got, want) || tb.Hidden() {
		t.Errorf("dump %q, want %q; hidden %v", got, want, tb.Hidden())
	}
}

func TestLookup(t *testing.T) {
	a4, a6 := dst4.Addr().Next(), dst6.Addr().Next()
	wide4, wide6 := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")
	from := netip.MustParsePrefix("2001:db8:9::/64")
	for _, c := range []struct {
		name   string
		routes []plan.Route
		dst    netip.Addr
		tos    uint8
		src    netip.Addr
		want   string
	}{
		{"longest prefix", []plan.Route{{Dst: wide4, Hop: via(2, none)}, {Dst: dst4, Hop: via(9, none), Metric: 50}}, a4, 0, none, "10.1.0.0/16 dev 9 metric 50"},
		{"exact TOS before metric", []plan.Route{{Dst: dst4, Hop: via(9, none)}, {Dst: dst4, Hop: via(2, none), TOS: 8, Metric: 5000}}, a4, 8, none, "10.1.0.0/16 dev 2 metric 5000 tos 8"},
		{"other TOS passed over", []plan.Route{{Dst: wide4, Hop: via(9, none)}, {Dst: dst4, Hop: via(2, none), TOS: 8}}, a4, 16, none, "10.0.0.0/8 dev 9"},
		{"dead is skipped, back to a shorter prefix", []plan.Route{{Dst: wide4, Hop: via(9, none)}, {Dst: dst4, Hop: via(2, none), Dead: true}}, a4, 0, none, "10.0.0.0/8 dev 9"},
		{"throw leaves the table", []plan.Route{{Dst: wide4, Hop: via(9, none)}, {Dst: dst4, Type: plan.Throw}}, a4, 0, none, ""},
		{"blackhole takes the packet", []plan.Route{{Dst: wide4, Hop: via(9, none)}, {Dst: dst4, Type: plan.Blackhole}}, a4, 0, none, "blackhole 10.1.0.0/16"},
		{"IPv6 first of a metric", []plan.Route{{Dst: dst6, Hop: via(9, none), Metric: 5}, {Dst: dst6, Hop: via(2, none), Metric: 5}}, a6, 0, none, "2001:db8:10::/48 dev 9 metric 5"},
		{"IPv6 preference within a metric", []plan.Route{{Dst: dst6, Hop: via(9, none), Metric: 5}, {Dst: dst6, Hop: via(2, none), Metric: 5, Pref: plan.PrefHigh}}, a6, 0, none, "2001:db8:10::/48 dev 2 metric 5 pref 1"},
		{"IPv6 metric before preference", []plan.Route{{Dst: dst6, Hop: via(9, none), Metric: 5}, {Dst: dst6, Hop: via(2, none), Metric: 6, Pref: plan.PrefHigh}}, a6, 0, none, "2001:db8:10::/48 dev 9 metric 5"},
		{"IPv6 source prefix", []plan.Route{{Dst: dst6, Hop: via(9, none), Metric: 5}, {Dst: dst6, Src: from, Hop: via(2, none), Metric: 9999}}, a6, 0, from.Addr().Next(), "2001:db8:10::/48 from 2001:db8:9::/64 dev 2 metric 9999"},
		{"IPv6 source prefix hides the others", []plan.Route{{Dst: wide6, Hop: via(3, none), Metric: 7}, {Dst: dst6, Hop: via(9, none), Metric: 5}, {Dst: dst6, Src: from, Hop: via(9, none), Metric: 5}}, a6, 0, none, "2001:db8::/32 dev 3 metric 7"},
		{"IPv6 source prefix does not hide default routes", []plan.Route{{Dst: netip.MustParsePrefix("::/0"), Hop: via(9, none), Metric: 5}, {Dst: netip.MustParsePrefix("::/0"), Src: from, Hop: via(2, none), Metric: 5}}, a6, 0, none, "::/0 dev 9 metric 5"},
		{"IPv6 dead source route, back to the plain one", []plan.Route{{Dst: dst6, Hop: via(9, none), Metric: 5}, {Dst: dst6, Src: from, Hop: via(2, none), Metric: 5, Dead: true}}, a6, 0, from.Addr().Next(), "2001:db8:10::/48 dev 9 metric 5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, ok := table(t, c.routes...).Lookup(c.dst, c.tos, c.src)
			if got := enforcetest.Text(r); ok != (c.want != "") || ok && got != c.want {
				t.Errorf("selects %s (%v), want %s", got, ok, c.want)
			}
		})
	}
}

// TestFlush: what goes with an interface, an address or a nexthop object, and
// what of it is announced.
func TestFlush(t *testing.T) {
	six := plan.Route{Dst: dst6, Hop: via(2, gate6), Metric: 5}
	four := plan.Route{Dst: dst4, Hop: via(2, gate4)}
	both := plan.Route{Dst: netip.MustParsePrefix("10.2.0.0/16")}.WithHops(via(2, gate4), via(3, none))
	sourced := plan.Route{Dst: netip.MustParsePrefix("10.3.0.0/16"), Hop: via(3, none), PrefSrc: netip.MustParseAddr("192.0.2.1")}
	object := plan.Route{Dst: netip.MustParsePrefix("10.4.0.0/16"), NexthopID: 5}
	object6 := plan.Route{Dst: netip.MustParsePrefix("2001:db8:40::/48"), NexthopID: 5, Metric: 5}
	for _, c := range []struct {
		name     string
		do       func(*enforcetest.Table) error
		gone     []plan.Route
		announce []plan.Route
	}{
		{"link down", func(tb *enforcetest.Table) error { return tb.SetUp(2, false) }, []plan.Route{six, four, object, object6}, []plan.Route{six, object6}},
		{"link deleted", func(tb *enforcetest.Table) error { return tb.DeleteLink(2) }, []plan.Route{six, four, both, object, object6}, []plan.Route{six, object6}},
		{"last address removed", func(tb *enforcetest.Table) error {
			return tb.RemoveAddress(2, netip.MustParsePrefix("192.0.2.1/24"))
		}, []plan.Route{four, both, sourced}, nil},
		{"nexthop object deleted", func(tb *enforcetest.Table) error { tb.DeleteNexthop(5); return nil }, []plan.Route{object, object6}, []plan.Route{object6}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tb := table(t)
			tb.SetNexthop(5, via(2, gate4))
			all := []plan.Route{six, four, both, sourced, object, object6}
			for _, r := range all {
				if err := tb.Add(r, enforcetest.Append); err != nil {
					t.Fatal(err)
				}
			}
			s := enforcetest.NewSystem(tb)
			told := listen(t, s, func() {
				if err := s.Do(1, c.do); err != nil {
					t.Fatal(err)
				}
			})
			for _, r := range all {
				if gone := len(to(s.Snapshot(), r.Dst)) == 0; gone != has(c.gone, r.Dst) {
					t.Errorf("%s gone: %v", enforcetest.Text(r), gone)
				}
				if slices.Contains(told, r.Dst) != has(c.announce, r.Dst) {
					t.Errorf("%s announced: %v", enforcetest.Text(r), slices.Contains(told, r.Dst))
				}
			}
		})
	}
}

func has(rs []plan.Route, dst netip.Prefix) bool {
	return slices.ContainsFunc(rs, func(r plan.Route) bool { return r.Dst == dst })
}

// listen returns where the routes went whose deletion was announced while do ran.
func listen(t *testing.T, s *enforcetest.System, do func()) (told []netip.Prefix) {
	t.Helper()
	mark := netip.MustParsePrefix("203.0.113.99/32")
	done := make(chan struct{})
	edge := func(c enforce.Change, r *plan.Route) enforce.Answer {
		if r.Dst == mark {
			close(done)
		} else if c == enforce.Deleted {
			told = append(told, r.Dst)
		}
		return enforce.Answer{}
	}
	ready := make(chan struct{})
	go func() { _ = s.Watch(t.Context(), edge, enforce.NewSink(), func() { close(ready) }) }()
	<-ready
	do()
	if err := s.Do(1, func(tb *enforcetest.Table) error {
		return tb.Add(plan.Route{Dst: mark, Hop: via(3, none)}, enforcetest.Add)
	}); err != nil {
		t.Fatal(err)
	}
	<-done
	return told
}
