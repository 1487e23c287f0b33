package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flood sends as fast as two threads of the host can, until stopped; it returns how many were tried.
type flood struct {
	stop atomic.Bool
	sent atomic.Int64
	done sync.WaitGroup
}

func (n *node) flood(to ...string) *flood {
	n.t.Helper()
	f := &flood{}
	for _, addr := range to {
		var c net.PacketConn
		n.try(func() (err error) {
			c, err = net.ListenPacket("udp", ":0")
			return err
		})
		f.done.Go(func() {
			defer c.Close()
			f.run(c, addr)
		})
	}
	n.t.Cleanup(func() { f.end() })
	return f
}

func (f *flood) run(c net.PacketConn, addr string) {
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return
	}
	to := netip.MustParseAddrPort(addr)
	var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
	raw.Control(func(fd uintptr) {
		for payload := make([]byte, 18); !f.stop.Load(); {
			unix.Sendto(int(fd), payload, 0, sa) // refused with ENOBUFS where dropped
			f.sent.Add(1)
		}
	})
}

func (f *flood) end() int64 {
	f.stop.Store(true)
	f.done.Wait()
	return f.sent.Load()
}

// more waits until another n were sent.
func (f *flood) more(n int64) {
	for goal := f.sent.Load() + n; f.sent.Load() < goal; {
		time.Sleep(time.Millisecond)
	}
}

// TestDropUnderFlood lets nothing through while policies are swapped, programs are swapped by adopting witnesses, and
// the daemon is killed and started again.
func TestDropUnderFlood(t *testing.T) {
	for _, mode := range []Mode{ModeTCX, ModeClsact} {
		t.Run(mode.String(), func(t *testing.T) { dropUnderFlood(t, mode) })
	}
}

func dropUnderFlood(t *testing.T, mode Mode) {
	needMode(t, mode)
	s := newStage(t, Options{modes: []Mode{mode}, noEarly: true, PinDir: pinDir(t)})
	cfg := Config{Prefixes: protect(stagePrefixes...), Action: Drop}
	set(t, s.w, cfg)
	f := s.host.flood("10.9.0.2:7", "[fd09::2]:7")
	for i := range 50 {
		set(t, s.w, swapped(cfg, i))
		f.more(2000)
	}
	set(t, s.w, cfg)
	for range 5 { // programs, by adoption
		if err := s.w.Close(); err != nil {
			t.Fatal(err)
		}
		f.more(2000)
		s.host.try(func() (err error) {
			s.w, err = Open(s.w.opts)
			return err
		})
	}
	if st := s.status(); !st.Adopted || st.Guarded == "" {
		t.Errorf("not adopted: %+v", st)
	}
	if goal := int64(1_000_000); f.sent.Load() < goal && mode == ModeTCX {
		f.more(goal - f.sent.Load())
	}
	sent, through, sums := f.end(), s.cap.settle(), leaks(t, s.w, s.dev, Reason.Leak)
	if through.Packets != 0 {
		t.Errorf("%d of %d packets got through", through.Packets, sent)
	}
	if int64(sums.Packets) != sent || sums.Dropped != sums.Packets {
		t.Errorf("sent %d, counted %d, dropped %d", sent, sums.Packets, sums.Dropped)
	}
	t.Logf("%d sent, %d counted, %d through", sent, sums.Packets, through.Packets)
	s.w.Close()
}

