//go:build linux

package promise

import (
	"bufio"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// shell is one long-lived "ip -batch" of the lab: thousands of tables are made
// and listed, and a process for each step would take most of the time.
type shell struct {
	in  io.WriteCloser
	out *bufio.Reader
}

// newShell starts an "ip" with the given options.
func newShell(t *testing.T, ns *testenv.NS, options ...string) *shell {
	t.Helper()
	cmd := ns.Command("ip", append(options, "-d", "-force", "-batch", "-")...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close() // the child has its own
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait() // it fails for each line that the kernel refused
		_ = r.Close()
	})
	return &shell{in: in, out: bufio.NewReader(r)}
}

// soFar is no order; the complaint about it says that all before it was done.
const soFar = "done-so-far"

// do carries out lines and returns what they printed, refusals included.
func (s *shell) do(t testing.TB, lines ...string) string {
	t.Helper()
	if _, err := io.WriteString(s.in, strings.Join(append(lines, soFar), "\n")+"\n"); err != nil {
		t.Fatalf("ip -batch: %v", err)
	}
	var b strings.Builder
	for {
		line, err := s.out.ReadString('\n')
		switch {
		case err != nil:
			t.Fatalf("ip -batch ended: %v: %s", err, b.String())
		case strings.Contains(line, soFar):
			_, _ = s.out.ReadString('\n') // "Command failed"
			return b.String()
		}
		b.WriteString(line)
	}
}

var lifetimes = regexp.MustCompile(`expires \d+sec`)

// table is what [testenv.NS.MainTable] says, and the IPv6 routes of type local,
// which "ip" leaves out of main until it has seen that there are other tables.
func (l *lab) table(t testing.TB) string {
	t.Helper()
	const show = "route show table main"
	return lifetimes.ReplaceAllString(l.ip4.do(t, show)+l.ip6.do(t, show), "expires Nsec")
}

// TestTableIsMainTable holds the two ways to list a table together.
func TestTableIsMainTable(t *testing.T) {
	needs(t)
	l := newLab(t)
	l.fill(t)
	var seen []string
	for _, e := range entries(l.table(t)) {
		if !strings.HasPrefix(e, "local ") || !isV6(e) {
			seen = append(seen, e)
		}
	}
	if main := l.ns.MainTable(t); strings.Join(seen, "") != main || len(seen) == len(entries(l.table(t))) {
		t.Errorf("%s\nand\n%s", l.table(t), main)
	}
}
