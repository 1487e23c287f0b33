package witness

import (
	"net/netip"
	"testing"
)

// TestSelectors: each selector of a rule, with what fits it, what does not, and what is not understood.
func TestSelectors(t *testing.T) {
	p := &Packet{
		Dst: netip.MustParseAddr("10.1.2.3"), Src: netip.MustParseAddr("192.0.2.7"), Proto: 17, TOS: 0x10, Mark: 0x2a, UID: 1000, Port: 53,
	}
	bound := *p
	bound.Device = "vrf0"
	in := *p
	in.Ingress, in.UID = "cont0", -1
	none := *p
	none.Proto, none.Port = 0, 0
	for _, c := range []struct {
		text      string
		p         *Packet
		is, known bool
	}{
		{"from all lookup 7", p, true, true},
		{"from 192.0.2.0/24 lookup 7", p, true, true},
		{"from 192.0.3.0/24 lookup 7", p, false, true},
		{"from nonsense lookup 7", p, false, true},
		{"not from 192.0.2.0/24 lookup 7", p, false, true},
		{"not from 192.0.3.0/24 lookup 7", p, true, true},
		{"from all to 10.0.0.0/8 lookup 7", p, true, true},
		{"from all to 11.0.0.0/8 lookup 7", p, false, true},
		{"from all tos 0x10 lookup 7", p, true, true},
		{"from all tos 0x08 lookup 7", p, false, true},
		{"from all tos lowdelay lookup 7", p, true, false},
		{"from all fwmark 0x2a lookup 7", p, true, true},
		{"from all fwmark 0x0a/0x0f lookup 7", p, true, true},
		{"from all fwmark 0x0b/0x0f lookup 7", p, false, true},
		{"from all fwmark x lookup 7", p, false, true},
		{"from all iif cont0 lookup 7", &in, true, true},
		{"from all iif cont0 lookup 7", p, false, true},
		{"from all iif lo lookup 7", p, true, true},
		{"from all iif lo lookup 7", &in, false, true},
		{"from all oif vrf0 lookup 7", &bound, true, true},
		{"from all oif vrf0 lookup 7", p, false, true},
		{"from all uidrange 1000-1000 lookup 7", p, true, true},
		{"from all uidrange 0-1000 lookup 7", p, true, true},
		{"from all uidrange 0-999 lookup 7", p, false, true},
		{"from all uidrange 1001-2000 lookup 7", p, false, true},
		{"from all uidrange 0-4294967295 lookup 7", &in, false, true},
		{"from all uidrange x-1000 lookup 7", p, false, true},
		{"from all uidrange 0-x lookup 7", p, false, true},
		{"from all ipproto 17 lookup 7", p, true, true},
		{"from all ipproto 6 lookup 7", p, false, true},
		{"from all ipproto 17 lookup 7", &none, false, false},
		{"from all dport 53 lookup 7", p, true, true},
		{"from all dport 50-60 lookup 7", p, true, true},
		{"from all dport 54 lookup 7", p, false, true},
		{"from all dport 53 lookup 7", &none, false, false},
		{"from all sport 53 lookup 7", p, true, false},
		{"from all to 11.0.0.0/8 sport 53 lookup 7", p, false, true},
		{"from all l3mdev lookup [l3mdev-table]", p, false, true},
		{"from all l3mdev lookup [l3mdev-table]", &bound, true, false},
		{"from all blackhole", p, true, true},
		{"from all prohibit", p, true, true},
		{"from all unreachable", p, true, true},
		{"from all nonsense", p, false, false},
	} {
		is, known := Rule{Text: "100: " + c.text}.Match(c.p)
		if known != c.known || known && is != c.is {
			t.Errorf("%s: %t, known %t; want %t, %t", c.text, is, known, c.is, c.known)
		}
	}
}

// TestDecidingRule: the first rule that fits and asks the table is it, whatever passes over the route or is not known.
func TestDecidingRule(t *testing.T) {
	p := &Packet{Dst: netip.MustParseAddr("10.1.2.3"), Src: netip.MustParseAddr("192.0.2.7"), Mark: 1}
	local := Rule{Table: "local", Text: "0: from all lookup local"}
	quick := Rule{Table: "main", Text: "10: from all lookup main suppress_prefixlength 0"}
	marked := Rule{Table: "7", Text: "20: from all fwmark 0x1 lookup 7"}
	unknown := Rule{Table: "7", Text: "15: from all sport 53 lookup 7"}
	cut := Rule{Text: "30: from all unreachable"}
	main := Rule{Table: "main", Text: "32766: from all lookup main"}
	for _, c := range []struct {
		name   string
		rules  []Rule
		table  string
		bits   int
		want   string
		unless int
	}{
		{"main's", []Rule{local, main}, "main", 16, main.Text, 0},
		{"main's, asked before", []Rule{local, quick, marked, main}, "main", 16, quick.Text, 0},
		{"main's, its default passed over", []Rule{local, quick, main}, "main", 0, main.Text, 0},
		{"another table's", []Rule{local, marked, main}, "7", 0, marked.Text, 0},
		{"one before is not known", []Rule{local, unknown, marked, main}, "7", 0, marked.Text, 1},
		{"refused", []Rule{local, cut, main}, "", 0, cut.Text, 0},
		{"no rule asks it", []Rule{local, main}, "9", 0, "", 0},
		{"no rule refuses", []Rule{local, main}, "", 0, "", 0},
	} {
		got, unless := Deciding(c.rules, c.table, c.bits, p)
		if got != c.want || len(unless) != c.unless {
			t.Errorf("%s: %q unless %q; want %q", c.name, got, unless, c.want)
		}
	}
}
