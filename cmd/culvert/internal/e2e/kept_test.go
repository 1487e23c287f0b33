//go:build linux

package e2e

import (
	"slices"
	"strings"
	"testing"
)

// kept are the rows of the contract that leave a route alone: iproute2's words,
// an address to ask for and the way there, which stays as it is.
var kept = []struct {
	name  string
	vpn   string
	does  string
	probe string
	way   string
	flags string
	// says is a word of the incident, the unenforceable list or the notes that report
	// it; empty if it is nobody's business.
	says string
}{
	{name: "shorter", does: "route add 172.16.0.0/12 via 10.77.0.66", probe: "172.17.0.1", way: "eth0"},
	{name: "shorter, protected addresses", does: "route add 172.16.0.0/12 via 10.77.0.66", probe: site, way: "tun0"},
	{name: "shorter, one bit", does: "route add 172.30.0.0/15 via 10.77.0.66 metric 1", probe: site, way: "tun0"},
	{name: "disjoint", does: "route add 198.51.100.0/24 via 10.77.0.66", probe: "198.51.100.1", way: "eth0"},
	{name: "longer, into the tunnel", does: "route add 172.31.1.0/24 dev tun0", probe: site, way: "tun0"},
	{name: "longer, into the tunnel, with attributes", does: "route add 172.31.1.0/24 via 10.88.0.1 dev tun0 proto static metric 7 mtu 1400", probe: site, way: "tun0"},
	{name: "multipath into the tunnel", does: "route add 172.31.1.0/24 nexthop via 10.88.0.1 nexthop via 10.88.0.9", probe: site, way: "tun0"},
	{name: "nexthop object of the tunnel", does: "nexthop add id 8 dev tun0\nroute add 172.31.1.0/24 nhid 8", probe: site, way: "tun0"},
	{name: "group of the tunnel", does: "nexthop add id 8 dev tun0\nnexthop add id 9 group 8\nroute add 172.31.1.0/24 nhid 9", probe: site, way: "tun0"},
	{name: "equal, higher metric", does: "route add 172.31.0.0/16 via 10.77.0.66 metric 1", probe: site, way: "tun0"},
	{name: "IPv6, equal, higher metric", does: "-6 route add fd31::/48 via fd77::66 metric 1025", probe: site6, way: "tun0"},
	{name: "IPv6, shorter", does: "-6 route add fd00::/8 via fd77::66", probe: "fd32::1", way: "eth0"},
	{name: "excluded", flags: "--exclude 172.31.9.0/24", does: "route add 172.31.9.0/24 via 10.77.0.66", probe: "172.31.9.1", way: "eth0"},
	{name: "inside the excluded", flags: "--exclude 172.31.9.0/24", does: "route add 172.31.9.128/25 via 10.77.0.66\nroute add blackhole 172.31.9.7", probe: "172.31.9.129", way: "eth0"},
	{name: "IPv6, excluded", flags: "--exclude fd31:0:0:9::/64", does: "-6 route add fd31:0:0:9::/64 via fd77::66", probe: "fd31:0:0:9::1", way: "eth0"},
	{name: "ignored, link-local", vpn: "route add 203.0.113.10 via 10.77.0.1\nroute add 0.0.0.0/1 dev tun0\nroute add 128.0.0.0/1 dev tun0", flags: "--protect 0.0.0.0/1,128.0.0.0/1 --exclude 10.77.0.0/24,10.88.0.0/24 --server 203.0.113.10:1194/udp", does: "route add 169.254.7.0/24 dev eth0", probe: "169.254.7.1", way: "eth0"},
	{name: "ignored, multicast", vpn: "route add 128.0.0.0/1 dev tun0", flags: "--protect 128.0.0.0/1", does: "route add multicast 239.1.0.0/16 dev eth0 table main", probe: "239.1.1.1", way: "multicast eth0"},
	{name: "ignored, IPv6 multicast", vpn: "-6 route add 8000::/1 dev tun0", flags: "--protect 8000::/1 --exclude fd77::/64,fd88::/64", does: "-6 route add multicast ff0e::/16 dev eth0 table main", probe: site6, way: "tun0"},
	{name: "keep-unreachable, blackhole", flags: "--keep-unreachable", does: "route add blackhole 172.31.1.0/24", probe: site, way: inval, says: "keep_unreachable"},
	{name: "keep-unreachable, unreachable", flags: "--keep-unreachable", does: "-6 route add unreachable fd31:0:0:1::/64", probe: site6, way: noHost, says: "keep_unreachable"},
	{name: "keep-unreachable, prohibit", flags: "--keep-unreachable", does: "route add prohibit 172.31.1.0/24", probe: site, way: noAccess, says: "keep_unreachable"},
	{name: "exclude-interface", flags: "--exclude-interface eth0", does: "route add 172.31.1.0/24 via 10.77.0.66", probe: site, way: "eth0", says: "excluded by configuration"},
	{name: "another table", does: "route add 172.31.1.0/24 via 10.77.0.66 table 77\nrule add to 172.31.1.0/24 lookup 77", probe: site, way: "eth0", says: "77"},
	{name: "a local address", does: "addr add 172.31.1.10/32 dev eth0", probe: site, way: "local lo", says: "172.31.1.10"},
	{name: "an IPv6 local address", does: "-6 addr add fd31:0:0:1::10/128 dev lo nodad noprefixroute", probe: site6, way: "local lo", says: "fd31:0:0:1::10"},
	{name: "other-table, equal", vpn: "route add 172.31.0.0/16 dev tun0 table 51820\nrule add not fwmark 51820 lookup 51820", flags: "--other-table 172.31.0.0/16", does: "route prepend 172.31.0.0/16 via 10.77.0.66", probe: "172.31.7.7", way: "tun0"},
}

