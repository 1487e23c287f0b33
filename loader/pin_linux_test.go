package loader

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestPinsComeBack: pins that somebody removes, one or all, or the file system with them, or that somebody replaces, are
// made again, and hold when the process ends without a word.
func TestPinsComeBack(t *testing.T) {
	remove := func(pattern string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			list, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil || len(list) == 0 {
				t.Fatalf("nothing matches %s: %v", pattern, err)
			}
			for _, path := range list {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for name, spoil := range map[string]func(t *testing.T, dir string){
		"all":      remove("*"),
		"links":    remove("link_[0-9]*"),
		"held":     remove("link_[a-z]*"),
		"maps":     remove("map_*"),
		"unmount":  func(t *testing.T, dir string) { unmountLazily(t, filepath.Dir(dir)) },
		"replaced": replaceLinks,
	} {
		t.Run(name, func(t *testing.T) { pinsComeBack(t, spoil) })
	}
}

func pinsComeBack(t *testing.T, spoil func(t *testing.T, dir string)) {
	s := newStage(t, Options{PinDir: pinDir(t), Recheck: 20 * time.Millisecond})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...), Action: Drop, Guard: true})
	dir := s.status().Guarded
	whole := pinned(t, dir)
	spoil(t, dir)
	soon(t, "the pins are there again", func() bool { return same(pinned(t, dir), whole) })
	if st := s.status(); st.Guarded != dir || st.Unpinned != "" {
		t.Errorf("status: %+v", st)
	}
	s.w.Close() // lets go of what it holds, as its end by a signal would
	s.send(rounds, false)
	s.w = s.host.open(s.w.opts)
	if st := s.status(); !st.Adopted || leaks(t, s.w, s.dev, Reason.Leak).Dropped != rounds {
		t.Errorf("not taken over with its counts: %+v", st)
	}
}

func unmountLazily(t *testing.T, dir string) {
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
}

