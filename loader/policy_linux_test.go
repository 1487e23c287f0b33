package loader

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
)

func TestCompile(t *testing.T) {
	p := netip.MustParsePrefix
	several := func(n int, of func(i int) Prefix) (list []Prefix) {
		for i := range n {
			list = append(list, of(i))
		}
		return list
	}
	five := func(of func(i int) Prefix) []Prefix { return several(5, of) }
	for _, c := range []struct {
		name  string
		lines []Prefix
		rules int // -1: refused
	}{
		{"nothing", nil, 0},
		{"host bits", []Prefix{{Prefix: p("10.1.2.3/8")}, {Prefix: p("10.0.0.0/8")}}, 1},
		{"mapped", []Prefix{{Prefix: p("::ffff:10.0.0.0/104")}, {Prefix: p("10.0.0.0/8")}}, 1},
		{"families", []Prefix{{Prefix: p("0.0.0.0/0")}, {Prefix: p("::/0")}}, 2},
		{"invalid", []Prefix{{}}, -1},
		{"no such class", []Prefix{{Prefix: p("10.0.0.0/8"), Class: 9}}, -1},
		{"two classes", []Prefix{{Prefix: p("10.0.0.0/8")}, {Prefix: p("10.0.0.0/8"), Class: Excluded}}, -1},
		{"five tunnels", five(func(i int) Prefix { return Prefix{Prefix: p("10.0.0.0/8"), Tunnel: i + 1} }), -1},
		{"one tunnel, five times", five(func(int) Prefix { return Prefix{Prefix: p("10.0.0.0/8"), Tunnel: 1} }), 1},
		{"two names", []Prefix{{Prefix: p("10.0.0.0/8"), Name: "wg10"}, {Prefix: p("10.0.0.0/8"), Name: "tun"}}, -1},
		{"one name, and none", []Prefix{{Prefix: p("10.0.0.0/8"), Name: "wg10"}, {Prefix: p("10.0.0.0/8")}, {Prefix: p("10.0.0.0/8"), Name: "wg10"}}, 1},
		{"nine transports", several(9, func(i int) Prefix {
			return Prefix{Prefix: p("10.0.0.1/32"), Class: Server, Proto: 17, Port: uint16(i)}
		}), -1},
		{"no such sender", []Prefix{{Prefix: p("10.0.0.1/32"), Class: Server, From: FromMark + 1}}, -1},
		{"two sets of exempt interfaces", []Prefix{{Prefix: p("10.0.0.0/8"), Exempt: []int{1}}, {Prefix: p("10.0.0.0/8"), Exempt: []int{2}}}, -1},
		{"the same set, in another order", []Prefix{{Prefix: p("10.0.0.0/8"), Exempt: []int{1, 2}}, {Prefix: p("10.0.0.0/8"), Exempt: []int{2, 1, 2}}}, 1},
		{"32 sets of exempt interfaces", sets(32), 32},
		{"33 sets of exempt interfaces", sets(33), -1},
	} {
		got, _, err := compile(Config{Prefixes: c.lines})
		if (err != nil) != (c.rules < 0) || err == nil && len(got) != c.rules {
			t.Errorf("%s: %d rules, %v; want %d", c.name, len(got), err, c.rules)
		}
	}
}

// sets are prefixes, each with exempt interfaces of its own.
func sets(n int) (list []Prefix) {
	for i := range n {
		list = append(list, Prefix{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16), Exempt: []int{i + 1}})
	}
	return list
}

// judged runs the program on a frame and returns the counter that moved.
func judged(t testing.TB, w *Witness, f []byte) (leakCounterKey, bool) {
	t.Helper()
	var key leakCounterKey
	var cpus []leakCounter
	for it := w.objs.Counters.Iterate(); it.Next(&key, &cpus); { // forget the last
		if key.Ifindex != 0 {
			w.objs.Counters.Delete(key)
		}
	}
	if _, err := w.objs.LeakEther.Run(&ebpf.RunOptions{Data: f}); err != nil {
		t.Fatal(err)
	}
	for it := w.objs.Counters.Iterate(); it.Next(&key, &cpus); {
		if key.Ifindex != 0 {
			return key, true
		}
	}
	return key, false
}

// TestAgainstOracle compares the program on random policies with a search through the list.
func TestAgainstOracle(t *testing.T) {
	n := newNode(t)
	w := n.open(Options{NoSenders: true, noEarly: true})
	r := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		cfg := randomConfig(r)
		set(t, w, cfg)
		n.do(func() {
			for range 50 {
				dst := randomAddr(r)
				key, counted := judged(t, w, udpFrame(dst))
				best, ok := longest(cfg.Prefixes, dst)
				want := ok && best.Class == Protected
				if counted != want || counted && key.Prefix != best.ID {
					t.Errorf("%s: counted %t for %d, want %t for %+v", dst, counted, key.Prefix, want, best)
				}
			}
		})
	}
}

func udpFrame(dst netip.Addr) []byte {
	if dst.Is4() {
		return frame(mac("p0"), nil, ipv4(dst, 17, udp(1, 2, 9)))
	}
	return frame(mac("p0"), nil, ipv6(dst, 17, 64, udp(1, 2, 9)))
}

func longest(list []Prefix, a netip.Addr) (best Prefix, ok bool) {
	for _, p := range list {
		if p.Prefix.Contains(a) && (!ok || p.Prefix.Bits() > best.Prefix.Bits()) {
			best, ok = p, true
		}
	}
	return best, ok
}

// randomAddr stays in a small part of either space, so that prefixes overlap.
func randomAddr(r *rand.Rand) netip.Addr {
	if r.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), byte(r.IntN(4)), byte(r.IntN(256))})
	}
	return netip.AddrFrom16([16]byte{0xfd, 9, 14: byte(r.IntN(4)), 15: byte(r.IntN(256))})
}

func randomConfig(r *rand.Rand) (cfg Config) {
	seen := map[netip.Prefix]bool{}
	for id := range uint32(1 + r.IntN(60)) {
		a := randomAddr(r)
		p := netip.PrefixFrom(a, r.IntN(a.BitLen()+1)).Masked()
		if !seen[p] {
			seen[p] = true
			cfg.Prefixes = append(cfg.Prefixes, Prefix{Prefix: p, ID: id + 1, Class: Class(r.IntN(3))})
		}
	}
	return cfg
}
