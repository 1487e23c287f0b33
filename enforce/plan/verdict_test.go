package plan_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce/plan"
)

// TestPolicy has a row for each sentence of "Policy".
func TestPolicy(t *testing.T) {
	p := build(t, plan.Spec{Sessions: []plan.Session{
		{Tunnel: tun0, Protect: prefixes("10.0.0.0/8 10.1.9.0/24 128.0.0.0/1 fc00::/7 e000::/3"),
			Exclude: prefixes("10.1.0.0/16 fd00:1::/32"),
			Servers: []netip.Addr{netip.MustParseAddr("10.200.0.1")}},
		{Tunnel: tun1, Protect: prefixes("10.64.0.0/16 10.1.9.128/25")},
	}})
	rows := []struct {
		name, dst string
		class     plan.Class
		tunnel    uint32
	}{
		{"in no prefix", "11.0.0.0/8", plan.Unlisted, 0},
		{"the longest policy prefix that contains it", "10.2.0.0/16", plan.Protected, tun0},
		{"the prefix itself", "10.0.0.0/8", plan.Protected, tun0},
		{"allowed under an exclusion under a protected one", "10.1.2.0/24", plan.Excluded, 0},
		{"wider than the exclusion: takes protected addresses too", "10.0.0.0/9", plan.Protected, tun0},
		{"protected again inside the exclusion", "10.1.9.0/24", plan.Protected, tun0},
		{"longer than the one protected again", "10.1.9.7/32", plan.Protected, tun0},
		{"several tunnels: the longest says whose", "10.64.3.0/24", plan.Protected, tun1},
		{"several tunnels: nested", "10.1.9.200/32", plan.Protected, tun1},
		{"shorter than every protected prefix", "0.0.0.0/0", plan.Unlisted, 0},
		{"the VPN server's own address is excluded", "10.200.0.1/32", plan.Excluded, 0},
		{"ignored wins: multicast under 128/1", "224.0.0.5/32", plan.Ignored, 0},
		{"ignored wins: broadcast", "255.255.255.255/32", plan.Ignored, 0},
		{"ignored wins: link-local", "169.254.7.0/24", plan.Ignored, 0},
		{"ignored wins: loopback", "127.0.0.0/8", plan.Ignored, 0},
		{"ignored wins: fe80", "fe80::/64", plan.Ignored, 0},
		{"ignored wins: ff00", "ff02::1/128", plan.Ignored, 0},
		{"ignored wins: ::1", "::1/128", plan.Ignored, 0},
		{"wider than an ignored range is not inside it", "128.0.0.0/1", plan.Protected, tun0},
		{"wider than an ignored range, and begins with it", "224.0.0.0/3", plan.Protected, tun0},
		{"IPv6 protected", "fd00::/16", plan.Protected, tun0},
		{"IPv6 excluded", "fd00:1:2::/48", plan.Excluded, 0},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := rt(row.dst + " dev eth0")
			v := plan.Judge(p, &r)
			class, e := p.Lookup(r.Dst.Addr())
			if r.Dst.IsSingleIP() && class != row.class {
				t.Errorf("Lookup says %v, want %v", class, row.class)
			}
			if got := classOf(v); got != row.class {
				t.Errorf("class of %v is %v, want %v", r.Dst, got, row.class)
			}
			if row.tunnel != 0 && (v.Entry == nil || v.Entry.Tunnel != row.tunnel) {
				t.Errorf("entry %+v (lookup %+v), want tunnel %d", v.Entry, e, row.tunnel)
			}
		})
	}
}

// classOf tells the class from a verdict.
func classOf(v plan.Verdict) plan.Class {
	switch v.Reason {
	case plan.NotProtected:
		return plan.Unlisted
	case plan.NeverTouched:
		return plan.Ignored
	case plan.InExcluded:
		return plan.Excluded
	}
	return plan.Protected
}

