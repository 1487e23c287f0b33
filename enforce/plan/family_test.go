package plan_test

import (
	"net/netip"
	"testing"

	"github.com/culvert-project/culvert/enforce/plan"
)

// TestFull has what VPN clients make of "everything", and what is less.
func TestFull(t *testing.T) {
	for _, tt := range []struct {
		name, protect, exclude string
		four, six              bool
	}{
		{"nothing", "", "", false, false},
		{"a default route", "0.0.0.0/0", "", true, false},
		{"both families", "0.0.0.0/0 ::/0", "", true, true},
		{"OpenVPN's halves", "0.0.0.0/1 128.0.0.0/1", "", true, false},
		{"one half", "128.0.0.0/1", "", false, false},
		{"OpenVPN's quarters of IPv6", "::/3 2000::/4 3000::/4 fc00::/7", "", false, true},
		{"all that is given out of IPv6", "2000::/3", "", false, true},
		{"a VPN's own networks", "10.8.0.0/24 fd08::/64 172.31.0.0/16", "", false, false},
		{"less what is excluded", "0.0.0.0/0", "203.0.113.0/24 192.168.0.0/16", true, false},
		{"a list without private networks", "0.0.0.0/5 8.0.0.0/7 11.0.0.0/8 12.0.0.0/6 16.0.0.0/4 32.0.0.0/3 64.0.0.0/2 128.0.0.0/3 160.0.0.0/5 168.0.0.0/6 172.0.0.0/12 172.32.0.0/11 172.64.0.0/10 172.128.0.0/9 173.0.0.0/8 174.0.0.0/7 176.0.0.0/4 192.0.0.0/9 192.128.0.0/11 192.160.0.0/13 192.169.0.0/16 192.170.0.0/15 192.172.0.0/14 192.176.0.0/12 192.192.0.0/10 193.0.0.0/8 194.0.0.0/7 196.0.0.0/6 200.0.0.0/5 208.0.0.0/4", "", true, false},
		{"less one address", "0.0.0.0/0 ::/0", "1.1.1.1/32 2001:db8::1/128", true, true},
		{"everything is excluded", "198.51.100.0/24", "0.0.0.0/0", false, false},
		{"a hole that nobody excludes", "0.0.0.0/1 128.0.0.0/2 192.0.0.0/9 192.128.0.0/10 192.192.0.0/11 192.240.0.0/12 193.0.0.0/8 194.0.0.0/7 196.0.0.0/6 200.0.0.0/5 208.0.0.0/4", "", false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, x := prefixes(tt.protect), prefixes(tt.exclude)
			if four, six := plan.Full(plan.IPv4, p, x), plan.Full(plan.IPv6, p, x); four != tt.four || six != tt.six {
				t.Errorf("full in IPv4 %t, in IPv6 %t", four, six)
			}
		})
	}
}

// TestGlobalPrefixes holds the lists to what they are made from.
func TestGlobalPrefixes(t *testing.T) {
	in := func(f plan.Family, addr string) bool {
		n := 0
		for _, p := range plan.GlobalPrefixes(f) {
			if p.Contains(netip.MustParseAddr(addr)) {
				n++
			}
		}
		return n == 1
	}
	for addr, want := range map[string]bool{
		"1.1.1.1": true, "9.255.255.255": true, "11.0.0.0": true, "100.63.0.1": true, "100.128.0.1": true, "172.15.0.1": true,
		"172.32.0.1": true, "192.167.255.255": true, "192.169.0.1": true, "223.255.255.255": true, "169.253.0.1": true,
		"0.0.0.1": false, "10.1.1.1": false, "100.64.0.1": false, "127.0.0.1": false, "169.254.1.1": false, "172.16.0.1": false,
		"172.31.255.255": false, "192.168.1.1": false, "224.0.0.1": false, "255.255.255.255": false,
	} {
		if in(plan.IPv4, addr) != want {
			t.Errorf("%s: want %t", addr, want)
		}
	}
	for addr, want := range map[string]bool{
		"2000::": true, "2001:db8::1": true, "3fff::1": true, "64:ff9b::101:101": true,
		"::1": false, "fd00::1": false, "fe80::1": false, "ff02::1": false, "4000::1": false,
	} {
		if in(plan.IPv6, addr) != want {
			t.Errorf("%s: want %t", addr, want)
		}
	}
}

func TestFamilies(t *testing.T) {
	for f, name := range map[plan.Family]string{plan.IPv4: "IPv4", plan.IPv6: "IPv6"} {
		if f.String() != name || f.Other() == f || f.Other().Other() != f {
			t.Errorf("%s is called %s, and the other is %s", name, f, f.Other())
		}
	}
	if plan.FamilyOf(prefix("10.0.0.0/8", "")) != plan.IPv4 || plan.FamilyOf(prefix("fd00::/8", "")) != plan.IPv6 {
		t.Error("prefixes are of the other family")
	}
}
