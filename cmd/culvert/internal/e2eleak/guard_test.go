//go:build linux

package e2eleak

import (
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