func TestPolicyProblems(t *testing.T) {
	session := func(protect, exclude string) plan.Session {
		return plan.Session{Tunnel: tun0, Protect: prefixes(protect), Exclude: prefixes(exclude)}
	}
	rows := []struct {
		name     string
		sessions []plan.Session
		want     string
	}{
		{"host bits", []plan.Session{session("10.0.0.1/8", "")}, "10.0.0.1/8 has host bits set; write 10.0.0.0/8"},
		{"ignored", []plan.Session{session("224.0.0.0/8", "")}, "224.0.0.0/8 lies inside a range that is never touched (loopback, link-local, multicast); leave it out"},
		{"both", []plan.Session{session("10.0.0.0/8", "10.0.0.0/8")}, "10.0.0.0/8 is both protected and excluded; remove one of the two"},
		{"two tunnels", []plan.Session{session("10.0.0.0/8", ""), session("10.0.0.0/8", "")}, "10.0.0.0/8 is protected by two sessions; give it to one tunnel"},
		{"two tunnels exclude the same", []plan.Session{session("10.0.0.0/8", "10.1.0.0/16"), session("172.16.0.0/12", "10.1.0.0/16")}, ""},
		{"twice the same", []plan.Session{session("10.0.0.0/8 10.0.0.0/8", "10.1.0.0/16 10.1.0.0/16")}, ""},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			_, problems := plan.Build(plan.Spec{Sessions: row.sessions})
			got := ""
			for _, p := range problems {
				got += p.Prefix.String() + " " + p.Text
			}
			if got != row.want {
				t.Errorf("problems %q, want %q", got, row.want)
			}
		})
	}
}

// TestCarries: a change of these routes may change the transport's way.
func TestCarries(t *testing.T) {
	spec := session("0.0.0.0/0", server("203.0.113.5"))
	spec.Pinholes = prefixes("192.168.1.1/32")
	p := build(t, spec)
	for dst, want := range map[string]bool{
		"203.0.113.0/24": true, "203.0.113.5/32": true, "203.0.112.0/24": false,
		"192.168.1.1/32": true, "192.168.1.0/24": false, "192.168.1.2/32": false,
	} {
		if r := rt(dst + " dev eth0"); p.Carries(&r) != want {
			t.Errorf("%s: want %t", dst, want)
		}
	}
}

// TestMayPut: the tunnel's route can be put into main where it stands there, and its
// interface takes it.
func TestMayPut(t *testing.T) {
	spec := session("10.0.0.0/8 172.16.0.0/12 fd00::/8", func(s *plan.Session) {
		s.OtherTable, s.Reject = prefixes("172.16.0.0/12"), prefixes("2000::/3")
	})
	for _, c := range []struct {
		name   string
		change func(*plan.Session)
		want   string
	}{
		{"up", func(*plan.Session) {}, "10.0.0.0/8 2000::/3 fd00::/8"},
		{"down", func(s *plan.Session) { s.TunnelUp = false }, "2000::/3"},
		{"without IPv6", func(s *plan.Session) { s.Mute6 = true }, "10.0.0.0/8 2000::/3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := plan.Spec{Sessions: slices.Clone(spec.Sessions)}
			c.change(&spec.Sessions[0])
			p := build(t, spec)
			var got []string
			for e := range p.Entries() {
				if p.MayPut(e) {
					got = append(got, e.Prefix.String())
				}
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("may put %q, want %q", got, c.want)
			}
		})
	}
}

// verdictSpec is the policy of TestVerdict: 172.31/16 and 2001:db8:31::/48 go
// to tun0, whose routes are known by their metrics 50 and 1024.
func verdictSpec() plan.Spec {
	return plan.Spec{
		Sessions: []plan.Session{
			{Tunnel: tun0, TunnelUp: true, Protect: prefixes("172.31.0.0/16 2001:db8:31::/48 10.51.0.0/16 2001:db8:51::/48"),
				Exclude: prefixes("172.31.200.0/24"), KeepLinks: []uint32{docker0}, OtherTable: prefixes("10.51.0.0/16 2001:db8:51::/48")},
			{Tunnel: tun1, TunnelUp: true, Protect: prefixes("10.64.0.0/16")},
		},
		Seen: routes("172.31.0.0/16 dev tun0 metric 50", "2001:db8:31::/48 dev tun0 metric 1024"),
	}
}

