//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// smallDisk starts the daemon with a state folder on a file system of 64 KiB
// that nobody else sees, and returns the folder as the test sees it.
func (s *stub) smallDisk(t *testing.T) (d *testenv.Process, dir string) {
	t.Helper()
	if err := os.MkdirAll(s.prog.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	words := append([]string{"mount -t tmpfs -o size=64k,mode=700 none", s.prog.StateDir, "&& exec", s.prog.Bin}, s.prog.Args("run")...)
	d = testenv.Start(t, s.Client.Command("unshare", "--mount", "sh", "-c", strings.Join(words, " ")))
	testenv.Eventually(t, patience, "the daemon", s.prog.Answers)
	return d, filepath.Join(fmt.Sprintf("/proc/%d/root", d.Pid()), s.prog.StateDir)
}

// fill leaves no room on a file system; the result makes room again.
func fill(t *testing.T, dir string) (undo func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	for size := 4096; size > 0; {
		_, err := f.Write(make([]byte, size))
		switch {
		case errors.Is(err, syscall.ENOSPC):
			size /= 2
		case err != nil:
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
}

// TestFullDisk: what cannot be written down is not removed, and it is said;
// what need not come back is. When there is room again, the rest follows.
func TestFullDisk(t *testing.T) {
	needs(t, "unshare")
	s := newStub(t)
	// More than fits into what is left of a page.
	s.runBatch(t, batch(100))
	before := s.Client.MainTable(t)
	d, dir := s.smallDisk(t)
	undo := fill(t, dir)
	up := []string{"up", "--tunnel", "tun0", "--protect", sites}
	if r := s.prog.Exec(t, up...); r.Code != 1 || !strings.Contains(r.Stderr, "could not be written down") {
		t.Errorf("up with a full disk: %s", r)
	}
	if r := s.prog.Exec(t, "status"); r.Code != 1 || !strings.Contains(r.Stdout, "failed") {
		t.Errorf("status with a full disk: %s", r)
	}
	sameTable(t, s.Client, "with a full disk", before)
	s.again(t) // the next judgements must not forget that it cannot be given back
	if got := statusOf(t, s.prog); got.Sessions[0].State != "failed" || got.removed() != 1 {
		t.Errorf("state %s, %d removed; want failed and only the attack that came", got.Sessions[0].State, got.removed())
	}
	sameTable(t, s.Client, "after an attack with a full disk", before)

	undo()
	s.prog.Must(t, up...)
	if in, out := s.burst(t, "172.31.1.10"); in != burst || out != 0 {
		t.Errorf("with room again, of %d packets %d left and %d entered the tunnel", burst, out, in)
	}
	stopped(t, d)
	sameTable(t, s.Client, "after the end", before)
}
