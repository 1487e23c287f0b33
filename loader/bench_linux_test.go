package loader

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-14 -target bpfel -tags linux -no-global-types bench ../bpf/bench.c -- -O2 -g -Wall -Werror -mcpu=v3

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
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
	return s.otherFilter(objs.BenchEmpty, 1)
}

// before puts somebody else's program before ours. Of the filters of one priority the latest comes first.
func (s *stage) before(mode Mode, prog *ebpf.Program, handle uint32) {
	s.t.Helper()
	if mode == ModeTCX {
		s.host.try(func() error {
			l, err := link.AttachTCX(link.TCXOptions{
				Interface: s.dev, Program: prog, Attach: ebpf.AttachTCXEgress, Anchor: link.Head(),
			})
			if err == nil {
				s.t.Cleanup(func() { l.Close() })
			}
			return err
		})
		return
	}
	s.otherFilter(prog, handle)
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

func (s *stage) otherFilter(prog *ebpf.Program, handle uint32) func() int {
	s.t.Helper()
	s.host.try(func() error {
		err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: s.dev, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		}})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: s.dev, Parent: netlink.HANDLE_MIN_EGRESS, Handle: handle, Protocol: unix.ETH_P_ALL, Priority: 1,
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
		testenv.Lacking(t, "%v", err)
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

// BenchmarkPacket shows ns per packet of the program beside an empty one and a bare lookup, for a growing policy. Each
// is run in turn, many times over, and has its best time: the machine is noisy, and all are to suffer from it alike.
func BenchmarkPacket(b *testing.B) {
	for _, size := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) { benchSize(b, size) })
	}
}

var (
	benchHit    = netip.MustParseAddr("10.0.0.1")
	benchMiss   = netip.MustParseAddr("192.0.2.1")
	benchServer = netip.MustParseAddr("203.0.113.1")
	benchNarrow = netip.MustParseAddr("203.0.113.2")
)

const (
	benchRounds  = 40
	benchPackets = 20_000 // in each
)

// subject is one program with one kind of packet, and what it is compared with.
type subject struct {
	name  string
	prog  *ebpf.Program
	frame []byte
	peer  string
}

func benchSize(b *testing.B, size int) {
	var bare benchObjects
	if err := loadBenchObjects(&bare, nil); err != nil {
		b.Fatal(err)
	}
	defer bare.Close()
	excluded, protected := benchWitness(b, size, Excluded), benchWitness(b, size, Protected)
	for p := range benchPolicy(size, Excluded) {
		if err := bare.BareRules.Put(trieKey(p.Prefix), leakRule{}); err != nil {
			b.Fatal(err)
		}
	}
	hit, miss, server := udpFrame(benchHit), udpFrame(benchMiss), udpFrame(benchServer)
	narrow := udpFrame(benchNarrow)
	compare(b, []*subject{
		{name: "empty", prog: bare.BenchEmpty, frame: hit},
		{name: "bare-hit", prog: bare.BenchBare, frame: hit},
		{name: "bare-miss", prog: bare.BenchBare, frame: miss},
		{name: "bare-server", prog: bare.BenchBare, frame: server},
		{name: "miss", prog: excluded.objs.LeakEther, frame: miss, peer: "bare-miss"},
		{name: "excluded", prog: excluded.objs.LeakEther, frame: hit, peer: "bare-hit"},
		{name: "transport", prog: excluded.objs.LeakEther, frame: server, peer: "bare-server"},
		{name: "narrow", prog: excluded.objs.LeakEther, frame: narrow, peer: "bare-server"},
		{name: "leak", prog: protected.objs.LeakEther, frame: hit, peer: "bare-hit"},
	})
}

// benchPolicy is a server, one that asks who sends, and so many prefixes.
func benchPolicy(size int, class Class) iter.Seq[Prefix] {
	return func(yield func(Prefix) bool) {
		if !yield(Prefix{Prefix: netip.PrefixFrom(benchServer, 32), Class: Server, Proto: 17, Port: 2}) {
			return
		}
		if !yield(Prefix{Prefix: netip.PrefixFrom(benchNarrow, 32), Class: Server, Proto: 17, Port: 2, From: FromKernel}) {
			return
		}
		for i := range size {
			a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
			if !yield(Prefix{Prefix: netip.PrefixFrom(a, 24), ID: 1, Class: class}) {
				return
			}
		}
	}
}

func benchWitness(b *testing.B, size int, class Class) *Witness {
	w, err := Open(Options{NoSenders: true, noEarly: true, PinDir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { w.Close() })
	if err := w.Set(Config{Prefixes: slices.Collect(benchPolicy(size, class))}); err != nil {
		b.Fatal(err)
	}
	return w
}

// compare reports the kernel's own figures, and each beside that of its peer.
func compare(b *testing.B, list []*subject) {
	best := map[string]time.Duration{}
	for b.Loop() {
		for range benchRounds {
			for _, s := range list {
				_, took, err := s.prog.Benchmark(s.frame, benchPackets, nil)
				if err != nil {
					b.Fatal(err)
				}
				if was, ok := best[s.name]; !ok || took < was {
					best[s.name] = took
				}
			}
		}
	}
	for _, s := range list {
		b.ReportMetric(float64(best[s.name].Nanoseconds()), "ns-"+s.name)
		if s.peer != "" {
			b.ReportMetric(float64(best[s.name])/float64(best[s.peer]), s.name+"/bare")
		}
	}
	b.ReportMetric(0, "ns/op")
}
