package enforce_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// rules are those that every network namespace starts with.
func rules(more ...enforce.Rule) []enforce.Rule {
	local := func(f int) enforce.Rule {
		return enforce.Rule{Family: f, Table: "local", Suppress: -1, Text: "0: from all lookup local"}
	}
	asksMain := func(f int) enforce.Rule {
		return enforce.Rule{Family: f, Table: "main", Suppress: -1, Text: "32766: from all lookup main"}
	}
	out := append([]enforce.Rule{local(4), local(6)}, more...)
	return append(out, asksMain(4), asksMain(6))
}

// led is a way that another table gives.
func led(table, dst string) enforce.Way {
	gw := "192.168.1.66"
	if strings.Contains(dst, ":") {
		gw = "fd01::66"
	}
	return enforce.Way{Route: via(dst, gw, eth0), Table: table}
}

// TestStateIsWhatTheKernelSays: main's table is right in all of these, and of no use.
func TestStateIsWhatTheKernelSays(t *testing.T) {
	all4 := enforce.Rule{Family: 4, Table: "100", Suppress: -1, Text: "100: from all lookup 100"}
	own := split
	own.OtherTable = split.Protect[:1]
	tests := []struct {
		name  string
		s     enforce.Session
		facts enforce.Facts
		ways  map[netip.Prefix]enforce.Way
		state enforce.State
		says  string // of the error, or of what cannot be enforced
	}{
		{name: "all is well", s: split, facts: enforce.Facts{Rules: rules()}, state: enforce.Enforcing},
		{name: "no rules to ask", s: split, state: enforce.Enforcing},
		{name: "main's rule is gone", s: split, facts: enforce.Facts{Rules: rules()[:2]}, state: enforce.Failed, says: "no rule asks table main for every IPv4 packet"},
		{name: "main's IPv6 rule is gone", s: split, facts: enforce.Facts{Rules: rules()[:3]}, state: enforce.Failed, says: "ip -6 rule add"},
		{name: "main is asked for marked packets only", s: split, state: enforce.Failed, says: "no rule asks table main",
			facts: enforce.Facts{Rules: []enforce.Rule{{Family: 4, Table: "main", Selects: true, Suppress: -1}, {Family: 6, Table: "main", Suppress: -1}}}},
		{name: "another table is asked first", s: split, state: enforce.Failed, says: "table 100 is asked first and has 172.31.0.0/16 via 192.168.1.66 dev eth0 proto 3, by rule 100: from all lookup 100",
			facts: enforce.Facts{Rules: rules(all4)}, ways: map[netip.Prefix]enforce.Way{pfx("172.31.0.0/16"): led("100", "172.31.0.0/16")}},
		{name: "IPv6 goes elsewhere", s: split, facts: enforce.Facts{Rules: rules()}, state: enforce.Failed, says: "of fd31::/32 does not enter tun0",
			ways: map[netip.Prefix]enforce.Way{pfx("fd31::/32"): led("100", "::/0")}},
		{name: "a rule cuts it off", s: split, facts: enforce.Facts{Rules: rules()}, state: enforce.Failed, says: "not even tun0: network is unreachable",
			ways: map[netip.Prefix]enforce.Way{pfx("172.31.0.0/16"): {Err: fmt.Errorf("network is unreachable")}}},
		{name: "the VPN's own table is gone", s: own, facts: enforce.Facts{Rules: rules()}, state: enforce.Failed, says: "the VPN's own table does not take it",
			ways: map[netip.Prefix]enforce.Way{pfx("172.31.0.0/16"): led("main", "0.0.0.0/0")}},
		{name: "a narrow route in table local", s: split, state: enforce.Failed, says: "table local is asked first",
			facts: enforce.Facts{Rules: rules(), Local: []plan.Route{via("172.31.5.0/24", "192.168.1.66", eth0)}},
			ways:  map[netip.Prefix]enforce.Way{pfx("172.31.5.0/24"): led("local", "172.31.5.0/24")}},
		{name: "a part goes elsewhere by a rule", s: split, state: enforce.Enforcing, says: "rule 100: from all lookup 100 is asked before main, and table 100 takes protected addresses by 172.31.5.0/24",
			facts: enforce.Facts{Rules: rules(all4), Tables: map[string]enforce.Content{"100": {Routes: []plan.Route{via("172.31.5.0/24", "192.168.1.66", eth0)}}}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sys := newHost(t)
			e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
			open(t, e, tt.s)
			sys.SetRules(tt.facts, tt.ways)
			eventually(t, "the state is told", func() bool {
				st := status(t, e)
				return st.State == tt.state && strings.Contains(st.Error+strings.Join(st.Unenforceable, "\n"), tt.says)
			})
			sys.SetRules(enforce.Facts{Rules: rules()}, nil)
			if tt.s.OtherTable == nil {
				eventually(t, "and enforcing again", func() bool { return status(t, e).State == enforce.Enforcing })
			}
		})
	}
}