// replaceLinks puts a map where each link is pinned.
func replaceLinks(t *testing.T, dir string) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	list, _ := filepath.Glob(filepath.Join(dir, "link_*"))
	for _, path := range list {
		c, err := m.Clone()
		if err == nil {
			err = put(path, c.Pin)
			c.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// pinned is the object of each pin: the id of a map or a link, 0 of anything else.
func pinned(t *testing.T, dir string) map[string]uint32 {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]uint32{}
	for _, path := range list {
		objects[path] = 0
		if strings.HasPrefix(filepath.Base(path), mapPrefix) {
			if m, err := ebpf.LoadPinnedMap(path, nil); err == nil {
				objects[path] = uint32(mapID(m))
				m.Close()
			}
		} else if l, err := link.LoadPinnedLink(path, nil); err == nil {
			objects[path] = uint32(linkID(l))
			l.Close()
		}
	}
	return objects
}

func same(a, b map[string]uint32) bool {
	for path, id := range b {
		if a[path] != id || id == 0 {
			return false
		}
	}
	return len(a) == len(b)
}

// TestNoPlaceForPins: what cannot be pinned drops all the same, a guard too, as long as the process lives; status says
// so, and no longer once it can be pinned.
func TestNoPlaceForPins(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bpf")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s := newStage(t, Options{PinDir: dir, Recheck: 20 * time.Millisecond})
	for _, cfg := range []Config{{Action: Drop}, {Action: Drop, Guard: true}} {
		cfg.Prefixes = protect(stagePrefixes...)
		set(t, s.w, cfg)
		if st := s.status(); st.Guarded != "" || !strings.Contains(st.Unpinned, "make pin folder") {
			t.Errorf("guard %t: %+v", cfg.Guard, st)
		}
		s.send(0, false)
	}
	s.host.try(func() error { // a new interface is watched too
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"})
	})
	soon(t, "v0 is watched", func() bool { return s.iface("v0").Mode == bestMode() })
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	soon(t, "pinned", func() bool { st := s.status(); return st.Guarded != "" && st.Unpinned == "" })
	set(t, s.w, Config{})
	if st := s.status(); st.Unpinned != "" || isBPF(dir) {
		t.Errorf("with nothing to pin: %+v", st)
	}
}

// TestPrivateMount: pins in a mount namespace that others do not see are no guard, and status says so.
func TestPrivateMount(t *testing.T) {
	n := newNode(t)
	cmd := childOf("private", filepath.Join(t.TempDir(), "bpf"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	n.try(cmd.Start)
	if err := cmd.Wait(); err != nil {
		t.Error("see above: ", err)
	}
}

// TestTidySparesOthers: the file system of the pins is unmounted when nobody's are in it. Whoever makes a folder while
// another looks is waited for.
func TestTidySparesOthers(t *testing.T) {
	base := pinDir(t)
	one, two := pins{base: base, dir: filepath.Join(base, "net-1-1")}, pins{base: base, dir: filepath.Join(base, "net-2-2")}
	if err := one.make(); err != nil {
		t.Fatal(err)
	}
	unlock, err := two.lock()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- one.tidy() }()
	soon(t, "the folder of one is gone", func() bool { _, err := os.Stat(one.dir); return err != nil })
	if err := os.Mkdir(two.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(two.dir); err != nil || !isBPF(base) {
		t.Fatalf("the other's pins are lost: %v", err)
	}
	if err := two.tidy(); err != nil || isBPF(base) {
		t.Errorf("nobody's pins are in it, and it is mounted: %v", err)
	}
	if one.empty() {
		t.Error("what cannot be read is taken for empty")
	}
}

func TestMounted(t *testing.T) {
	const list = "24 30 0:22 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n" +
		"40 30 0:37 / /run/culvert/bpf rw,nosuid - bpf bpf rw\n41 30 0:38 / /sys/fs/bpf ro master:9 master - bpf bpf rw\n"
	always := func([]string) bool { return true }
	for _, tt := range []struct {
		device string
		fit    func([]string) bool
		want   bool
	}{
		{"0:22", always, true}, {"0:37", always, true}, {"0:2", always, false},
		{"0:22", propagates, true}, {"0:37", propagates, false}, {"0:38", propagates, true},
	} {
		if got, err := mountedIn(strings.NewReader(list), tt.device, tt.fit); got != tt.want || err != nil {
			t.Errorf("%s: %t, %v", tt.device, got, err)
		}
	}
}

// rivalProgram ends the chain at once.
func rivalProgram(t *testing.T, name string) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// rival puts a program before all others on the host's device, until it is told to go.
func (s *stage) rival(prog *ebpf.Program) (leave func()) {
	s.t.Helper()
	var l link.Link
	s.host.try(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{
			Interface: s.dev, Program: prog, Attach: ebpf.AttachTCXEgress, Anchor: link.Head(),
		})
		return err
	})
	return func() { l.Close() }
}

// TestHeadAgain: a program that somebody puts before ours hides nothing for long, and status names it; the pin follows,
// and no packet is let go under a flood while ours moves.
func TestHeadAgain(t *testing.T) {
	needMode(t, ModeTCX)
	s := newStage(t, Options{PinDir: pinDir(t), Recheck: 20 * time.Millisecond})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...), Action: Drop, Guard: true})
	leave := s.rival(rivalProgram(t, "quick"))
	soon(t, "ours is first again", func() bool { return s.iface("h0").Displaced == 1 })
	if i := s.iface("h0"); !strings.Contains(i.Rival, "(quick)") || i.Err != nil {
		t.Errorf("the interface says %+v", i)
	}
	s.send(rounds, false)
	if n := s.attached(); n != 2 {
		t.Errorf("%d programs in the chain, want the other's and ours", n)
	}
	s.w.Close()
	s.send(rounds, false)
	s.w = s.host.open(s.w.opts)
	if got := leaks(t, s.w, s.dev, Reason.Leak); got.Dropped != 2*rounds || got.Packets != 2*rounds {
		t.Errorf("counted %+v of %d", got, 2*rounds)
	}
	leave()
	set(t, s.w, Config{})
	s.send(rounds, true)
}

// TestContest: where another puts itself first each time, ours does so no more than its share, and status says that
// packets may pass unseen.
func TestContest(t *testing.T) {
	needMode(t, ModeTCX)
	s := newStage(t, Options{Recheck: 20 * time.Millisecond})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...)})
	begin := time.Now()
	for i := range contestMoves {
		leave := s.rival(rivalProgram(t, "stubborn"))
		soon(t, "ours is first again", func() bool { return s.iface("h0").Displaced == uint64(i+1) })
		leave()
	}
	if took := time.Since(begin); took < (contestMoves-1)*chainPause {
		t.Errorf("%d moves in %v, want a pause of %v between them", contestMoves, took, chainPause)
	}
	if i := s.iface("h0"); i.Err == nil || !strings.Contains(i.Err.Error(), "(stubborn) is put before culvert's again and again") {
		t.Errorf("the interface says %+v", i)
	}
	if n := s.attached(); n != 1 {
		t.Errorf("%d programs of ours in the chain", n)
	}
}