// TestVerdict has a row for each row of "Verdict for a route R".
func TestVerdict(t *testing.T) {
	p := build(t, verdictSpec())
	rows := []struct {
		name, route string
		want        plan.Decision
		text        string
	}{
		{"shorter than every protected prefix", "default via 192.168.1.1 dev eth0", plan.Keep, "not inside a protected prefix"},
		{"disjoint", "192.168.1.0/24 dev eth0 proto kernel", plan.Keep, "not inside a protected prefix"},
		{"shorter, overlapping", "172.16.0.0/12 dev eth0", plan.Keep, "not inside a protected prefix"},
		{"by the tunnel, device", "172.31.0.0/16 dev tun0", plan.Ours, "leaves by the tunnel tun0"},
		{"by the tunnel, longer", "172.31.4.0/24 via 10.8.0.1 dev tun0 metric 9", plan.Ours, "leaves by the tunnel tun0"},
		{"by the tunnel, every leg", "172.31.4.0/24 nexthop via 10.8.0.1 dev tun0 nexthop dev tun0", plan.Ours, "leaves by the tunnel tun0"},
		{"by the tunnel, nexthop object resolved", "172.31.0.0/16 dev tun0 nhid 7", plan.Ours, "leaves by the tunnel tun0"},
		{"by the tunnel, with a TOS", "172.31.0.0/16 dev tun0 tos 0x10", plan.Ours, "leaves by the tunnel tun0"},
		{"longer", "172.31.1.0/24 via 192.168.1.1 dev eth0", plan.Conflict, "longer than 172.31.0.0/16, leaves by eth0"},
		{"longer, high metric", "172.31.1.0/24 dev eth0 metric 4000", plan.Conflict, "longer than 172.31.0.0/16, leaves by eth0"},
		{"longer, one address", "172.31.1.7 dev eth1", plan.Conflict, "longer than 172.31.0.0/16, leaves by eth1"},
		{"longer, by another session's tunnel", "172.31.1.0/24 dev tun1", plan.Conflict, "longer than 172.31.0.0/16, leaves by tun1"},
		{"longer, IPv6", "2001:db8:31:1::/64 via fe80::1 dev eth0 metric 100", plan.Conflict, "longer than 2001:db8:31::/48, leaves by eth0"},
		{"longer, IPv6 route information", "2001:db8:31:1::/64 via fe80::1 dev eth0 metric 1024 expires 1800", plan.Conflict, "longer than 2001:db8:31::/48, leaves by eth0"},
		{"longer, no link known", "172.31.1.0/24", plan.Conflict, "longer than 172.31.0.0/16, leaves by no interface that is known"},
		{"equal, lower metric", "172.31.0.0/16 dev eth0 metric 49", plan.Conflict, "equal to 172.31.0.0/16 with a metric no higher than the tunnel's, leaves by eth0"},
		{"equal, same metric", "172.31.0.0/16 dev eth0 metric 50", plan.Conflict, "equal to 172.31.0.0/16 with a metric no higher than the tunnel's, leaves by eth0"},
		{"equal, other TOS, higher metric", "172.31.0.0/16 dev eth0 tos 0x10 metric 5000", plan.Conflict, "equal to 172.31.0.0/16 for a TOS of its own, leaves by eth0"},
		{"equal, IPv6 source prefix, higher metric", "2001:db8:31::/48 from 2001:db8:2::/64 dev eth0 metric 9999", plan.Conflict, "equal to 2001:db8:31::/48 for a source prefix of its own, leaves by eth0"},
		{"equal, IPv6 source prefix, by the tunnel: hides its route from other sources", "2001:db8:31::/48 from 2001:db8:8::/64 dev tun0 metric 9999", plan.Conflict, "equal to 2001:db8:31::/48 for a source prefix of its own, hides the tunnel's route from every other source"},
		{"longer, IPv6 source prefix, by the tunnel", "2001:db8:31:1::/64 from 2001:db8:8::/64 dev tun0 metric 9999", plan.Ours, "leaves by the tunnel tun0"},
		{"equal, IPv6 preference higher", "2001:db8:31::/48 via fe80::1 dev eth0 metric 2000 pref high", plan.Conflict, "equal to 2001:db8:31::/48 with a higher router preference, leaves by eth0"},
		{"equal, higher metric, same TOS", "172.31.0.0/16 dev eth0 metric 51", plan.Keep, "equal to 172.31.0.0/16 with a higher metric than the tunnel's: never wins while that stands"},
		{"equal, higher metric, IPv6, preference low", "2001:db8:31::/48 via fe80::1 dev eth0 metric 2000 pref low", plan.Keep, "equal to 2001:db8:31::/48 with a higher metric than the tunnel's: never wins while that stands"},
		{"multipath with one leg outside", "172.31.1.0/24 nexthop dev tun0 nexthop via 192.168.1.1 dev eth0", plan.Conflict, "longer than 172.31.0.0/16, leaves partly by eth0"},
		{"multipath with every leg outside", "172.31.1.0/24 nexthop dev eth1 nexthop via 192.168.1.1 dev eth0", plan.Conflict, "longer than 172.31.0.0/16, leaves by eth1"},
		{"IPv6 merged with the tunnel's", "2001:db8:31::/48 metric 1024 nexthop via fe80::1 dev eth0 nexthop via fe80::9 dev tun0", plan.Conflict, "equal to 2001:db8:31::/48 with a metric no higher than the tunnel's, leaves partly by eth0"},
		{"nexthop object, resolved outside", "172.31.1.0/24 via 192.168.1.1 dev eth0 nhid 7", plan.Conflict, "longer than 172.31.0.0/16, leaves by eth0"},
		{"nexthop group with one leg outside", "172.31.1.0/24 nexthop dev tun0 nexthop dev eth0 nhid 8", plan.Conflict, "longer than 172.31.0.0/16, leaves partly by eth0"},
		{"nexthop object turned into a blackhole", "blackhole 172.31.0.0/16 nhid 7", plan.Conflict, "equal to 172.31.0.0/16 with a metric no higher than the tunnel's, cuts the traffic off (blackhole)"},
		{"throw", "throw 172.31.1.0/24", plan.Conflict, "longer than 172.31.0.0/16, falls through to other tables (throw)"},
		{"blackhole", "blackhole 172.31.1.0/24", plan.Conflict, "longer than 172.31.0.0/16, cuts the traffic off (blackhole)"},
		{"unreachable", "unreachable 172.31.1.0/24", plan.Conflict, "longer than 172.31.0.0/16, cuts the traffic off (unreachable)"},
		{"prohibit", "prohibit 2001:db8:31:1::/64 metric 1024", plan.Conflict, "longer than 2001:db8:31::/48, cuts the traffic off (prohibit)"},
		{"local in main", "local 172.31.1.1 dev eth0", plan.Conflict, "longer than 172.31.0.0/16, cuts the traffic off (local)"},
		{"local in main, by the tunnel", "local 172.31.1.1 dev tun0", plan.Conflict, "longer than 172.31.0.0/16, cuts the traffic off (local)"},
		{"broadcast in main", "broadcast 172.31.1.255 dev eth0", plan.Conflict, "longer than 172.31.0.0/16, cuts the traffic off (broadcast)"},
		{"anycast in main", "anycast 172.31.1.255 dev eth0", plan.Conflict, "longer than 172.31.0.0/16, cuts the traffic off (anycast)"},
		{"multicast in main", "multicast 172.31.1.255 dev eth0", plan.Conflict, "longer than 172.31.0.0/16, cuts the traffic off (multicast)"},
		{"a type that is not known yet", "other 172.31.1.0/24 dev eth0", plan.Conflict, "longer than 172.31.0.0/16, cuts the traffic off (other)"},
		{"connected route", "172.31.1.0/24 dev eth0 proto kernel src 172.31.1.9", plan.Conflict, "longer than 172.31.0.0/16, leaves by eth0"},
		{"linkdown", "172.31.1.0/24 dev eth0 dead", plan.Conflict, "longer than 172.31.0.0/16, leaves by eth0"},
		{"inside an exclusion", "172.31.200.128/25 dev eth0", plan.Keep, "inside excluded 172.31.200.0/24"},
		{"inside an ignored range", "169.254.0.0/16 dev eth0", plan.Keep, "inside a range that is never touched"},
		{"on an interface excluded by the operator", "172.31.17.0/24 dev docker0 proto kernel", plan.Report, "inside 172.31.0.0/16 on an interface excluded by configuration, leaves by docker0"},
		{"on an excluded interface, for a source prefix: hides the tunnel's route from others", "2001:db8:31::/48 from 2001:db8:2::/64 dev docker0", plan.Conflict, "equal to 2001:db8:31::/48 for a source prefix of its own, leaves by docker0"},
		{"on an excluded interface with another leg elsewhere", "172.31.17.0/24 nexthop dev docker0 nexthop dev eth0", plan.Conflict, "longer than 172.31.0.0/16, leaves by docker0"},
		{"blackhole of an excluded interface", "blackhole 172.31.17.0/24 dev docker0", plan.Conflict, "longer than 172.31.0.0/16, cuts the traffic off (blackhole)"},
		{"a table of its own, equal", "10.51.0.0/16 dev eth0", plan.Keep, "equal to 10.51.0.0/16, which the VPN routes in a table of its own"},
		{"a table of its own, for a source prefix, by the tunnel", "2001:db8:51::/48 from 2001:db8:2::/64 dev tun0", plan.Ours, "leaves by the tunnel tun0"},
		{"on an interface excluded by the operator, and partly by the tunnel", "172.31.17.0/24 nexthop dev docker0 nexthop dev tun0", plan.Report, "inside 172.31.0.0/16 on an interface excluded by configuration, leaves partly by docker0"},
		{"a table of its own, longer", "10.51.1.0/24 dev eth0", plan.Conflict, "longer than 10.51.0.0/16, leaves by eth0"},
		{"tunnel route not seen yet, metric 0", "10.64.0.0/16 dev eth0", plan.Conflict, "equal to 10.64.0.0/16 with a metric no higher than the tunnel's, leaves by eth0"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := rt(row.route)
			v := plan.Judge(p, &r)
			if v.Decision != row.want {
				t.Errorf("%s: %v, want %v", row.route, v.Decision, row.want)
			}
			if got := v.Explain(linkName); got != row.text {
				t.Errorf("explained as\n%s, want\n%s", got, row.text)
			}
			if row.want == plan.Ours && (v.Partly || v.Shared) {
				t.Error("what is all the tunnel's is shared")
			}
		})
	}
}

