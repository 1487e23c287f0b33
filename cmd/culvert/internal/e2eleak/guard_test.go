//go:build linux

package e2eleak

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// attempt lets a sender try its luck twenty times past the tunnel, and returns
// how many packets got out.
func (s *stub) attempt(t *testing.T) int {
	t.Helper()
	const tries = 20
	c := s.Leaks(t, filter("172.31.1.10"))
	speech{dst: "172.31.1.10", device: "eth0", count: tries}.say(t, s.Client)
	c.Wait(tries, settling)
	return int(exact(t, c).Packets)
}

// TestPinsRemoved: a guard whose pins somebody removed holds when the daemon is
// killed: they were made again.
func TestPinsRemoved(t *testing.T) {
	needs(t)
	s := newStub(t)
	d := s.daemon(t, "--on-loss", "guard")
	dir := s.status(t).Witness.Guard
	pins := func() []string {
		list, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	before := pins()
	for _, pin := range before {
		if err := os.Remove(pin); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, patience, "the pins", func() bool { return len(pins()) == len(before) })
	if r := s.prog.Exec(t, "status"); r.Code != 0 {
		t.Errorf("status: %s", r)
	}
	d.Kill()
	if n := s.attempt(t); n != 0 {
		t.Errorf("%d packets got out after kill -9", n)
	}
	s.prog.Must(t, "release", "--socket", s.prog.Socket, "--state-dir", s.prog.StateDir)
	if n := s.attempt(t); n != 20 {
		t.Errorf("control: %d packets got out after the release", n)
	}
}

// TestNotPinned: where a guard cannot be pinned, or only where nobody else looks
// for it, leaks are dropped while the daemon lives, and status says just that.
func TestNotPinned(t *testing.T) {
	for _, tt := range []struct {
		name, mount string
		flags       []string
		held        bool // by the mount namespace, while it is there
		says        string
	}{
		{"guard, nowhere", "tmpfs", []string{"--on-loss", "guard"}, false, "CAP_SYS_ADMIN"},
		{"drop, nowhere", "tmpfs", []string{"--on-leak", "drop"}, false, "CAP_SYS_ADMIN"},
		{"guard, private mount", "bpf", []string{"--on-loss", "guard"}, true, "private mount namespace"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needs(t, "setpriv", "unshare")
			s := newStub(t)
			private := *s.prog
			private.Bin = "unshare"
			inside := []string{"-m", "--propagation", "slave", "sh", "-c",
				`mkdir -p /run/culvert && mount -t tmpfs -o mode=755 none /run/culvert && mount -t "$0" none /sys/fs/bpf && exec setpriv --bounding-set=-sys_admin "$@"`, tt.mount, s.prog.Bin}
			inside = append(inside, s.prog.Args(append([]string{"run", "--tunnel", "tun0", "--protect", sites}, tt.flags...)...)...)
			d := testenv.Start(t, private.Command(inside...))
			testenv.Eventually(t, patience, "the socket", s.prog.Answers)
			testenv.Eventually(t, patience, "enforcing", func() bool {
				st := s.status(t)
				return len(st.Sessions) == 1 && st.Sessions[0].State == "enforcing" && st.Sessions[0].OnLeak == "drop"
			})
			st := s.status(t)
			if st.Witness.Mode != "drop" || !strings.Contains(st.Witness.Error, "not pinned, drops end with the daemon: ") || !strings.Contains(st.Witness.Error, tt.says) {
				t.Errorf("the witness says %+v", st.Witness)
			}
			if r := s.prog.Exec(t, "status"); r.Code != 1 || !strings.Contains(r.Stdout, "NOT AS IT SHOULD BE: not pinned") ||
				strings.Contains(r.Stdout, "not pinned, so only as long as the daemon lives") == tt.held {
				t.Errorf("status: %s", r)
			}
			if r := s.prog.Exec(t, "leaks", "--socket", s.prog.Socket); r.Code != 1 || !strings.Contains(r.Stdout, "not pinned") {
				t.Errorf("leaks: %s", r)
			}
			if n := s.attempt(t); n != 0 {
				t.Errorf("%d packets got out", n)
			}
			d.Kill()
			if n := s.attempt(t); n != 20 {
				t.Errorf("with the daemon killed %d packets got out: it was pinned after all", n)
			}
		})
	}
}

