//go:build linux

package promise

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/testenv"
)

// nests are tunnels whose prefixes lie inside each other, the widest first.
var nests = []enforce.Session{
	{Tunnel: "tun0", Protect: testenv.Prefixes("172.20.0.0/16", "fd20::/32")},
	{Tunnel: "tun1", Protect: testenv.Prefixes("172.20.64.0/18", "fd20:0:40::/42")},
	{Tunnel: "tun2", Protect: testenv.Prefixes("172.20.96.0/19", "fd20:0:60::/43")},
}

// nestLines are what stood before: the tunnels' routes, and in each of their prefixes
// what conflicts with it, by every kind of owner.
func nestLines(n int) []string {
	lines := []string{"route append default via 192.0.2.254 dev eth0", "route append default via fe80::fe dev eth0 metric 1024"}
	for i, s := range nests[:n] {
		net4, net6 := nestNets(i)
		for _, p := range s.Protect {
			lines = append(lines, "route append "+p.String()+" dev "+s.Tunnel)
		}
		lines = append(lines,
			fmt.Sprintf("addr add 172.20.%d.1/24 dev eth2", net4),
			fmt.Sprintf("addr add fd20:0:%x::1/64 dev eth2 nodad", net6),
			fmt.Sprintf("route append 172.20.%d.0/24 via 192.0.2.%d dev eth0", net4+1, i+1),
			fmt.Sprintf("route append blackhole 172.20.%d.0/24", net4+2),
			fmt.Sprintf("route append 172.20.%d.0/24 nexthop via 192.0.2.1 dev eth0 nexthop via 10.0.0.30 dev eth1", net4+3),
			fmt.Sprintf("route append fd20:0:%x::/64 via fd01::%d dev eth0 metric 7", net6+1, i+1),
		)
	}
	return append(lines, "route append 172.20.0.0/16 via 192.0.2.9 dev eth0 metric 900") // stays: it never wins
}

// nestNets are the first of the third bytes, or groups, that belong to one alone.
func nestNets(i int) (net4, net6 int) { return []int{0, 64, 96}[i], []int{0, 0x40, 0x60}[i] }

// orders are all orders of n things.
func orders(n int) (out [][]int) {
	if n == 0 {
		return [][]int{nil}
	}
	for _, o := range orders(n - 1) {
		for at := range n {
			out = append(out, slices.Insert(slices.Clone(o), at, n-1))
		}
	}
	return out
}

// TestNestedTunnels: two and three tunnels, one inside the other's prefix, open and
// close in all orders, with an attack after each. Each address enters the innermost
// tunnel that is open, and in the end the table is as before.
func TestNestedTunnels(t *testing.T) {
	needs(t)
	l := newLab(t)
	for _, n := range []int{2, 3} {
		l.reset(t, nil)
		if n == 3 {
			testenv.OpenTun(t, l.ns, "tun2", testenv.Prefixes("10.10.0.2/24", "fd10::2/64")...)
		}
		l.ip4.do(t, nestLines(n)...)
		before := l.table(t)
		p := testenv.NewProgram(t, l.ns, "")
		d := p.Daemon(t, blind...)
		for _, closing := range orders(n) {
			for _, opening := range [][]int{closing, backwards(closing)} {
				l.nest(t, p, opening, closing, before)
			}
		}
		stop(t, d)
		l.back(t, "stopped", before, before)
	}
}

func (l *lab) nest(t *testing.T, p *testenv.Program, opening, closing []int, before string) {
	t.Helper()
	what := fmt.Sprintf("opened %v, closed %v", opening, closing)
	var open []int
	during := ""
	for _, i := range opening {
		p.Must(t, upArgs(nests[i])...)
		open = append(open, i)
		l.nested(t, what, open)
		during = l.table(t)
	}
	for _, i := range closing {
		p.Must(t, "down", "--tunnel", nests[i].Tunnel)
		open = slices.DeleteFunc(open, func(o int) bool { return o == i })
		l.nested(t, what, open)
	}
	l.back(t, what, before, during)
}

// nested attacks the prefix of each open tunnel, and waits until all of its addresses
// enter the innermost.
func (l *lab) nested(t *testing.T, what string, open []int) {
	t.Helper()
	var strikes []string
	ways := map[netip.Addr]string{}
	for i := range nests {
		owner := innermost(open, i)
		if owner == "" {
			continue
		}
		net4, net6 := nestNets(i)
		strikes = append(strikes,
			fmt.Sprintf("route prepend 172.20.%d.0/25 via 192.0.2.66 dev eth0 proto 77", net4+9),
			fmt.Sprintf("route prepend throw 172.20.%d.0/24 proto 77", net4+10),
			fmt.Sprintf("route prepend fd20:0:%x::/64 via fd01::66 dev eth0 metric 1 proto 77", net6+9),
		)
		for n := range 13 {
			ways[netip.MustParseAddr(fmt.Sprintf("172.20.%d.7", net4+n))] = owner
			ways[netip.MustParseAddr(fmt.Sprintf("fd20:0:%x::7", net6+n))] = owner
		}
	}
	l.ip4.do(t, strikes...)
	for addr, owner := range ways {
		testenv.Eventually(t, patience, fmt.Sprintf("%s: with %v open %v enters %s", what, open, addr, owner), func() bool {
			hop, err := l.fib.Lookup(addr, 0)
			return err == nil && hop.Device == owner
		})
	}
}

// innermost returns the open tunnel that the i-th's addresses belong to, or "".
func innermost(open []int, i int) string {
	best := -1
	for _, o := range open {
		if o <= i {
			best = max(best, o)
		}
	}
	if best < 0 {
		return ""
	}
	return nests[best].Tunnel
}

func backwards(list []int) []int {
	out := slices.Clone(list)
	slices.Reverse(out)
	return out
}