// TestVerdictRejects: a route is ours that rejects just what the tunnel leaves out.
func TestVerdictRejects(t *testing.T) {
	p := build(t, session("fd00::/8", func(s *plan.Session) { s.Reject = prefixes("2000::/3") }))
	for route, want := range map[string]plan.Decision{
		"unreachable 2000::/3 dev lo metric 1 proto own":      plan.Ours,
		"unreachable 2000::/3 dev lo metric 1":                plan.Conflict,
		"blackhole 2000::/3 dev lo metric 1 proto own":        plan.Conflict,
		"unreachable 2001:db8::/32 dev lo metric 1 proto own": plan.Conflict,
		"unreachable fd00::/8 dev lo metric 1 proto own":      plan.Conflict,
	} {
		r := rt(route)
		if v := plan.Judge(p, &r); v.Decision != want {
			t.Errorf("%s: %v, want %v", route, v.Decision, want)
		}
	}
	r := rt("unreachable 2000::/3 dev lo metric 1 proto own")
	if got := plan.Judge(p, &r).Explain(linkName); got != "rejects 2000::/3, which the tunnel leaves out" {
		t.Errorf("explained as %q", got)
	}
	if build(t, plan.Spec{Sessions: []plan.Session{{Tunnel: tun0, Reject: prefixes("2000::/3")}}}).Empty() {
		t.Error("a policy that rejects something is empty")
	}
	both := plan.Spec{Sessions: []plan.Session{{Tunnel: tun0, Reject: prefixes("2000::/3")}, {Tunnel: tun1, Protect: prefixes("2000::/3")}}}
	if _, e := build(t, both).Lookup(netip.MustParseAddr("2001:db8::1")); e.Reject || e.Tunnel != tun1 {
		t.Error("what one session protects another rejects")
	}
}