func (s *stage) status() Status {
	s.t.Helper()
	st, err := s.w.Status()
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

// swapped moves every prefix of a policy: shorter, longer, split, and back; all protect the flood's destinations.
func swapped(cfg Config, i int) Config {
	choices := [][]string{
		{"0.0.0.0/0", "::/0"},
		{"10.9.0.0/25", "10.64.0.0/10", "fd09::/64", "fd09::2/128"},
		{"10.9.0.2/32", "10.64.0.0/10", "fd00::/8"},
		{"10.0.0.0/8", "fd09::/126"},
	}
	cfg.Prefixes = protect(choices[i%len(choices)]...)
	excluded := netip.MustParsePrefix([]string{"10.8.0.0/13", "10.9.0.0/16"}[i/2%2]) // opened around what is longer
	if i%4 == 1 || i%4 == 2 {
		cfg.Prefixes = append(cfg.Prefixes, Prefix{Prefix: excluded, Class: Excluded})
	}
	return cfg
}

// TestDropAcrossKills kills the daemon twenty times, at no particular moment, under the flood.
func TestDropAcrossKills(t *testing.T) {
	s := &stage{t: t, host: newNode(t), peer: newNode(t)}
	wire(s.host, s.peer, "h0", "p0", []string{"10.9.0.1/24", "fd09::1/64"}, []string{"10.9.0.2/24", "fd09::2/64"})
	s.cap = s.peer.capture("p0", "10.9.0.0/24")
	opts := Options{PinDir: pinDir(t)}
	t.Cleanup(func() { s.host.release(opts) })
	first := s.daemon(opts.PinDir)
	f := s.host.flood("10.9.0.2:7")
	kill(first)
	for i := range 19 {
		cmd := s.daemon(opts.PinDir)
		if i%2 == 1 {
			time.Sleep(time.Duration(i) * time.Millisecond)
		}
		kill(cmd)
		f.more(1000)
	}
	sent := f.end()
	if got := s.cap.settle(); got.Packets != 0 {
		t.Errorf("%d of %d packets got through", got.Packets, sent)
	}
	s.w = s.host.open(opts)
	if got := leaks(t, s.w, s.host.index("h0"), Reason.Leak); int64(got.Dropped) != sent || int64(got.Packets) != sent {
		t.Errorf("sent %d, counted over all lives %d, dropped %d", sent, got.Packets, got.Dropped)
	}
	t.Logf("%d sent", sent)
}

func (s *stage) daemon(pins string) *exec.Cmd {
	s.t.Helper()
	return s.host.startReady("daemon", pins, "10.9.0.0/24")
}

func kill(cmd *exec.Cmd) {
	cmd.Process.Kill()
	cmd.Wait()
}

// TestGuard follows one guard through its life.
func TestGuard(t *testing.T) {
	s := newStage(t, Options{PinDir: pinDir(t)})
	opts := s.w.opts
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...), Guard: true})
	s.send(rounds, true)
	dir := s.status().Guarded
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("pins: %v, %v", st, err)
	}
	s.w.Close()
	s.send(rounds, true)
	s.host.try(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"})
	})
	s.w = s.host.open(opts)
	if got := leaks(t, s.w, s.dev, Reason.Leak); got.Packets != 2*rounds {
		t.Errorf("%d packets counted before and after the adoption, want %d", got.Packets, 2*rounds)
	}
	pin := filepath.Join(dir, fmt.Sprint("link_", s.host.index("v0")))
	if _, err := os.Stat(pin); err != nil && bestMode() == ModeTCX { // a filter needs no pin
		t.Errorf("a new interface's link is not pinned: %v", err)
	}
	s.w.Close()
	s.host.try(func() error { return netlink.LinkDel(byName("v0")) })
	s.w = s.host.open(opts)
	if _, err := os.Stat(pin); err == nil {
		t.Error("the pin of a device that is gone was not collected")
	}
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	if _, err := os.Stat(dir); err == nil || s.status().Guarded != "" {
		t.Errorf("pins stay when no guard is asked for: %v", err)
	}
	s.send(rounds, true)
	s.w.Close()
	if left := s.attached(); left != 0 {
		t.Errorf("%d programs left after an unguarded Close", left)
	}
}

// send sends a few datagrams and expects them to arrive, or not.
func (s *stage) send(n int, arrive bool) {
	s.t.Helper()
	before := s.cap.settle()
	s.host.start("udp-unconnected", "10.9.0.2:7").Wait()
	got := minus(s.cap.settle(), before)
	if want := map[bool]uint64{true: uint64(n)}[arrive]; got.Packets != want {
		s.t.Errorf("%d packets arrived, want %d", got.Packets, want)
	}
}

// TestDeadline: drops end by themselves, with no daemon, by either clock.
func TestDeadline(t *testing.T) {
	for name, of := range map[string]func(*Config, time.Duration){
		"sleep left out": func(c *Config, d time.Duration) { c.Heartbeat, c.Remaining = d, 2*time.Hour },
		"sleep included": func(c *Config, d time.Duration) { c.Heartbeat, c.Remaining = 2*time.Hour, d },
	} {
		t.Run(name, func(t *testing.T) { testDeadline(t, of) })
	}
}