// TestFindings: only what takes something is told, once.
func TestFindings(t *testing.T) {
	lookup := func(family int, table, dst string) enforce.Rule {
		r := enforce.Rule{Family: family, Table: table, Suppress: -1, Text: "90: from all lookup " + table}
		if dst != "" {
			r.Dst = pfx(dst)
		}
		return r
	}
	takes4, takes6 := via("172.31.5.0/24", "192.168.1.66", eth0), via("fd31:0:5::/48", "fd01::66", eth0)
	full4 := via("0.0.0.0/0", "192.168.1.66", eth0)
	suppressed := lookup(4, "100", "")
	suppressed.Suppress = 0
	tests := []struct {
		name  string
		rules []enforce.Rule
		table []plan.Route
		want  []string
	}{
		{"an empty table", []enforce.Rule{lookup(4, "100", "")}, nil, nil},
		{"other destinations", []enforce.Rule{lookup(4, "100", "10.0.0.0/8")}, []plan.Route{full4}, nil},
		{"other routes", []enforce.Rule{lookup(4, "100", "")}, []plan.Route{via("172.30.0.0/16", "", eth0)}, nil},
		{"routes into the tunnel", []enforce.Rule{lookup(4, "100", "")}, []plan.Route{via("172.31.5.0/24", "", tun0)}, nil},
		{"suppressed routes", []enforce.Rule{suppressed}, []plan.Route{full4}, nil},
		{"both families alike", []enforce.Rule{{Family: 4, Text: "90: from all unreachable"}, {Family: 6, Text: "90: from all unreachable"}}, nil,
			[]string{"rule 90: from all unreachable is asked before main and asks no table (IPv4 and IPv6)"}},
		{"both families", []enforce.Rule{lookup(4, "100", ""), lookup(6, "100", "")}, []plan.Route{takes4, takes6}, []string{
			"rule 90: from all lookup 100 is asked before main, and table 100 takes protected addresses by 172.31.5.0/24 via 192.168.1.66 dev eth0 proto 3 (IPv4)",
			"rule 90: from all lookup 100 is asked before main, and table 100 takes protected addresses by fd31:0:5::/48 via fd01::66 dev eth0 proto 3 metric 1024 (IPv6)"}},
		{"shorter routes", []enforce.Rule{lookup(4, "100", "172.31.7.0/24")}, []plan.Route{full4},
			[]string{"rule 90: from all lookup 100 is asked before main, and table 100 takes protected addresses by 0.0.0.0/0 via 192.168.1.66 dev eth0 proto 3 (IPv4)"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sys := newHost(t)
			sys.SetRules(enforce.Facts{Rules: rules(tt.rules...), Tables: map[string]enforce.Content{"100": {Routes: tt.table}}}, nil)
			e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
			if got := open(t, e, split).Unenforceable; strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
				t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

// TestOwnAddressIsANote: it is where it should be.
func TestOwnAddressIsANote(t *testing.T) {
	sys := newHost(t)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	st := open(t, e, full)
	if len(st.Unenforceable) != 0 || !strings.Contains(strings.Join(st.Notes, "\n"), "192.168.1.10 is this host's own address on eth0") {
		t.Errorf("unenforceable %q, notes %q", st.Unenforceable, st.Notes)
	}
}

// TestManyPrefixesAreAskedInTurn: each pass asks a bounded number, and every prefix
// has its turn.
func TestManyPrefixesAreAskedInTurn(t *testing.T) {
	sys := newHost(t)
	s := split
	s.Protect = nil
	for i := range 1000 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i / 250), byte(i % 250), 0}), 24)
		s.Protect = append(s.Protect, p)
	}
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	if st := open(t, e, s); st.State != enforce.Enforcing {
		t.Fatalf("%+v", st)
	}
	last := s.Protect[len(s.Protect)-1]
	sys.SetRules(enforce.Facts{Rules: rules()}, map[netip.Prefix]enforce.Way{last: led("100", "10.0.0.0/8")})
	eventually(t, "the last one is found", func() bool {
		e.Wake("test")
		st := status(t, e)
		return st.State == enforce.Failed && strings.Contains(st.Error, last.String())
	})
	sys.SetRules(enforce.Facts{Rules: rules()}, nil)
	eventually(t, "and found right again", func() bool { e.Wake("test"); return status(t, e).State == enforce.Enforcing })
}