// TestPinhole: what becomes of a host route's prefix that the transport needs.
func TestPinhole(t *testing.T) {
	for _, c := range []struct {
		name, pin string
		gateways  string
		class     plan.Class
		session   int
	}{
		{"a next hop inside what is protected", "172.16.0.1/32", "172.16.0.1/32", plan.Gateway, 1},
		{"a server's, inside what is protected", "172.16.0.1/32", "", plan.Excluded, 1},
		{"a next hop that the operator excluded", "172.16.9.1/32", "172.16.9.1/32", plan.Excluded, 1},
		{"a next hop outside", "192.168.1.1/32", "192.168.1.1/32", plan.Excluded, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := build(t, plan.Spec{Sessions: []plan.Session{{Tunnel: tun0, Protect: prefixes("10.0.0.0/8")},
				{Tunnel: tun1, Protect: prefixes("172.16.0.0/12"), Exclude: prefixes("172.16.9.0/24"), KeepLinks: []uint32{docker0}}},
				Pinholes: prefixes(c.pin), Gateways: prefixes(c.gateways)})
			if class, e := p.Lookup(netip.MustParsePrefix(c.pin).Addr()); class != c.class || e.Session != c.session || e.Prefix.String() != c.pin {
				t.Errorf("it is %v, %+v", class, e)
			}
			if _, e := p.Lookup(netip.MustParseAddr("172.16.1.1")); !e.Keeps(docker0) || e.Keeps(eth0) {
				t.Errorf("interfaces are not kept as they should: %+v", e)
			}
		})
	}
}

