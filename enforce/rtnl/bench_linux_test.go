package rtnl

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/culvert-project/culvert/testenv"
	"golang.org/x/sys/unix"
)

// The attack of the latency benchmarks: one conflicting route a millisecond.
const (
	attackAdds = 2000
	attackGap  = time.Millisecond
	crowd      = 1_000_000 // routes of the large table
)

// bench is a namespace with a LAN, a tunnel with the VPN's 10.0.0.0/8, and
// whoever answers the attack.
type bench struct {
	ns   *testenv.NS
	eth0 uint32
}

func newBench(b *testing.B) *bench {
	testenv.Require(b, testenv.Root)
	ns, far := testenv.Namespace(b, "bench"), testenv.Namespace(b, "far")
	testenv.Veth(b, testenv.End{NS: ns, Name: "eth0", Addrs: testenv.Prefixes("192.168.1.2/24")},
		testenv.End{NS: far, Name: "eth0", Addrs: testenv.Prefixes("192.168.1.1/24")})
	testenv.OpenTun(b, ns, "tun0", testenv.Prefixes("198.18.0.2/24")...)
	ns.IP(b, "route", "add", "10.0.0.0/8", "dev", "tun0")
	n, err := strconv.Atoi(strings.SplitN(ns.IP(b, "-o", "link", "show", "eth0"), ":", 2)[0])
	if err != nil {
		b.Fatal(err)
	}
	return &bench{ns: ns, eth0: uint32(n)}
}

func (x *bench) socket(b *testing.B, groups ...int) *socket {
	var s *socket
	x.ns.Run(b, func() {
		var err error
		if s, err = openSocket(); err != nil {
			b.Fatal(err)
		}
	})
	b.Cleanup(func() { s.close() })
	_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	for _, g := range groups {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			b.Fatal(err)
		}
	}
	return s
}

// floor starts the C loop and returns how to end it.
func (x *bench) floor(b *testing.B) (stop func()) {
	bin := filepath.Join(b.TempDir(), "floor")
	if out, err := exec.Command("gcc", "-O2", "-Wall", "-o", bin, "testdata/floor.c").CombinedOutput(); err != nil {
		b.Fatalf("compile the floor: %v: %s", err, out)
	}
	cmd := x.ns.Command(bin, fmt.Sprint(x.eth0))
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		b.Fatal(err)
	}
	return func() { cmd.Process.Kill(); cmd.Wait() }
}

// culvert starts the real daemon and returns its process id and how to end it.
func (x *bench) culvert(b *testing.B) (pid int, stop func()) {
	p := testenv.NewProgram(b, x.ns, "")
	proc := p.Daemon(b, "--tunnel", "tun0", "--protect", "10.0.0.0/8")
	p.Must(b, "status", "--wait", "60s")
	return proc.Pid(), func() { proc.Stop(b) }
}

// attack adds the routes and returns how long each stood, counted from the
// moment that the adder had its acknowledgement. Below zero: it was gone before
// the adder knew that it had been added.
func (x *bench) attack(b *testing.B) []time.Duration {
	hear, add := x.socket(b, unix.RTNLGRP_IPV4_ROUTE), x.socket(b)
	acked, gone := make([]time.Time, attackAdds), make([]time.Time, attackAdds)
	done := make(chan error, 1)
	go func() { done <- collect(hear, gone) }()
	x.ns.Run(b, func() {
		next := time.Now()
		for i := range acked {
			if err := addHost(add, hostOf(i), x.eth0); err != nil {
				b.Fatal(err)
			}
			acked[i] = time.Now()
			next = next.Add(attackGap)
			time.Sleep(time.Until(next))
		}
	})
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	stood := make([]time.Duration, attackAdds)
	for i := range stood {
		stood[i] = gone[i].Sub(acked[i])
	}
	slices.Sort(stood)
	return stood
}

func hostOf(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}) }

func addHost(s *socket, a netip.Addr, link uint32) error {
	s.begin(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE)
	s.out = appendHost(s.out, a, link)
	return s.do(nil)
}

func appendHost(b []byte, a netip.Addr, link uint32) []byte {
	b = append(b, unix.AF_INET, 32, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_LINK, unix.RTN_UNICAST, 0, 0, 0, 0)
	b = appendAttr(b, unix.RTA_DST, a.AsSlice())
	return appendUint32(b, unix.RTA_OIF, link)
}

// collect notes when each of the attack's routes is announced as deleted.
func collect(s *socket, gone []time.Time) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for left := len(gone); left > 0; {
		b, err := s.read()
		if err != nil {
			return fmt.Errorf("%d routes never went: %w", left, err)
		}
		now := time.Now()
		for {
			hdr, body, rest, ok := nextMessage(b)
			if !ok {
				break
			}
			var r plan.Route
			if b = rest; hdr.Type == unix.RTM_DELROUTE && parseRoute(body, &r, nil) == parsed {
				a := r.Dst.Addr().As4()
				if i := int(a[2])<<8 | int(a[3]); a[0] == 10 && a[1] == 9 && gone[i].IsZero() {
					gone[i] = now
					left--
				}
			}
		}
	}
	return nil
}

