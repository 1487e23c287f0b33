//go:build linux

package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/testenv"
)

// load is what a process costs.
type load struct{ rss, fds, threads int } // RSS in KiB

// loadOf reads it from the kernel.
func loadOf(t testenv.TB, pid int) load {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatalf("%v", err)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatalf("%v", err)
	}
	l := load{fds: len(fds)}
	for line := range strings.Lines(string(text)) {
		_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &l.rss)
		_, _ = fmt.Sscanf(line, "Threads: %d", &l.threads)
	}
	return l
}

// peak is the highest RSS so far, in KiB.
func peak(t testenv.TB, pid int) (kib int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatalf("%v", err)
	}
	for line := range strings.Lines(string(text)) {
		_, _ = fmt.Sscanf(line, "VmHWM: %d kB", &kib)
	}
	return kib
}

// crowds are what may stand before the control socket: each does something to
// one connection and leaves it open.
var crowds = []struct {
	name  string
	conns int
	says  string
}{
	{"mute", 1000, ""},
	{"half a request", 1000, `{"version":1,"op":"sta`},
	{"10 MB each", 60, `{"version":1,"op":"open","session":{"tunnel":"` + strings.Repeat("x", 10<<20)},
	{"4 MB without an end", 200, strings.Repeat(" ", 4<<20-100)},
	{"answers that nobody reads", 1000, `{"version":1,"op":"status"}` + "\n"},
	{"watchers", 300, `{"version":1,"op":"watch"}` + "\n"},
	{"garbage", 1000, strings.Repeat("\x00\xff[{", 999) + "\n"},
}

// TestCrowdedSocket: whatever stands before the control socket, commands get
// their answers, attacks are removed, memory stays small, and when the crowd has
// gone nothing of it is left.
func TestCrowdedSocket(t *testing.T) {
	for _, c := range crowds {
		t.Run(c.name, func(t *testing.T) {
			needs(t)
			s := newStub(t)
			s.runBatch(t, batch(500)) // held: an answer is larger than a socket's buffer
			before := s.Client.MainTable(t)
			d := s.daemon(t)
			s.again(t)
			quiet := loadOf(t, d.Pid())
			gone := s.crowd(t, c.conns, c.says)
			for range 3 {
				start := time.Now()
				s.again(t)
				t.Logf("an attack and two questions took %v", time.Since(start))
			}
			if high := peak(t, d.Pid()); high > 128<<10 {
				t.Errorf("memory rose to %d KiB", high)
			}
			gone()
			if !eventually(func() bool { return loadOf(t, d.Pid()).fds <= quiet.fds+2 }) {
				t.Errorf("descriptors: %d before, %d after", quiet.fds, loadOf(t, d.Pid()).fds)
			}
			stopped(t, d)
			sameTable(t, s.Client, "after the end", before)
		})
	}
}

// crowd opens connections and says something on each. They stay until gone is
// called.
func (s *stub) crowd(t *testing.T, n int, says string) (gone func()) {
	t.Helper()
	done := make(chan struct{})
	ended := make(chan struct{}, n)
	tried := make(chan struct{}, n)
	for range n {
		go func() {
			defer func() { ended <- struct{}{} }()
			conn, err := net.DialTimeout("unix", s.prog.Socket, patience)
			tried <- struct{}{}
			if err != nil {
				return // no room in the queue: it stands outside
			}
			defer conn.Close() //nolint:errcheck // it has no meaning
			go func() { _, _ = conn.Write([]byte(says)) }()
			<-done
		}()
	}
	for range min(n, 64) { // that many are in
		<-tried
	}
	runtime.Gosched()
	return func() {
		close(done)
		for range n {
			<-ended
		}
	}
}

// TestCrowdedHooks: many commands at once all get an answer.
func TestCrowdedHooks(t *testing.T) {
	needs(t)
	s := newStub(t)
	d := s.daemon(t)
	const n = 60
	failed := make(chan error, n)
	for range n {
		go func() {
			r, err := s.prog.Run("up", "--tunnel", "tun0", "--protect", sites)
			if err == nil && r.Code != 0 {
				err = fmt.Errorf("up beside many others: %s", r)
			}
			failed <- err
		}()
	}
	for range n {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	stopped(t, d)
	if left, _ := filepath.Glob(s.prog.StateDir + "/.writable-*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
