package loader

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-14 -target bpfel -tags linux -no-global-types bench ../bpf/bench.c -- -O2 -g -Wall -Werror -mcpu=v3

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tcxPrograms counts what is attached to a device by TCX.
func tcxPrograms(ifindex int) int {
	q, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: ebpf.AttachTCXEgress})
	if err != nil {
		return 0
	}
	return len(q.Programs)
}

// other attaches somebody else's program to the host's device and returns a way to count it.
func (s *stage) other(mode Mode) func() int {
	s.t.Helper()
	var objs benchObjects
	if err := loadBenchObjects(&objs, nil); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { objs.Close() })
	if mode == ModeTCX {
		return s.otherTCX(objs.BenchEnd) // it would hide packets from whoever comes after
	}
	return s.otherFilter(objs.BenchEmpty)
}

func (s *stage) otherTCX(prog *ebpf.Program) func() int {
	s.t.Helper()
	var l link.Link
	s.host.try(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: s.dev, Program: prog, Attach: ebpf.AttachTCXEgress})
		return err
	})
	s.t.Cleanup(func() { l.Close() })
	return func() (n int) {
		if linkIndex(l) == s.dev {
			n = 1
		}
		return n
	}
}

func (s *stage) otherFilter(prog *ebpf.Program) func() int {
	s.t.Helper()
	s.host.try(func() error {
		err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: s.dev, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		}})
		if err != nil {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: s.dev, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1,
			},
			Fd: prog.FD(), Name: "other", DirectAction: true,
		})
	})
	return func() (n int) {
		s.host.do(func() {
			filters, _ := netlink.FilterList(byName("h0"), netlink.HANDLE_MIN_EGRESS)
			for _, f := range filters {
				if b, ok := f.(*netlink.BpfFilter); ok && b.Name == "other" {
					n++
				}
			}
		})
		return n
	}
}

// cgroupPrograms lists what is attached to the root cgroup at one of our hooks.
func cgroupPrograms(t *testing.T) (ids []ebpf.ProgramID) {
	t.Helper()
	root, err := openCgroup()
	if err != nil {
		t.Skip(err)
	}
	defer root.Close()
	q, err := link.QueryPrograms(link.QueryOptions{Target: int(root.Fd()), Attach: ebpf.AttachCGroupInetSockCreate})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range q.Programs {
		ids = append(ids, p.ID)
	}
	return ids
}

// BenchmarkPacket shows ns per packet of the program beside an empty one and a bare lookup, for a growing policy.
func BenchmarkPacket(b *testing.B) {
	for _, size := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) { benchSize(b, size) })
	}
}

var (
	benchHit    = netip.MustParseAddr("10.0.0.1")
	benchMiss   = netip.MustParseAddr("192.0.2.1")
	benchServer = netip.MustParseAddr("203.0.113.1")
)

func benchSize(b *testing.B, size int) {
	var bare benchObjects
	if err := loadBenchObjects(&bare, nil); err != nil {
		b.Fatal(err)
	}
	defer bare.Close()
	w, err := Open(Options{NoSenders: true, noEarly: true, PinDir: b.TempDir()})
	if err != nil {
		b.Skip(err)
	}
	defer w.Close()
	cfg := Config{Prefixes: []Prefix{{Prefix: netip.PrefixFrom(benchServer, 32), Class: Server, Proto: 17, Port: 2}}}
	for i := range size {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
		cfg.Prefixes = append(cfg.Prefixes, Prefix{Prefix: netip.PrefixFrom(a, 24), ID: 1, Class: Excluded})
	}
	for i := range cfg.Prefixes[1:] {
		if err := bare.BareRules.Put(trieKey(cfg.Prefixes[1+i].Prefix), leakRule{}); err != nil {
			b.Fatal(err)
		}
	}
	run := func(name string, p *ebpf.Program, dst netip.Addr) {
		b.Run(name, func(b *testing.B) { perPacket(b, p, udpFrame(dst)) })
	}
	run("empty", bare.BenchEmpty, benchHit)
	run("bare-hit", bare.BenchBare, benchHit)
	run("bare-miss", bare.BenchBare, benchMiss)
	if err := w.Set(cfg); err != nil {
		b.Fatal(err)
	}
	run("miss", w.objs.LeakEther, benchMiss)
	run("excluded", w.objs.LeakEther, benchHit)
	run("transport", w.objs.LeakEther, benchServer)
	for i := range cfg.Prefixes[1:] {
		cfg.Prefixes[1+i].Class = Protected
	}
	if err := w.Set(cfg); err != nil {
		b.Fatal(err)
	}
	run("leak", w.objs.LeakEther, benchHit)
}

// perPacket reports the kernel's own figure: the best of several runs, the machine being noisy.
func perPacket(b *testing.B, p *ebpf.Program, data []byte) {
	best := time.Hour
	for b.Loop() {
		for range 5 {
			_, took, err := p.Benchmark(data, 100_000, nil)
			if err != nil {
				b.Fatal(err)
			}
			best = min(best, took)
		}
	}
	b.ReportMetric(float64(best.Nanoseconds()), "ns/packet")
	b.ReportMetric(0, "ns/op")
}