// TestKept: what the contract keeps stands before, while and after the session
// is enforced, whether it was there first or came later.
func TestKept(t *testing.T) {
	for _, k := range kept {
		t.Run(k.name, func(t *testing.T) {
			needs(t)
			s := newStub(t)
			s.ip(t, k.vpn)
			first := s.daemon(t, strings.Fields(k.flags)...)
			s.ip(t, k.does)
			after := s.Client.MainTable(t)
			check := func(when string) {
				t.Helper()
				reported := func() bool { return k.says == "" || s.says(t, k.says) }
				if !eventually(reported) {
					t.Errorf("%s: status does not say %q: %s", when, k.says, s.prog.Exec(t, "status", "--json"))
				}
				s.again(t)
				if got := way(s.Client, k.probe); got != k.way {
					t.Errorf("%s: %s goes by %s, want %s", when, k.probe, got, k.way)
				}
				sameTable(t, s.Client, when, after)
			}
			check("when it came later")
			stopped(t, first)
			sameTable(t, s.Client, "in between", after)
			second := s.daemon(t, strings.Fields(k.flags)...)
			check("when it was there first")
			stopped(t, second)
			sameTable(t, s.Client, "after the end", after)
		})
	}
}

// says reports whether an incident or a session's unenforceable list has a
// text.
func (s *stub) says(t *testing.T, text string) bool {
	t.Helper()
	st := statusOf(t, s.prog)
	for _, in := range st.Incidents {
		if in.What == "reported" && strings.Contains(in.Reason, text) {
			return true
		}
	}
	for _, sess := range st.Sessions {
		if strings.Contains(strings.Join(slices.Concat(sess.Unenforceable, sess.Notes), "\n"), text) {
			return true
		}
	}
	return false
}

// again provokes a judgement of the whole table, by a conflict that must go
// whatever the flags, and waits until it has: what stands then was left on
// purpose.
func (s *stub) again(t *testing.T) {
	t.Helper()
	n := statusOf(t, s.prog).removed()
	s.Client.IP(t, "route add throw 172.31.200.0/24")
	if !eventually(func() bool { return statusOf(t, s.prog).removed() > n }) {
		t.Errorf("a conflict beside is not removed:\n%s", s.Client.MainTable(t))
	}
}
