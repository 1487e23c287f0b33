//go:build linux

package promise

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// world is a random policy, and a random main table as lines of iproute2.
type world struct {
	rng      *rand.Rand
	compat   bool // net.ipv4.nexthop_compat_mode
	lines    []string
	sessions []enforce.Session
	more     []netip.Addr        // addresses that the host got later
	lowest   []netip.Addr        // of the subnets of those
	leans    map[netip.Addr]bool // gateways of excluded routes
}

// universe is a small range of addresses, so that prefixes meet often.
type universe struct {
	base    netip.Addr
	lengths []int
	metrics []int
	objects []uint32 // nexthop objects of the family
}

var universes = []universe{
	{
		base: netip.MustParseAddr("10.0.0.0"), lengths: []int{0, 1, 8, 24, 26, 27, 28, 28, 29, 30, 31, 32},
		metrics: []int{0, 0, 50, 100}, objects: []uint32{1, 2, 3, 9},
	},
	{
		base: netip.MustParseAddr("fd00::"), lengths: []int{0, 1, 7, 64, 122, 123, 124, 124, 125, 126, 127, 128},
		metrics: []int{1, 256, 1024, 1024}, objects: []uint32{4, 5, 6, 8},
	},
}

var tosValues = []uint8{0x08, 0x10}

func newWorld(seed uint64) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 0x70726f6d697365))}
	w.compat = w.chance(50)
	w.makeSessions()
	w.makeObjects()
	w.makeRoutes()
	return w
}

func (w *world) chance(percent int) bool { return w.rng.IntN(100) < percent }

func pick[T any](w *world, from []T) T { return from[w.rng.IntN(len(from))] }

func (w *world) prefix(u universe) netip.Prefix {
	b := u.base.AsSlice()
	b[len(b)-1] = byte(w.rng.IntN(64))
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, pick(w, u.lengths)).Masked()
}

func (w *world) prefixes(n int) (out []netip.Prefix) {
	for range n {
		out = append(out, w.prefix(pick(w, universes)))
	}
	return out
}

// makeSessions makes one or two sessions. No prefix is in two lists.
func (w *world) makeSessions() {
	var used []netip.Prefix
	fresh := func(n int) (out []netip.Prefix) {
		for _, p := range w.prefixes(n) {
			if !slices.Contains(used, p) {
				used, out = append(used, p), append(out, p)
			}
		}
		return out
	}
	for _, tunnel := range []string{"tun0", "tun1"}[:1+w.rng.IntN(2)] {
		s := enforce.Session{Tunnel: tunnel, Protect: fresh(1 + w.rng.IntN(4)), Exclude: fresh(w.rng.IntN(3))}
		full := plan.Full(plan.IPv4, s.Protect, s.Exclude) || plan.Full(plan.IPv6, s.Protect, s.Exclude)
		if full || w.chance(30) { // a full tunnel is refused without
			s.Servers = []enforce.Server{{Addr: netip.AddrPortFrom(w.server(), 1194), Proto: "udp"}}
		}
		if len(s.Protect) > 0 {
			w.sessions = append(w.sessions, s)
		}
	}
}

func (w *world) server() netip.Addr {
	if w.chance(50) {
		return netip.MustParseAddr("203.0.113.5")
	}
	p := w.prefix(pick(w, universes))
	return netip.PrefixFrom(p.Addr(), p.Addr().BitLen()-1).Masked().Addr().Next()
}

// makeObjects makes nexthop objects: 1 and 2 of IPv4 and their group 3, the
// same of IPv6 in 4, 5 and 6; 8 of IPv6 and 9 of IPv4, a blackhole at times.
func (w *world) makeObjects() {
	for _, id := range []uint32{1, 2, 4, 5, 8, 9} {
		w.lines = append(w.lines, w.object(id, "add"))
	}
	w.lines = append(w.lines, "nexthop add id 3 group 1,2/2", "nexthop add id 6 group 4,3/5,7")
}

// object is a line that makes or replaces a single nexthop object.
func (w *world) object(id uint32, verb string) string {
	if id == 9 && w.chance(30) {
		return "nexthop " + verb + " id 9 blackhole"
	}
	d := w.leg()
	gate := d.gate(slices.Contains(universes[1].objects, id))
	return fmt.Sprintf("nexthop %s id %d via %v dev %s", verb, id, gate, d.name)
}

func (w *world) leg() device {
	return deviceNamed(pick(w, []string{"eth0", "eth0", "eth1", "eth2", "tun0", "tun0", "tun1"}))
}