// fill adds a million routes that no policy concerns.
func (x *bench) fill(b *testing.B) {
	s := x.socket(b)
	x.ns.Run(b, func() {
		for i := 0; i < crowd; {
			s.out = s.out[:0]
			for range 1000 {
				at := len(s.out)
				s.out = append(s.out, make([]byte, hdrLen)...)
				native.PutUint16(s.out[at+4:], unix.RTM_NEWROUTE)
				native.PutUint16(s.out[at+6:], unix.NLM_F_REQUEST|unix.NLM_F_CREATE)
				a := netip.AddrFrom4([4]byte{byte(20 + i>>16), byte(i >> 8), byte(i), 1})
				s.out = appendHost(s.out, a, x.eth0)
				native.PutUint32(s.out[at:], uint32(len(s.out)-at))
				i++
			}
			if _, err := unix.Write(s.fd, s.out); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func report(b *testing.B, name string, stood []time.Duration) float64 {
	p50 := float64(stood[len(stood)/2].Nanoseconds()) / 1e3
	b.ReportMetric(p50, name+"-p50-µs")
	b.ReportMetric(float64(stood[len(stood)*99/100].Nanoseconds())/1e3, name+"-p99-µs")
	return p50
}

// BenchmarkEdge is how long a conflicting route stands, beside the C floor in
// the same run: rounds of each in turn, so that a noisy machine troubles both.
func BenchmarkEdge(b *testing.B) {
	var c, ours []time.Duration
	for range 3 * b.N {
		x := newBench(b)
		stop := x.floor(b)
		c = append(c, x.attack(b)...)
		stop()
		_, stop = x.culvert(b)
		ours = append(ours, x.attack(b)...)
		stop()
	}
	slices.Sort(c)
	slices.Sort(ours)
	floor, p50 := report(b, "C", c), report(b, "culvert", ours)
	b.ReportMetric(p50/floor, "ratio-p50")
}

// BenchmarkLargeTable shows what a million routes cost: the first judgement
// beside a raw dump, the daemon's memory, and the edge beside the empty table's.
func BenchmarkLargeTable(b *testing.B) {
	for range b.N {
		x := newBench(b)
		_, stop := x.culvert(b)
		empty := x.attack(b)
		stop()
		x.fill(b)
		raw, judged := x.dumps(b)
		b.ReportMetric(raw.Seconds()*1e3, "raw-dump-ms")
		b.ReportMetric(judged.Seconds()*1e3, "judgement-ms")
		b.ReportMetric(judged.Seconds()/raw.Seconds(), "ratio-dump")
		pid, stop := x.culvert(b)
		crowded := x.attack(b)
		b.ReportMetric(peakMemory(b, pid), "daemon-MiB")
		stop()
		p0, p1 := report(b, "empty", empty), report(b, "million", crowded)
		b.ReportMetric(p1/p0, "ratio-edge")
	}
}

// dumps times a dump that looks at nothing and a whole judgement, the better
// of three each.
func (x *bench) dumps(b *testing.B) (raw, judged time.Duration) {
	raw, judged = time.Hour, time.Hour
	var sys *System
	x.ns.Run(b, func() {
		var err error
		if sys, err = New(); err != nil {
			b.Fatal(err)
		}
	})
	defer sys.Close()
	session := []enforce.Session{{Tunnel: "tun0", Protect: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
	for range 3 {
		raw = min(raw, timed(b, func() error { return x.rawDump(b) }))
		judged = min(judged, timed(b, func() error {
			_, err := enforce.PreviewSessions(context.Background(), sys, session, enforce.Options{})
			return err
		}))
	}
	return raw, judged
}

func timed(b *testing.B, f func() error) time.Duration {
	start := time.Now()
	if err := f(); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

func (x *bench) rawDump(b *testing.B) error {
	s := x.socket(b)
	s.begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
	s.out = append(s.out, unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, 0, 0, 0, 0, 0, 0, 0)
	s.out = appendUint32(s.out, unix.RTA_TABLE, unix.RT_TABLE_MAIN)
	n := 0
	err := s.dump(context.Background(), func(*message) bool { n++; return true })
	if err == nil && n < crowd {
		err = fmt.Errorf("the dump has %d routes", n)
	}
	return err
}

// peakMemory is the most that a process ever had resident, in MiB.
func peakMemory(b *testing.B, pid int) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, after, _ := strings.Cut(string(data), "VmHWM:")
	kb, err := strconv.ParseFloat(strings.Fields(after)[0], 64)
	if err != nil {
		b.Fatal(err)
	}
	return kb / 1024
}

// BenchmarkParse is the cost of reading one announcement, and that it does not
// allocate.
func BenchmarkParse(b *testing.B) {
	msg := appendHost(nil, hostOf(1), 2)
	var r plan.Route
	b.ReportAllocs()
	for b.Loop() {
		if parseRoute(msg, &r, nil) != parsed {
			b.Fatal("not parsed")
		}
	}
}
