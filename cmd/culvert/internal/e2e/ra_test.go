//go:build linux

package e2e

import (
	"cmp"
	"net/netip"
	"testing"
	"time"

	"github.com/culvert-project/culvert/testenv"
)

// adverts are router advertisements that take a VPN's traffic in IPv6.
var adverts = []struct {
	name  string
	vpn   string // changes the stub before
	flags []string
	ra    testenv.RouterAdvert
	leaks string // the way to the probe without culvert
	probe string // empty is site6
	// alters: given back, it is not quite what it was. The kernel merges it with
	// the tunnel's route that still stands, or announces an advertised route
	// before it has set the hop limit.
	alters bool
}{
	{name: "route information, longer", ra: info("fd31:0:0:1::/64", testenv.Medium), leaks: byEth},
	{name: "route information, longer, low preference", ra: info("fd31:0:0:1::/64", testenv.Low), leaks: byEth},
	{name: "route information, equal, high preference", ra: info("fd31::/48", testenv.High), leaks: byEth},
	{name: "route information, equal, medium preference", ra: info("fd31::/48", testenv.Medium), leaks: "tun0"},
	{name: "route information, a host", ra: info("fd31:0:0:1::10/128", testenv.Medium), leaks: byEth},
	{name: "default router, high preference", vpn: "-6 route del default\n-6 route add ::/0 dev tun0 metric 1024",
		flags: []string{"--protect", "::/0", "--server", "203.0.113.10:1194/udp", "--exclude", "fd77::/64,fd88::/64"},
		ra:    testenv.RouterAdvert{Lifetime: time.Hour, Preference: testenv.High}, leaks: byEth, probe: "2001:db8:9::9", alters: true},
	{name: "route information, merged into ECMP", vpn: "-6 route del fd31::/48\n-6 route add fd31::/48 via fd88::1 dev tun0",
		ra: info("fd31::/48", testenv.Medium), leaks: "tun0", alters: true},
	{name: "prefix on the link", ra: testenv.RouterAdvert{Prefixes: []testenv.RAPrefix{
		{Prefix: netip.MustParsePrefix("fd31:0:0:1::/64"), Lifetime: time.Hour, NoAuto: true}}}, leaks: byEth},
}

func info(prefix string, p testenv.Preference) testenv.RouterAdvert {
	return testenv.RouterAdvert{Routes: []testenv.RARoute{
		{Prefix: netip.MustParsePrefix(prefix), Lifetime: time.Hour, Preference: p}}}
}

// TestRouterAdvertisement: each comes before the session and has its effect
// (the control), is removed, comes again with the next advertisement and is
// removed again.
func TestRouterAdvertisement(t *testing.T) {
	for _, a := range adverts {
		t.Run(a.name, func(t *testing.T) {
			needs(t)
			s := newStub(t)
			dst := netip.MustParseAddr(cmp.Or(a.probe, site6))
			s.ip(t, a.vpn)
			s.LAN.Forward(t) // a neighbour that is no router is soon dropped as one
			s.Client.AcceptRA(t, "eth0")
			clean := s.Client.MainTable(t)
			a.ra.NS, a.ra.Device = s.LAN, "eth0"
			a.ra.Send(t)
			testenv.Eventually(t, patience, "the advertisement", func() bool { return s.Client.MainTable(t) != clean })
			before := s.Client.MainTable(t)
			leaves(t, s.Client, dst, a.leaks)
			if in, out := s.packets(t, dst, 0); a.leaks == byEth && out != burst {
				t.Errorf("control: of %d packets %d left and %d entered the tunnel", burst, out, in)
			}

			d := s.daemon(t, a.flags...)
			sameTable(t, s.Client, "while enforced", clean)
			s.insideOnly(t, dst, "enforced")
			n := statusOf(t, s.prog).removed()
			a.ra.Send(t)
			testenv.Eventually(t, patience, "the next removal", func() bool { return statusOf(t, s.prog).removed() > n })
			sameTable(t, s.Client, "after the next advertisement", clean)
			s.insideOnly(t, dst, "after the next advertisement")
			stopped(t, d)
			if !a.alters {
				sameTable(t, s.Client, "after the end", before)
			}
		})
	}
}

func (s *stub) insideOnly(t *testing.T, dst netip.Addr, when string) {
	t.Helper()
	if in, out := s.packets(t, dst, 0); in != burst || out != 0 {
		t.Errorf("%s: of %d packets %d left and %d entered the tunnel", when, burst, out, in)
	}
}
