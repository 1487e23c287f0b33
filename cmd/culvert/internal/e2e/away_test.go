//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// stranger is a user who is nobody here.
const stranger = 65534

// does makes a step of a test out of file operations.
func does(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// strangers is a folder that another user may write to, with a file in it.
func strangers(t *testing.T, dir string) {
	t.Helper()
	does(t, os.Mkdir(dir, 0o777), os.WriteFile(filepath.Join(dir, "theirs"), nil, 0o666), os.Chown(dir, stranger, stranger))
}

// TestStateFolderAway: the folder of the journal goes while the daemon holds a
// route. Where it can be made again all that is held is written down anew, so
// that a kill loses nothing. Where it cannot, status says so, attacks are
// removed as before, and nothing is written where another user may.
func TestStateFolderAway(t *testing.T) {
	for _, tt := range []struct {
		name string
		take func(t *testing.T, dir string)
		give func(dir string) error // nil: the daemon mends it by itself
	}{
		{"removed", func(t *testing.T, dir string) { does(t, os.RemoveAll(dir)) }, nil},
		{"emptied", func(t *testing.T, dir string) {
			files, _ := filepath.Glob(filepath.Join(dir, "*"))
			for _, f := range files {
				does(t, os.Remove(f))
			}
		}, nil},
		{"moved away", func(t *testing.T, dir string) { does(t, os.Rename(dir, dir+".old")) }, nil},
		{"journal is another file", func(t *testing.T, dir string) {
			files, _ := filepath.Glob(filepath.Join(dir, "journal*"))
			does(t, os.Rename(files[0], files[0]+".old"), os.WriteFile(files[0], []byte("{}"), 0o600), os.Chown(files[0], stranger, stranger))
		}, nil},
		{"a file in its place", func(t *testing.T, dir string) { does(t, os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)) }, os.Remove},
		{"another user's folder", func(t *testing.T, dir string) { does(t, os.RemoveAll(dir)); strangers(t, dir) }, os.RemoveAll},
		{"a link to another user's folder", func(t *testing.T, dir string) {
			does(t, os.RemoveAll(dir))
			strangers(t, dir+".theirs")
			does(t, os.Symlink(dir+".theirs", dir))
		}, os.Remove},
		{"another user's link", func(t *testing.T, dir string) {
			does(t, os.Rename(dir, dir+".ours"), os.Symlink(dir+".ours", dir), os.Remove(filepath.Join(dir, journalOf(t, dir))), os.Lchown(dir, stranger, stranger))
		}, os.Remove},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needs(t)
			s := newStub(t)
			s.ip(t, "route add 172.31.1.0/24 via 10.77.0.66")
			before := s.Client.MainTable(t)
			d := s.daemon(t)
			tt.take(t, s.prog.StateDir)
			s.again(t)
			if tt.give != nil {
				s.folderLost(t)
				does(t, tt.give(s.prog.StateDir))
			}
			if !eventually(func() bool {
				return s.written(t, "172.31.1.0/24") && statusOf(t, s.prog).Sessions[0].State == "enforcing"
			}) {
				t.Errorf("not well again: %s", s.prog.Exec(t, "status"))
			}
			if tt.give != nil {
				s.allHeld(t, "172.31.7.0/24")
			}
			d.Kill()
			s.prog.Must(t, "recover")
			sameTable(t, s.Client, "after a kill and recover", before)
		})
	}
}

// folderLost checks what is true while the state folder cannot be had.
func (s *stub) folderLost(t *testing.T) {
	t.Helper()
	s.again(t) // attacks go all the same
	said := func() bool {
		st := statusOf(t, s.prog).Sessions[0]
		return st.State == "failed" && strings.Contains(st.Error, "was taken away")
	}
	if !eventually(said) {
		t.Errorf("status with no place for the journal: %+v", statusOf(t, s.prog).Sessions[0])
	}
	if r := s.prog.Exec(t, "status"); r.Code != 1 {
		t.Errorf("status with no place for the journal: %s", r)
	}
	for _, dir := range []string{s.prog.StateDir, s.prog.StateDir + ".theirs"} {
		if _, err := os.Stat(filepath.Join(dir, "theirs")); err == nil && journalOf(t, dir) != "" {
			t.Errorf("%s was written to %s, which is another user's", journalOf(t, dir), dir)
		}
	}
	// The address's connected route must come back, so it may not go now.
	s.Client.AddAddr(t, "eth0", testenv.Prefixes("172.31.7.1/24")...)
	s.again(t)
	if !strings.Contains(s.Client.MainTable(t), "172.31.7.0/24") {
		t.Errorf("a route that could not be written down was removed:\n%s", s.Client.MainTable(t))
	}
	s.Client.IP(t, "addr del 172.31.7.1/24 dev eth0")
}

// allHeld: a route that must come back is removed again.
func (s *stub) allHeld(t *testing.T, prefix string) {
	t.Helper()
	s.Client.AddAddr(t, "eth0", testenv.Prefixes("172.31.7.1/24")...)
	if !eventually(func() bool { return !strings.Contains(s.Client.MainTable(t), "unicast "+prefix) }) {
		t.Errorf("%s is not removed:\n%s", prefix, s.Client.MainTable(t))
	}
	s.Client.IP(t, "addr del 172.31.7.1/24 dev eth0")
}