func testDeadline(t *testing.T, of func(*Config, time.Duration)) {
	s := newStage(t, Options{PinDir: pinDir(t)})
	restart := time.Now()
	s.w.Close()
	s.w = s.host.open(s.w.opts)
	after := 1500*time.Millisecond + 3*time.Since(restart) // it must not pass during the next one
	cfg := Config{Prefixes: protect(stagePrefixes...), Action: Drop}
	of(&cfg, after)
	begin := time.Now()
	set(t, s.w, cfg)
	s.w.Close()
	s.w = s.host.open(s.w.opts)
	if left := time.Until(s.status().Until); left <= 0 || left > after {
		t.Errorf("an adopted guard has %v left, of %v", left, after)
	}
	s.w.Close()
	f := s.host.flood("10.9.0.2:7")
	defer f.end()
	for s.cap.total().Packets == 0 && time.Since(begin) < 3*after {
		time.Sleep(time.Millisecond)
	}
	if took := time.Since(begin); took < after-10*time.Millisecond || took > 2*after {
		t.Errorf("drops ended after %v, want %v", took, after)
	}
	s.host.release(s.w.opts)
}

// TestRelease takes a guard down by hand, twice, in either mode, and finds nothing left.
func TestRelease(t *testing.T) {
	for _, mode := range []Mode{ModeTCX, ModeClsact} {
		t.Run(mode.String(), func(t *testing.T) {
			needMode(t, mode)
			s := newStage(t, Options{PinDir: pinDir(t), modes: []Mode{mode}})
			set(t, s.w, Config{Prefixes: protect(stagePrefixes...), Action: Drop})
			s.w.Close()
			s.send(0, false)
			s.host.release(s.w.opts)
			s.send(rounds, true)
			s.host.release(s.w.opts)
			if left := s.attached(); left != 0 || isBPF(s.w.opts.PinDir) {
				t.Errorf("%d programs left, mounted %t", left, isBPF(s.w.opts.PinDir))
			}
		})
	}
}

// TestReleaseGuard: a namespace that nobody is in, and that has no name, is held by its guard until that is taken down.
func TestReleaseGuard(t *testing.T) {
	opts := Options{PinDir: pinDir(t)}
	peer, lost := newNode(t), newNode(t)
	wire(lost, peer, "h0", "p0", []string{"10.9.0.1/24"}, []string{"10.9.0.2/24"})
	var w *Witness
	lost.try(func() (err error) {
		w, err = Open(opts)
		return err
	})
	set(t, w, Config{Prefixes: protect("10.9.0.0/24"), Action: Drop})
	st, err := w.Status()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	lost.leave()
	if list, err := OtherGuards(opts); err != nil || !slices.Equal(list, []string{st.Guarded}) {
		t.Errorf("guards are %v, %v, want %s", list, err, st.Guarded)
	}
	for _, folder := range []string{"", "/", opts.PinDir, st.Guarded + "-1", filepath.Join(st.Guarded, "..", "..")} {
		if err := ReleaseGuard(opts, folder); !errors.Is(err, ErrNoGuard) {
			t.Errorf("%q: %v", folder, err)
		}
	}
	time.Sleep(200 * time.Millisecond)
	if there := peer.index("p0") != 0; there != (st.Early == "") {
		t.Errorf("under a guard the namespace is there: %t; early: %q", there, st.Early)
	}
	if err := ReleaseGuard(opts, st.Guarded+"/"); err != nil {
		t.Fatal(err)
	}
	soon(t, "the namespace is gone", func() bool { return peer.index("p0") == 0 })
	if list, err := OtherGuards(opts); err != nil || len(list) != 0 {
		t.Errorf("guards are %v, %v", list, err)
	}
}

// attached counts tc programs on the host's device.
func (s *stage) attached() (n int) {
	s.t.Helper()
	s.host.try(func() error {
		filters, err := netlink.FilterList(byName("h0"), netlink.HANDLE_MIN_EGRESS)
		n = len(filters) + tcxPrograms(s.dev)
		return err
	})
	return n
}

// TestLayoutChange: a guard of another version, and one that is not whole, hold until the first policy of this one, and
// then without a gap.
func TestLayoutChange(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"another version": func(path string) error {
			return os.Rename(path, filepath.Join(filepath.Dir(path), "map_0_"+filepath.Base(path)))
		},
		"not whole": func(path string) error {
			if !strings.HasSuffix(path, "_counters") {
				return nil
			}
			return os.Remove(path)
		},
	} {
		t.Run(name, func(t *testing.T) { changeLayout(t, spoil) })
	}
}