// TestSeen: only the tunnel's own route of what is protected is learnt.
func TestSeen(t *testing.T) {
	spec := session("10.0.0.0/8 172.16.0.0/12", nil)
	spec.Seen = routes("10.0.0.0/8 dev eth0 metric 9", "172.16.0.0/12 dev tun0 metric 9", "192.168.0.0/16 dev tun0")
	for e := range build(t, spec).Entries() {
		if want := e.Prefix.String() == "172.16.0.0/12"; e.Known != want || (e.Route.Metric == 9) != want {
			t.Errorf("%v: known %t, %s", e.Prefix, e.Known, say(e.Route))
		}
	}
}

func TestIgnoredRanges(t *testing.T) {
	all := plan.IgnoredRanges()
	for _, p := range prefixes("127.0.0.0/8 169.254.0.0/16 224.0.0.0/4 255.255.255.255/32 ::1/128 fe80::/10 ff00::/8") {
		if !slices.Contains(all, p) || !plan.InIgnored(p) {
			t.Errorf("%v is not ignored", p)
		}
	}
}

func TestVerdictKeepUnreachable(t *testing.T) {
	spec := verdictSpec()
	spec.KeepUnreachable = true
	p := build(t, spec)
	for route, want := range map[string]plan.Decision{
		"blackhole 172.31.1.0/24":                         plan.Report,
		"unreachable 172.31.1.0/24":                       plan.Report,
		"prohibit 2001:db8:31:1::/64":                     plan.Report,
		"throw 172.31.1.0/24":                             plan.Conflict,
		"172.31.1.0/24 dev eth0":                          plan.Conflict,
		"blackhole 172.31.0.0/16 metric 99":               plan.Keep,
		"blackhole 172.31.200.0/25":                       plan.Keep,
		"unreachable 2001:db8:31::/48 metric 1000":        plan.Report,
		"blackhole 2001:db8:31::/48 from 2001:db8:2::/64": plan.Conflict, // hides the tunnel's route from other sources
	} {
		r := rt(route)
		v := plan.Judge(p, &r)
		if v.Decision != want {
			t.Errorf("%s: %v (%s), want %v", route, v.Decision, v.Explain(linkName), want)
		}
	}
	r := rt("blackhole 172.31.1.0/24")
	v := plan.Judge(p, &r)
	if got := v.Explain(linkName); got != "inside 172.31.0.0/16, kept by keep_unreachable, cuts the traffic off (blackhole)" {
		t.Errorf("explained as %q", got)
	}
}

// TestVerdictDefaultFromSource: a default route for a source prefix hides no
// other default route, so the tunnel's own may stay.
func TestVerdictDefaultFromSource(t *testing.T) {
	p := one(t, "::/0", "")
	for route, want := range map[string]plan.Decision{
		"default from 2001:db8:8::/64 dev tun0 metric 1024": plan.Ours,
		"default from 2001:db8:8::/64 dev eth0 metric 1024": plan.Conflict,
	} {
		r := rt(route)
		if v := plan.Judge(p, &r); v.Decision != want {
			t.Errorf("%s: %v, want %v", route, v.Decision, want)
		}
	}
}

// TestRouteText reads and writes every attribute, so that the rows above say
// what they seem to.
func TestRouteText(t *testing.T) {
	for _, text := range []string{
		"10.0.0.0/8 via 192.168.1.1 dev eth0 metric 7 tos 16 nhid 5 proto static src 192.168.1.10 dead",
		"2001:db8::/32 from 2001:db8:2::/64 dev eth0 metric 1024 proto boot expires 60 pref 1",
		"blackhole 10.0.0.0/8 metric 3",
		"10.0.0.0/8 via 192.168.1.1 dev eth0 dev eth1",
	} {
		in := text
		switch text {
		case "10.0.0.0/8 via 192.168.1.1 dev eth0 dev eth1":
			in = "10.0.0.0/8 nexthop via 192.168.1.1 dev eth0 nexthop dev eth1"
		case "2001:db8::/32 from 2001:db8:2::/64 dev eth0 metric 1024 proto boot expires 60 pref 1":
			in = "2001:db8::/32 from 2001:db8:2::/64 dev eth0 metric 1024 proto boot expires 60 pref high"
		}
		if got := say(rt(in)); got != text {
			t.Errorf("%s reads as %s", in, got)
		}
	}
}
