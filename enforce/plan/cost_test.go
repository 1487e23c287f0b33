package plan_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/culvert-project/culvert/enforce/plan"
)

// judged are routes of every verdict that a flood may consist of.
func judged() []plan.Route {
	return routes("default via 192.168.1.1 dev eth0", "172.31.0.0/16 dev tun0", "172.31.1.0/24 via 192.168.1.1 dev eth0",
		"172.31.0.0/16 dev eth0 metric 9", "172.31.200.128/25 dev eth0", "169.254.0.0/16 dev eth0", "blackhole 172.31.1.0/24",
		"172.31.17.0/24 dev docker0", "2001:db8:31:1::/64 via fe80::1 dev eth0", "2001:db8:31::/48 from 2001:db8:2::/64 dev eth0", "2001:db8:99::/48 dev eth0")
}

func TestJudgeDoesNotAllocate(t *testing.T) {
	p := build(t, verdictSpec())
	for _, r := range judged() {
		if n := testing.AllocsPerRun(100, func() { plan.Judge(p, &r) }); n != 0 {
			t.Errorf("judging %s allocates %v times", say(r), n)
		}
	}
}

// TestMakeKeepsNoTable streams a million routes that are none of the policy's.
// Were they kept, they would be over 100 MB.
func TestMakeKeepsNoTable(t *testing.T) {
	if raceEnabled {
		t.Skip("a million routes under the race detector say nothing more")
	}
	const n = 1_000_000
	p := one(t, "10.0.0.0/8 fd00::/8", "")
	peak := uint64(0)
	table := func(yield func(plan.Route) bool) {
		r := rt("20.0.0.0/32 via 192.168.1.1 dev eth0")
		for i := range n {
			r.Dst = netip.PrefixFrom(netip.AddrFrom4([4]byte{20 + byte(i>>24), byte(i >> 16), byte(i >> 8), byte(i)}), 32)
			if i%250_000 == 0 {
				peak = max(peak, heap())
			}
			if !yield(r) {
				return
			}
		}
	}
	before := heap()
	pl := plan.Make(plan.Input{Policy: p, Table: table, Links: links()})
	if grown := int64(peak) - int64(before); grown > 4<<20 {
		t.Errorf("the heap grew by %d bytes over %d routes", grown, n)
	}
	if len(pl.Actions) != 2 { // the two missing tunnel routes
		t.Errorf("actions %q", lines(pl))
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkJudge(b *testing.B) {
	for _, size := range []int{1, 100, 10_000} {
		spec := verdictSpec()
		for i := range size {
			spec.Sessions[0].Protect = append(spec.Sessions[0].Protect, netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 0}), 24))
		}
		p, _ := plan.Build(spec)
		for _, r := range judged()[:3] {
			b.Run(fmt.Sprintf("prefixes=%d/%s", size, r.Dst), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					plan.Judge(p, &r)
				}
			})
		}
	}
}

func BenchmarkMake(b *testing.B) {
	p, _ := plan.Build(verdictSpec())
	all := judged()
	table := func(yield func(plan.Route) bool) {
		for range 1000 {
			for _, r := range []int{0, 5, 10} {
				if !yield(all[r]) {
					return
				}
			}
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		plan.Make(plan.Input{Policy: p, Table: table, Links: links()})
	}
}