func changeLayout(t *testing.T, spoil func(path string) error) {
	s := newStage(t, Options{PinDir: pinDir(t)})
	cfg := Config{Prefixes: protect(stagePrefixes...), Action: Drop}
	set(t, s.w, cfg)
	dir := s.status().Guarded
	s.w.Close()
	whole := mapPins(t, dir)
	for _, path := range whole {
		if err := spoil(path); err != nil {
			t.Fatal(err)
		}
	}
	f := s.host.flood("10.9.0.2:7")
	s.w = s.host.open(s.w.opts)
	f.more(5000)
	set(t, s.w, cfg)
	f.more(5000)
	sent := f.end()
	if got := s.cap.settle(); got.Packets != 0 {
		t.Errorf("%d of %d packets got through", got.Packets, sent)
	}
	if got := leaks(t, s.w, s.dev, Reason.Leak); got.Dropped < 5000 {
		t.Errorf("our own program dropped %d", got.Dropped)
	}
	if got := mapPins(t, dir); !slices.Equal(got, whole) {
		t.Errorf("the guard is not whole again: %v, was %v", got, whole)
	}
}

func mapPins(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "map_*"))
	if err != nil || len(list) < 5 {
		t.Fatalf("pinned maps: %v, %v", list, err)
	}
	return list
}

// TestLayoutOf: whatever another program could stumble over has another name.
func TestLayoutOf(t *testing.T) {
	read := func() *ebpf.CollectionSpec {
		spec, err := loadLeak()
		if err != nil {
			t.Fatal(err)
		}
		return spec
	}
	here := layoutOf(read())
	if again := layoutOf(read()); again != here {
		t.Errorf("%s, then %s", here, again)
	}
	for name, change := range map[string]func(*ebpf.CollectionSpec){
		"a field of a rule":  func(s *ebpf.CollectionSpec) { structOf(t, s, "rule").Members[1].Name = "other" },
		"its place":          func(s *ebpf.CollectionSpec) { structOf(t, s, "rule").Members[1].Offset += 8 },
		"a field of a value": func(s *ebpf.CollectionSpec) { structOf(t, s, "sender").Members[0].Name = "other" },
		"the size of a trie": func(s *ebpf.CollectionSpec) { s.Maps[leakMapPolicies6].InnerMap.ValueSize++ },
		"a kind of map":      func(s *ebpf.CollectionSpec) { s.Maps[leakMapSenders].Type = ebpf.Hash },
		"a map less":         func(s *ebpf.CollectionSpec) { delete(s.Maps, leakMapFragments) },
	} {
		spec := read()
		change(spec)
		if got := layoutOf(spec); got == here {
			t.Errorf("%s changes nothing", name)
		}
	}
	spec := read()
	delete(spec.Maps, leakMapPackets) // goes with the programs
	if got := layoutOf(spec); got != here {
		t.Errorf("%s, want %s", got, here)
	}
}

func structOf(t *testing.T, s *ebpf.CollectionSpec, name string) (found *btf.Struct) {
	t.Helper()
	if err := s.Types.TypeByName(name, &found); err != nil {
		t.Fatal(err)
	}
	return found
}

// TestOthersPrograms: what others attached before us still runs, and stays when we go.
func TestOthersPrograms(t *testing.T) {
	for _, mode := range []Mode{ModeTCX, ModeClsact} {
		t.Run(mode.String(), func(t *testing.T) {
			needMode(t, mode)
			s := newStage(t, Options{modes: []Mode{mode}, noEarly: true})
			s.w.Close()
			other := s.other(mode)
			s.w = s.host.open(s.w.opts)
			set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
			before := other()
			counted, captured := s.measure(func() { s.host.start("udp-unconnected", "10.9.0.2:7").Wait() })
			s.equal(counted, captured, rounds)
			s.w.Close()
			if after := other(); before != 1 || after != 1 || s.attached() != 1 {
				t.Errorf("the other's program: %d with us, %d after us, %d in all", before, after, s.attached())
			}
		})
	}
}

// TestTakenOff: a program that somebody removed comes back.
func TestTakenOff(t *testing.T) {
	s := newStage(t, Options{modes: []Mode{ModeClsact}, noEarly: true, Recheck: 50 * time.Millisecond})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	s.host.try(func() error {
		return netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: s.dev, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		}})
	})
	for range 200 {
		if s.attached() == 1 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("not attached again")
}