// written reports whether the journal where it should be names a route.
func (s *stub) written(t *testing.T, prefix string) bool {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.prog.StateDir, journalOf(t, s.prog.StateDir)))
	return err == nil && strings.Contains(string(b), prefix)
}

// journalOf is the name of the journal in a folder, "" when there is none.
func journalOf(t testenv.TB, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "journal-*.jsonl"))
	if err != nil || len(files) > 1 {
		t.Fatalf("journals in %s: %v, %v", dir, files, err)
	}
	if len(files) == 0 {
		return ""
	}
	return filepath.Base(files[0])
}

// TestSocketAway: the control socket goes while the daemon runs. It is made
// again where nothing has its path, and what is another's is never touched.
func TestSocketAway(t *testing.T) {
	for _, tt := range []struct {
		name string
		take func(t *testing.T, path string)
		left string // content of what has the path, which must stay
	}{
		{name: "removed", take: func(t *testing.T, path string) { does(t, os.Remove(path)) }},
		{name: "folder removed", take: func(t *testing.T, path string) { does(t, os.RemoveAll(filepath.Dir(path))) }},
		{name: "another's file", left: "theirs", take: func(t *testing.T, path string) {
			does(t, os.Remove(path), os.WriteFile(path, []byte("theirs"), 0o644), os.Chown(path, stranger, stranger))
		}},
		{name: "another's link", left: "theirs", take: func(t *testing.T, path string) {
			does(t, os.Remove(path), os.WriteFile(path+".theirs", []byte("theirs"), 0o644), os.Symlink(path+".theirs", path), os.Lchown(path, stranger, stranger))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needs(t)
			s := newStub(t)
			p := *s.prog
			s.prog = &p
			s.prog.Socket = filepath.Join(filepath.Dir(s.prog.Socket), "run", "sock")
			before := s.Client.MainTable(t)
			d := s.daemon(t)
			tt.take(t, s.prog.Socket)
			if tt.left != "" {
				d.WaitOutput(t, "control socket was taken away", 1, patience)
				s.theirs(t, tt.left)
				s.ip(t, "route add 172.31.1.0/24 via 10.77.0.66")
				sameTable(t, s.Client, "with no socket", before)
				does(t, os.Remove(s.prog.Socket))
			}
			if !eventually(s.prog.Answers) {
				t.Errorf("the socket is not made again:\n%s", d.Output())
			}
			s.again(t)
			if info, err := os.Lstat(s.prog.Socket); err != nil || info.Mode() != os.ModeSocket|0o600 {
				t.Errorf("the socket made again is %v, %v", info, err)
			}
			if tt.left != "" { // at its end the daemon removes what is its own, and no more
				tt.take(t, s.prog.Socket)
				stopped(t, d)
				s.theirs(t, tt.left)
				return
			}
			stopped(t, d)
			if _, err := os.Lstat(s.prog.Socket); !os.IsNotExist(err) {
				t.Errorf("the socket outlives the daemon: %v", err)
			}
		})
	}
}

// theirs: what has the socket's path is untouched.
func (s *stub) theirs(t *testing.T, want string) {
	t.Helper()
	if b, err := os.ReadFile(s.prog.Socket); err != nil || string(b) != want {
		t.Errorf("another's file at the socket's path is %q, %v", b, err)
	}
}

// TestCgroupMountAway: the cgroup file system is unmounted while the daemon
// runs, and before it starts. Routes are enforced, and leaks counted, as before.
func TestCgroupMountAway(t *testing.T) {
	const umount = "for i in 1 2 3; do umount -R -l /sys/fs/cgroup 2>/dev/null; done; ! test -e /sys/fs/cgroup/unified"
	for _, tt := range []struct{ name, first, then string }{
		{"before it starts", umount, "true"},
		{"while it runs", "true", umount},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needs(t, "unshare", "nsenter")
			s := newStub(t)
			s.ip(t, "route add 172.31.1.0/24 via 10.77.0.66")
			before := s.Client.MainTable(t)
			words := append([]string{tt.first, "&& exec", s.prog.Bin}, s.prog.Args("run", "--tunnel", "tun0", "--protect", sites)...)
			d := testenv.Start(t, s.Client.Command("unshare", "--mount", "sh", "-c", strings.Join(words, " ")))
			testenv.Eventually(t, patience, "the daemon", s.prog.Answers)
			enforcing(t, s.prog)
			if out, err := s.Client.Command("nsenter", "--mount=/proc/"+fmt.Sprint(d.Pid())+"/ns/mnt", "sh", "-c", tt.then).CombinedOutput(); err != nil {
				t.Fatalf("unmount: %v: %s", err, out)
			}
			s.again(t)
			if in, out := s.burst(t, site); in != burst || out != 0 {
				t.Errorf("of %d packets %d left and %d entered the tunnel", burst, out, in)
			}
			enforcing(t, s.prog)
			stopped(t, d)
			sameTable(t, s.Client, "after the end", before)
		})
	}
}