func (w *world) makeRoutes() {
	w.lines = append(w.lines, "route append 0.0.0.0/0 via 192.0.2.254 dev eth0")
	if w.chance(70) {
		w.lines = append(w.lines, "route append ::/0 via fe80::fe dev eth0 metric 1024 proto static")
	}
	for range 3 + w.rng.IntN(25) {
		w.lines = append(w.lines, w.route(pick(w, []string{"append", "prepend"}), "static"))
	}
	for _, s := range w.sessions {
		for _, p := range s.Protect {
			if w.chance(70) {
				w.lines = append(w.lines, w.vpnRoute(p, s.Tunnel))
			}
		}
	}
}

func universeOf(p netip.Prefix) universe {
	if p.Addr().Is6() {
		return universes[1]
	}
	return universes[0]
}

func (w *world) vpnRoute(p netip.Prefix, tunnel string) string {
	words := []string{"route", pick(w, []string{"append", "prepend"}), p.String()}
	if w.chance(50) {
		words = append(words, "via", deviceNamed(tunnel).gate(p.Addr().Is6()).String())
	}
	words = append(words, "dev", tunnel)
	return strings.Join(append(words, metric(pick(w, universeOf(p).metrics))...), " ")
}

func metric(n int) []string {
	if n == 0 {
		return nil
	}
	return []string{"metric", fmt.Sprint(n)}
}

// route is a line that makes a route of any kind.
func (w *world) route(verb, proto string) string {
	u := pick(w, universes)
	dst := w.prefix(u)
	v6 := u.base.Is6()
	words := []string{"route", verb}
	var legs []string
	single := false
	switch {
	case w.chance(15):
		typ := pick(w, []string{"blackhole", "unreachable", "prohibit", "throw", "throw", "local", "broadcast"})
		words = append(words, typ)
		if typ == "local" || typ == "broadcast" {
			legs = []string{"dev", "eth0", "table", "main"}
		}
	case w.chance(15):
		legs = append(w.nexthop(v6), w.nexthop(v6)...)
	case w.chance(15):
		legs = []string{"nhid", fmt.Sprint(pick(w, u.objects))}
	default:
		single = true
		legs = w.single(dst, v6)
	}
	words = append(words, dst.String())
	if v6 {
		words = append(words, w.attributes6(single)...)
	} else {
		words = append(words, w.attributes4()...)
	}
	words = append(words, metric(pick(w, u.metrics))...)
	words = append(words, "proto", proto)
	return strings.Join(append(words, legs...), " ")
}

// single is the one leg of a route. A route in a subnet's own place goes by no
// gateway inside it: ahead of the subnet's it could be put back in its place or
// without "onlink", not both.
func (w *world) single(dst netip.Prefix, v6 bool) []string {
	d := w.leg()
	own := d.addr4.Masked()
	if v6 {
		own = d.addr6.Masked()
	}
	if w.chance(50) && dst != own {
		return []string{"via", d.gate(v6).String(), "dev", d.name}
	}
	return []string{"dev", d.name}
}

func (w *world) nexthop(v6 bool) []string {
	d := w.leg()
	return []string{"nexthop", "via", d.gate(v6).String(), "dev", d.name, "weight", fmt.Sprint(1 + w.rng.IntN(3))}
}

func (w *world) attributes4() (words []string) {
	if w.chance(20) {
		words = append(words, "tos", fmt.Sprintf("%#x", pick(w, tosValues)))
	}
	if w.chance(10) {
		words = append(words, "src", "192.0.2.10")
	}
	if w.chance(10) {
		words = append(words, "mtu", "1400")
	}
	return words
}

func (w *world) attributes6(single bool) (words []string) {
	if w.chance(15) {
		words = append(words, "from", pick(w, sources).String())
	}
	if single && w.chance(20) {
		words = append(words, "pref", pick(w, []string{"low", "high"}))
	}
	if single && w.chance(10) {
		words = append(words, "expires", "3000")
	}
	return words
}

// sources are the source prefixes of IPv6 routes.
var sources = []netip.Prefix{
	netip.MustParsePrefix("fd08::/64"), netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("fd00::18/125"),
}

// sourceAddrs are asked for beside "any": some inside those, one outside.
var sourceAddrs = []netip.Addr{
	netip.MustParseAddr("fd08::2"), netip.MustParseAddr("fd00::1d"), netip.MustParseAddr("2001:db8::9"),
}

// String tells of a world what a person needs to see a failure.
func (w *world) String() string {
	var b strings.Builder
	for _, s := range w.sessions {
		fmt.Fprintf(&b, "session %s: protect %v, exclude %v, servers %v\n", s.Tunnel, s.Protect, s.Exclude, s.Servers)
	}
	fmt.Fprintf(&b, "nexthop_compat_mode %v\n%s\n", w.compat, strings.Join(w.lines, "\n"))
	return b.String()
}
