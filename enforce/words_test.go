package enforce_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// TestRouteWords: a route is written as ip-route(8) writes it, what it has not left out.
func TestRouteWords(t *testing.T) {
	base := via("10.0.0.0/8", "", eth0)
	with := func(f func(*plan.Route)) plan.Route { r := base; f(&r); return r }
	two := via("10.0.0.0/8", "192.168.1.1", eth0)
	for want, r := range map[string]plan.Route{
		"10.0.0.0/8 dev link2 proto p3":                          base,
		"10.0.0.0/8 via 192.168.1.1 dev link2 proto p3":          two,
		"10.0.0.0/8 dev link2 proto p3 metric 7":                 with(func(r *plan.Route) { r.Metric = 7 }),
		"10.0.0.0/8 tos 0x10 dev link2 proto p3":                 with(func(r *plan.Route) { r.TOS = 16 }),
		"10.0.0.0/8 dev link2 proto p3 src 10.1.1.1":             with(func(r *plan.Route) { r.PrefSrc = netip.MustParseAddr("10.1.1.1") }),
		"10.0.0.0/8 nhid 9 dev link2 proto p3":                   with(func(r *plan.Route) { r.NexthopID = 9 }),
		"10.0.0.0/8 dev link2 proto culvert":                     with(func(r *plan.Route) { r.Origin, r.Protocol = plan.Own, 0 }),
		"10.0.0.0/8 dev link2 proto p117":                        with(func(r *plan.Route) { r.Origin, r.Protocol = plan.Own, 117 }),
		"10.0.0.0/8 dev link2 proto p0":                          with(func(r *plan.Route) { r.Protocol = 0 }),
		"blackhole 10.0.0.0/8 proto p3":                          with(func(r *plan.Route) { r.Type, r.Hop = plan.Blackhole, plan.Hop{} }),
		"fd00::/8 from fd01::/16 dev link2 proto p3 metric 1024": with(func(r *plan.Route) { r.Dst, r.Src, r.Metric = pfx("fd00::/8"), pfx("fd01::/16"), 1024 }),
		"10.0.0.0/8 nexthop via 192.168.1.1 dev link2 nexthop dev link5 proto p3 src 10.1.1.1": func() plan.Route {
			r := two.WithHops(two.Hop, plan.Hop{Link: tun0})
			r.PrefSrc = netip.MustParseAddr("10.1.1.1")
			return r
		}(),
	} {
		got := enforce.RouteText(&r, func(i uint32) string { return fmt.Sprint("link", i) }, func(p uint8) string { return fmt.Sprint("p", p) })
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestAdderWords: whoever added a route is named as far as he is known.
func TestAdderWords(t *testing.T) {
	for want, a := range map[string]enforce.Adder{
		"ip (process 7, protocol boot)":  {Protocol: "boot", Port: 7, Process: "ip"},
		"netlink port 7 (protocol boot)": {Protocol: "boot", Port: 7},
		"protocol boot":                  {Protocol: "boot"},
	} {
		if got := a.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestTunnelDown: a tunnel that is there and down cannot carry its routes: nothing is put,
// the session is reconnecting until it is up.
func TestTunnelDown(t *testing.T) {
	sys := newHost(t)
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.SetUp(tun0, false) })
	eventually(t, "the session reconnects", func() bool { return status(t, e).State == enforce.Reconnecting })
	if st := status(t, e); st.Error != "" || st.Readded != 0 {
		t.Errorf("%+v", st)
	}
	do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.SetUp(tun0, true) })
	eventually(t, "the session enforces", func() bool {
		return status(t, e).State == enforce.Enforcing && leavesBy(sys, "172.31.1.1") == tun0
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestContestsAreTheirSessions: a contest is told by the session that it is about, and only
// when there was more than one round of it.
func TestContestsAreTheirSessions(t *testing.T) {
	const tun1 = 7
	sys := newHost(t)
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		tb.AddLink(plan.Link{Index: tun1, Name: "tun1", Up: true})
		return tb.AddAddress(tun1, pfx("10.9.0.2/24"))
	})
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	open(t, e, enforce.Session{Tunnel: "tun1", Protect: []netip.Prefix{pfx("172.29.0.0/16")}})
	before := sys.Text()
	for _, dst := range []string{"172.31.5.0/24", "172.31.5.0/24", "172.31.6.0/24", "172.29.5.0/24"} {
		add(t, sys, via(dst, "192.168.1.66", eth0))
		eventually(t, "it is removed", func() bool { return sys.Text() == before })
	}
	eventually(t, "all of it is told", func() bool { return len(incidents(t, e)) >= 4 })
	st, err := e.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range st.Sessions {
		want := 0
		if s.Tunnel == "tun0" {
			want = 1
		}
		if len(s.Contested) != want || want == 1 && (s.Contested[0].Times != 2 || s.Contested[0].Route != "172.31.5.0/24 via 192.168.1.66 dev eth0 proto 3") {
			t.Errorf("%s: %+v", s.Tunnel, s.Contested)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
