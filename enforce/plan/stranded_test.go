package plan_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce/plan"
)

// TestStranded: what is excluded and has no route of its own that stays is reported,
// at the first look and when what led there is held.
func TestStranded(t *testing.T) {
	for _, c := range []struct {
		name, protect, exclude string
		table                  []string
		change                 func(*plan.Session)
		want                   string // prefixes
	}{
		{"a part of the network that goes", "0.0.0.0/1 128.0.0.0/1", "192.168.1.128/25", []string{lan}, nil, "192.168.1.128/25"},
		{"the whole network", "0.0.0.0/1 128.0.0.0/1", "192.168.1.0/24", []string{lan}, nil, ""},
		{"more than the network", "0.0.0.0/1 128.0.0.0/1", "192.168.0.0/16", []string{lan}, nil, ""},
		{"behind the default route", "0.0.0.0/0", "10.0.0.0/8", []string{gateway, lan}, nil, "10.0.0.0/8"},
		{"behind a default route that stays, as the VPN has a table of its own", "0.0.0.0/0", "10.0.0.0/8", []string{gateway},
			func(s *plan.Session) { s.OtherTable = prefixes("0.0.0.0/0") }, "10.0.0.0/8"},
		{"by a route of its own", "0.0.0.0/0", "10.0.0.0/8", []string{"10.0.0.0/8 via 192.168.1.1 dev eth0"}, nil, ""},
		{"by a dead route", "0.0.0.0/0", "10.0.0.0/8", []string{"10.0.0.0/8 via 192.168.1.1 dev eth0 dead"}, nil, "10.0.0.0/8"},
		{"by a route into the tunnel", "0.0.0.0/0", "10.0.0.0/8", []string{"10.0.0.0/8 dev tun0"}, nil, "10.0.0.0/8"},
		{"inside another that has a way", "0.0.0.0/0", "10.0.0.0/8 10.1.0.0/16", []string{"10.0.0.0/8 via 192.168.1.1 dev eth0"}, nil, ""},
		{"by a route that is kept", "0.0.0.0/0", "172.17.1.0/24", []string{"172.17.0.0/16 dev docker0"},
			func(s *plan.Session) { s.KeepLinks = []uint32{docker0} }, ""},
		{"two of them", "0.0.0.0/0", "10.0.0.0/8 172.16.0.0/12", []string{gateway}, nil, "10.0.0.0/8 172.16.0.0/12"},
		{"by a route of which one leg leads outside", "0.0.0.0/0", "10.0.0.0/8", []string{"10.0.0.0/8 nexthop via 192.168.1.1 dev eth0 nexthop dev tun0"}, nil, ""},
		{"by a route that is kept, no longer than what is protected", "172.16.0.0/12", "172.17.1.0/24", []string{"172.16.0.0/12 dev docker0"},
			func(s *plan.Session) { s.KeepLinks = []uint32{docker0} }, "172.17.1.0/24"},
		{"inside what is rejected", "0.0.0.0/0", "2001:db8:9::/48", []string{gateway}, func(s *plan.Session) { s.Reject = prefixes("2000::/3") }, ""},
		{"outside what is protected", "10.0.0.0/8", "192.168.1.128/25", []string{lan}, nil, ""},
		{"the tunnel is down", "0.0.0.0/0", "10.0.0.0/8", []string{gateway}, func(s *plan.Session) { s.TunnelUp = false }, ""},
		{"a server, which has a route of ours", "0.0.0.0/0", "203.0.113.5/32", []string{gateway, lan}, server("203.0.113.5"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := session(c.protect, c.change)
			spec.Sessions[0].Exclude = prefixes(c.exclude)
			pl := plan.Make(plan.Input{Policy: build(t, spec), Table: slices.Values(routes(c.table...)), Links: links(), Baseline: true})
			var got []string
			for _, f := range pl.Stranded {
				got = append(got, f.Prefix.String())
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("stranded: %q, want %q", got, c.want)
			}
		})
	}
}
