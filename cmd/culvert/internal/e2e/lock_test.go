//go:build linux

package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-project/culvert/testenv"
)

// lockFolder is where the daemons of all network namespaces have their places.
const lockFolder = "/run/culvert/lock"

// TestLockUnprivileged: an ordinary user can neither take the daemon's place nor
// keep anybody from it, by whatever name; the second daemon names the first.
func TestLockUnprivileged(t *testing.T) {
	needs(t, "setpriv", "flock")
	s := newStub(t)
	err := s.Client.Do(func() error { // the names of sockets that earlier versions took for the place
		for i := range 16 {
			name := "@culvert-daemon"
			if i > 0 {
				name += "-" + strconv.Itoa(i)
			}
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = l.Close() })
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	d := s.prog.Daemon(t, "--tunnel", "tun0", "--protect", "172.31.0.0/16")
	enforcing(t, s.prog)
	var ns syscall.Stat_t
	if err := syscall.Fstat(s.Client.Fd(), &ns); err != nil {
		t.Fatal(err)
	}
	places, err := filepath.Glob(filepath.Join(lockFolder, fmt.Sprintf("net-%d-*.lock", ns.Ino)))
	places = slices.DeleteFunc(places, func(path string) bool { // killed daemons of namespaces that had the number before
		note, err := os.ReadFile(path)
		return err != nil || !strings.Contains(string(note), fmt.Sprintf(`"pid":%d,`, d.Pid()))
	})
	if err != nil || len(places) != 1 {
		t.Fatalf("places: %v, %v", places, err)
	}
	nobody := func(args ...string) testenv.Result {
		other := *s.prog
		other.Bin = "setpriv"
		return other.Exec(t, append([]string{"--reuid", "65534", "--regid", "65534", "--clear-groups"}, args...)...)
	}
	for _, what := range [][]string{
		{"flock", "--nonblock", places[0], "true"}, {"rm", "-f", places[0]}, {"touch", filepath.Join(lockFolder, "net-1-1.lock")},
		{"mv", lockFolder, lockFolder + "2"}, {"ls", lockFolder}, {"rmdir", filepath.Dir(lockFolder)},
	} {
		if r := nobody(what...); r.Code == 0 {
			t.Errorf("an ordinary user may %v: %s", what, r)
		}
	}
	for _, command := range [][]string{{"run", "--tunnel", "tun0", "--protect", "192.0.2.0/24"}, {"recover"}} {
		r := s.prog.Exec(t, command...)
		if r.Code != 64 || !strings.Contains(r.Stderr, `served already: "culvert run", process `) || !strings.Contains(r.Stderr, s.prog.Socket) {
			t.Errorf("%v beside a daemon: %s", command, r)
		}
	}
	d.Kill()
	testenv.Eventually(t, 20*time.Second, "the place is free", func() bool { return s.prog.Exec(t, "recover").Code == 0 })
}

// TestLockFolder: where the place cannot be had, the error names the folder and
// what to do, and nothing is changed.
func TestLockFolder(t *testing.T) {
	needs(t, "unshare")
	s := newStub(t)
	other := *s.prog
	other.Bin = "unshare"
	for _, tt := range []struct{ name, set, says string }{
		{"nothing may be made in /run", "mount -t tmpfs -o ro none /run", "/run must be there, and writable"},
		{"another's folder", "mount -t tmpfs none /run && mkdir /run/culvert && chown 65534 /run/culvert", "belongs to user 65534"},
	} {
		args := append([]string{"-m", "sh", "-c", tt.set + ` && exec "$0" "$@"`, s.prog.Bin}, s.prog.Args("run", "--tunnel", "tun0", "--protect", "172.31.0.0/16")...)
		before := s.Client.MainTable(t)
		r := other.Exec(t, args...)
		if r.Code == 0 || !strings.Contains(r.Stderr, "place of the daemon: ") || !strings.Contains(r.Stderr, tt.says) || !strings.Contains(r.Stderr, "/run/culvert") {
			t.Errorf("%s: %s", tt.name, r)
		}
		if after := s.Client.MainTable(t); after != before {
			t.Errorf("%s: the table is\n%s\nwant\n%s", tt.name, after, before)
		}
	}
}

// TestLockFolderIsClosed: a file system mounted on the folder lets everybody
// write. The daemon starts, and takes that from them.
func TestLockFolderIsClosed(t *testing.T) {
	needs(t, "unshare")
	s := newStub(t)
	other := *s.prog
	other.Bin = "unshare"
	set := `mkdir -p /run/culvert && mount -t tmpfs none /run/culvert && "$0" "$@" && stat -c %a /run/culvert /run/culvert/lock`
	r := other.Exec(t, append([]string{"-m", "sh", "-c", set, s.prog.Bin}, s.prog.Args("recover")...)...)
	if r.Code != 0 || !strings.HasSuffix(r.Stdout, "755\n700\n") {
		t.Errorf("%s", r)
	}
}

// TestPlacesAreSwept: the file of a killed daemon's place goes when another takes its
// own, in whatever network namespace; those of the living stay.
func TestPlacesAreSwept(t *testing.T) {
	s := newStub(t)
	placeOf := func(pid int) (path string) {
		all, err := filepath.Glob(filepath.Join(lockFolder, "*.lock"))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range all {
			if note, err := os.ReadFile(p); err == nil && strings.Contains(string(note), fmt.Sprintf(`"pid":%d,`, pid)) {
				path = p
			}
		}
		return path
	}
	killed := s.daemon(t)
	left := placeOf(killed.Pid())
	killed.Kill()
	if _, err := os.Stat(left); left == "" || err != nil {
		t.Fatalf("the killed daemon left %q: %v", left, err)
	}
	other := testenv.NewProgram(t, s.LAN, s.prog.Bin)
	lives := other.Daemon(t)
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("%s: %v", left, err)
	}
	stopped(t, s.daemon(t))
	if placeOf(lives.Pid()) == "" {
		t.Error("the place of the one that lives is gone")
	}
	stopped(t, lives)
}

// TestExplainsOwnNamespace: what the daemon of another network namespace protects says
// nothing of this one's packets.
func TestExplainsOwnNamespace(t *testing.T) {
	s := newStub(t)
	d := s.daemon(t)
	other := *s.prog
	other.NS = s.LAN
	if r := s.prog.Exec(t, "explain", "172.31.1.10"); r.Code != 0 || !strings.Contains(r.Stdout, "protected by 172.31.0.0/16") {
		t.Errorf("at home: %s", r)
	}
	if r := other.Exec(t, "explain", "172.31.1.10"); r.Code != 3 || !strings.Contains(r.Stderr, "no daemon answers for this network namespace: that one serves another") {
		t.Errorf("elsewhere: %s", r)
	}
	stopped(t, d)
}
