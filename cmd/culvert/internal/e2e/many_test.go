//go:build linux

package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// manySessions is how many tunnels stand at once.
const manySessions = 80

// TestManySessions: eighty tunnels with a session each, all attacked, closed in
// random order, some by hand and some by the tunnel's end.
func TestManySessions(t *testing.T) {
	needs(t)
	s := newStub(t)
	before := s.Client.MainTable(t)
	d := s.daemon(t)
	quiet := loadOf(t, d.Pid())
	tuns := make([]*testenv.Tun, manySessions)
	var routes strings.Builder
	for i := range tuns {
		tuns[i] = testenv.OpenTun(t, s.Client, fmt.Sprintf("many%d", i), testenv.Prefixes(fmt.Sprintf("10.200.%d.2/24", i))...)
		fmt.Fprintf(&routes, "route add 10.%d.0.0/16 dev many%d\nroute add 10.%d.7.0/24 via 10.77.0.66\n", 100+i, i, 100+i)
	}
	s.runBatch(t, routes.String())
	stood := s.Client.MainTable(t)
	for i := range tuns {
		s.prog.Must(t, "up", "--tunnel", fmt.Sprintf("many%d", i), "--protect", fmt.Sprintf("10.%d.0.0/16", 100+i))
	}
	enforcing(t, s.prog)
	s.runBatch(t, batchOver(manySessions, 20))
	if !eventually(func() bool { return !strings.Contains(s.Client.MainTable(t), "10.77.0.66") }) {
		t.Errorf("attacks are left:\n%s", s.Client.MainTable(t))
	}
	st := statusOf(t, s.prog)
	for _, sess := range st.Sessions {
		if sess.Tunnel != "tun0" && (sess.State != "enforcing" || sess.Removed < 21 || len(sess.Held) != 1) {
			t.Errorf("%s: %s, %d removed, %d held", sess.Tunnel, sess.State, sess.Removed, len(sess.Held))
		}
	}
	order := rand.Perm(manySessions)
	t.Logf("order of closing: %v", order)
	for n, i := range order {
		switch {
		case n == manySessions/2:
			d.Kill()
			d = s.daemon(t)
		case n%4 == 3: // the tunnel goes, and its session with it
			does(t, tuns[i].Close())
			continue
		}
		if r := s.prog.Exec(t, "down", "--tunnel", fmt.Sprintf("many%d", i)); r.Code != 0 {
			t.Errorf("down of many%d: %s", i, r)
		}
	}
	alone := func() bool { return len(statusOf(t, s.prog).Sessions) == 1 }
	if !eventually(alone) {
		t.Errorf("%d sessions are left", len(statusOf(t, s.prog).Sessions))
	}
	want := stood
	for n, i := range order {
		if n%4 == 3 && n != manySessions/2 {
			want = withoutLines(want, fmt.Sprintf("dev many%d ", i))
		}
	}
	if !eventually(func() bool { return sortedLines(s.Client.MainTable(t)) == sortedLines(want) }) {
		t.Errorf("the table after all are closed is\n%s\nwant\n%s", s.Client.MainTable(t), want)
	}
	for i := range tuns {
		_ = tuns[i].Close()
		s.Client.IP(t, fmt.Sprintf("route del 10.%d.7.0/24", 100+i))
	}
	if !eventually(func() bool { return loadOf(t, d.Pid()).fds <= quiet.fds+2 }) {
		t.Errorf("descriptors: %d before, %d after", quiet.fds, loadOf(t, d.Pid()).fds)
	}
	stopped(t, d)
	if !eventually(func() bool { return sortedLines(s.Client.MainTable(t)) == sortedLines(before) }) {
		t.Errorf("the table after the end is\n%s\nwant\n%s", s.Client.MainTable(t), before)
	}
}

// batchOver is an attack on each of many sessions.
func batchOver(sessions, each int) string {
	var b strings.Builder
	for k := range each {
		for i := range sessions {
			fmt.Fprintf(&b, "route add 10.%d.9.%d via 10.77.0.66\n", 100+i, k)
		}
	}
	return b.String()
}

// withoutLines leaves out the lines of a table that have a text.
func withoutLines(table, text string) string {
	var b strings.Builder
	for line := range strings.Lines(table) {
		if !strings.Contains(line, text) {
			b.WriteString(line)
		}
	}
	return b.String()
}

var pairsOfLinks = flag.Int("pairs", 100, "how many pairs of interfaces TestManyInterfaces makes")

// TestManyInterfaces: hundreds of interfaces ("make limits": a thousand), half of them there before the
// daemon, with a guard on each; then all go. Nothing is left of them: no pin, no
// descriptor, and memory is as before.
func TestManyInterfaces(t *testing.T) {
	needs(t)
	manyLinks := *pairsOfLinks
	s := newStub(t)
	before := s.Client.MainTable(t)
	pairs := func(verb string, from, to int) {
		t.Helper()
		var b strings.Builder
		for i := from; i < to; i++ {
			switch verb {
			case "add":
				fmt.Fprintf(&b, "link add many%d type veth peer name ymany%d\n", i, i)
			default:
				fmt.Fprintf(&b, "link del many%d\n", i)
			}
		}
		s.runBatch(t, b.String())
	}
	d := s.daemon(t, "--on-leak", "drop", "--on-loss", "guard", "--witness", "require")
	quiet, pins := loadOf(t, d.Pid()), s.pins(t)
	if pins == 0 {
		t.Fatal("control: no guard is pinned")
	}
	pairs("add", 0, manyLinks/2)
	d.Kill()
	start := time.Now()
	d = s.daemon(t, "--on-leak", "drop", "--on-loss", "guard", "--witness", "require")
	t.Logf("started beside %d interfaces in %v", manyLinks, time.Since(start))
	start = time.Now()
	pairs("add", manyLinks/2, manyLinks)
	if !testenv.Until(long, func() bool { return s.pins(t) >= pins+2*manyLinks }) {
		t.Errorf("%d of %d new interfaces are guarded", s.pins(t)-pins, 2*manyLinks)
	}
	t.Logf("%d more were guarded after %v", manyLinks, time.Since(start))
	s.again(t)
	full := loadOf(t, d.Pid())
	t.Logf("quiet %+v, with %d interfaces %+v", quiet, 2*manyLinks, full)
	if full.rss > quiet.rss+64<<10 {
		t.Errorf("memory rose from %d to %d KiB", quiet.rss, full.rss)
	}
	pairs("del", 0, manyLinks)
	if !testenv.Until(long, func() bool { return s.pins(t) <= pins && loadOf(t, d.Pid()).fds <= quiet.fds+4 }) {
		t.Errorf("pins: %d before, %d after; descriptors: %d before, %d after", pins, s.pins(t), quiet.fds, loadOf(t, d.Pid()).fds)
	}
	s.again(t)
	enforcing(t, s.prog)
	d.Stop(t)
	s.prog.Must(t, "release")
	sameTable(t, s.Client, "after the end", before)
	if n := s.pins(t); n != 0 {
		t.Errorf("%d pins outlive the guard", n)
	}
}

// pins is how many pins the namespace's guard has.
func (s *stub) pins(t *testing.T) (n int) {
	t.Helper()
	var st unix.Stat_t
	does(t, unix.Stat("/run/netns/"+s.Client.Name(), &st))
	for _, base := range []string{"/sys/fs/bpf/culvert", "/run/culvert/bpf"} {
		found, _ := filepath.Glob(filepath.Join(base, fmt.Sprintf("net-%d-*", st.Ino), "*"))
		n += len(found)
	}
	return n
}