// TestAnotherKind: an interface of another kind that takes a vanished tunnel's name is
// not the tunnel, while the daemon lives, after it was killed, and for the next. A
// tunnel is.
func TestAnotherKind(t *testing.T) {
	for kind, add := range map[string]func(t *testing.T, s *stub){
		"veth": func(t *testing.T, s *stub) {
			testenv.Veth(t, testenv.End{NS: s.Client, Name: "tun0", Addrs: testenv.Prefixes("10.88.0.2/24")},
				testenv.End{NS: s.LAN, Name: "poser", Addrs: testenv.Prefixes("10.88.0.1/24")})
		},
		"bridge": func(t *testing.T, s *stub) {
			s.Client.Bridge(t, "tun0", testenv.Prefixes("10.88.0.2/24")...)
			testenv.Veth(t, testenv.End{NS: s.Client, Name: "port0", Bridge: "tun0"},
				testenv.End{NS: s.LAN, Name: "poser", Addrs: testenv.Prefixes("10.88.0.1/24")})
		},
	} {
		for _, own := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, the daemon's own %t", kind, own), func(t *testing.T) {
				needs(t)
				s := newStub(t)
				start := func() *testenv.Process {
					args := []string{"--on-loss", "guard"}
					if own {
						args = append(args, "--tunnel", "tun0", "--protect", sites)
					}
					return s.prog.Daemon(t, args...)
				}
				d := start()
				if !own {
					s.prog.Must(t, "up", "--socket", s.prog.Socket, "--tunnel", "tun0", "--protect", sites)
				}
				s.enforcing(t)
				if err := s.Tun.Close(); err != nil {
					t.Fatal(err)
				}
				testenv.Eventually(t, patience, "the tunnel's name is free", func() bool { return !s.Client.HasLink("tun0") })
				add(t, s)
				attempt := func(when string, want int) {
					t.Helper()
					c := testenv.Capture(t, s.LAN, "poser", filter("172.31.1.10"))
					speech{dst: "172.31.1.10", device: "tun0", count: 20}.say(t, s.Client)
					c.Wait(20, settling)
					if n := exact(t, c).Packets; int(n) != want {
						t.Errorf("%s: %d of 20 packets got out, want %d", when, n, want)
					}
				}
				told := func() {
					t.Helper()
					testenv.Eventually(t, patience, "it is told", func() bool {
						st := s.status(t)
						return len(st.Sessions) == 1 && st.Sessions[0].State == "reconnecting" &&
							strings.Contains(st.Sessions[0].Error, "the interface tun0 is a "+kind) && strings.Contains(st.Sessions[0].Error, "the tunnel was a tun")
					})
				}
				attempt("at once", 0)
				told()
				attempt("once it is told", 0)
				d.Kill()
				attempt("after kill -9", 0)
				d = start()
				told()
				attempt("with the next daemon", 0)
				s.Client.LinkDel(t, "tun0")
				s.Tun = testenv.OpenTun(t, s.Client, "tun0", testenv.Prefixes("10.88.0.2/24", "fd88::2/64")...)
				s.Client.IP(t, "route replace 172.31.0.0/16 dev tun0")
				s.enforcing(t)
				c := s.Tun.Count(filter("172.31.1.10"))
				speech{dst: "172.31.1.10", count: 20}.say(t, s.Client)
				c.Wait(20, patience)
				if n := exact(t, c).Packets; n != 20 {
					t.Errorf("%d of 20 packets went into the tunnel", n)
				}
				s.prog.Must(t, "down", "--socket", s.prog.Socket, "--tunnel", "tun0")
				stopped(t, d)
				s.prog.Must(t, "release", "--socket", s.prog.Socket, "--state-dir", s.prog.StateDir)
				s.Client.LinkDel(t, "tun0")
				if s.LAN.HasLink("poser") { // it was a port, not the interface itself
					s.LAN.LinkDel(t, "poser")
				}
				add(t, s)
				attempt("control: without a guard", 20)
			})
		}
	}
}

// TestGuardOutlivesTrouble: a guard whose daemon was killed holds on whatever becomes of
// the next: one that cannot start has put nothing in the place of what is in force.
func TestGuardOutlivesTrouble(t *testing.T) {
	needs(t)
	s := newStub(t)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	d := s.prog.Daemon(t, "--on-loss", "guard")
	s.prog.Must(t, "up", "--tunnel", "tun0", "--protect", sites)
	s.enforcing(t)
	if err := s.Tun.Close(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "the guard holds", func() bool { return len(s.status(t).Witness.Holding) == 1 })
	d.Kill()
	held := func(when string) {
		t.Helper()
		if n := s.attempt(t); n != 0 {
			t.Errorf("%s: %d of 20 packets got out", when, n)
		}
	}
	held("kill -9")
	for _, tt := range []struct {
		name, says string
		args       []string
	}{
		{"a file that is not there", "nowhere.yaml", []string{"--config", filepath.Join(dir, "nowhere.yaml")}},
		{"a file that is none", "broken.yaml", []string{"--config", file("broken.yaml", "sessions: [\n")}},
		{"a session that the file contradicts", "10.0.0.0/8", []string{"--config", file("twice.yaml",
			"on_loss: guard\nsessions:\n  - {tunnel: tun8, protect: [10.0.0.0/8]}\n  - {tunnel: tun9, protect: [10.0.0.0/8]}\n")}},
		{"a session that the system refuses", "eth0", []string{"--on-loss", "guard", "--tunnel", "eth0", "--protect", "10.0.0.0/8"}},
		{"a state folder that is none", "state folder", []string{"--on-loss", "guard", "--state-dir", file("state", "")}},
		{"a socket that cannot be made", "flat", []string{"--on-loss", "guard", "--socket", filepath.Join(file("flat", ""), "sock")}},
	} {
		r := s.prog.Exec(t, append([]string{"run"}, tt.args...)...)
		if r.Code == 0 || !strings.Contains(r.Stderr, tt.says) {
			t.Errorf("%s: %s", tt.name, r)
		}
		held(tt.name)
	}
	for range 3 { // stopped in whatever it is doing first
		d := s.prog.StartDaemon(t, "--on-loss", "guard")
		d.WaitOutput(t, "guard adopted", 1, patience)
		stopped(t, d)
		held("stopped as it started")
	}
	d = s.prog.Daemon(t, "--on-loss", "guard")
	testenv.Eventually(t, patience, "the guard is taken over", func() bool { return len(s.status(t).Witness.Holding) == 1 })
	held("the next that starts")
	s.prog.Must(t, "release")
	if n := s.attempt(t); n != 20 {
		t.Errorf("control: %d of 20 packets got out after the release", n)
	}
	stopped(t, d)
}
