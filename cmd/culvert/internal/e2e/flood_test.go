//go:build linux

package e2e

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/testenv"
)

const flood = 20_000

// batch is n different conflicting routes for "ip -batch".
func batch(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "route add 172.31.%d.%d via 10.77.0.66\n", 1+i/250, 1+i%250)
	}
	return b.String()
}

func (s *stub) runBatch(t *testing.T, lines string) {
	t.Helper()
	cmd := s.Client.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(lines)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip -batch: %v: %s", err, out)
	}
}

// TestFlood: more routes at once than a socket's buffer holds.
func TestFlood(t *testing.T) {
	needs(t)
	s := newStub(t)
	before := s.Client.MainTable(t)
	d := s.daemon(t)
	s.runBatch(t, batch(flood))
	s.runBatch(t, batch(flood/10))
	testenv.Eventually(t, 3*patience, "all removals", func() bool { return statusOf(t, s.prog).removed() >= flood+flood/10 })
	sameTable(t, s.Client, "after the flood", before)
	st := statusOf(t, s.prog)
	if st.Sessions[0].State != "enforcing" || st.removed() < flood+flood/10 || len(st.Sessions[0].Held) != 0 {
		t.Errorf("status: %s, %d removed, %d held", st.Sessions[0].State, st.removed(), len(st.Sessions[0].Held))
	}
	if in, out := s.burst(t, site); in != burst || out != 0 {
		t.Errorf("of %d packets %d left and %d entered the tunnel", burst, out, in)
	}
	stopped(t, d)
	sameTable(t, s.Client, "after the end", before)
}

// great is more routes than can be told one by one.
const great = 120_000

// TestFloodIsCounted: of a batch that no reader of events keeps up with each removal
// is counted, the records tell of each, and memory stays small.
func TestFloodIsCounted(t *testing.T) {
	needs(t)
	s := newStub(t)
	before := s.Client.MainTable(t)
	d := s.daemon(t)
	var b strings.Builder
	for i := range great {
		fmt.Fprintf(&b, "route add 172.31.%d.%d via 10.77.0.66 metric %d\n", 1+i/250%200, 1+i%250, 1+i/50_000)
	}
	s.runBatch(t, b.String())
	if !testenv.Until(6*patience, func() bool { return statusOf(t, s.prog).removed() >= great }) {
		t.Errorf("%d removed", statusOf(t, s.prog).removed())
	}
	sameTable(t, s.Client, "after the flood", before)
	st := statusOf(t, s.prog)
	if st.removed() != great {
		t.Errorf("%d removed, want %d", st.removed(), great)
	}
	if peak := peakMemory(t, d.Pid()); peak > 48<<10 {
		t.Errorf("%d KiB of memory at its peak", peak)
	}
	stopped(t, d)
	sameTable(t, s.Client, "after the end", before)
}

// peakMemory is the most that a process had of the machine's memory, in KiB.
func peakMemory(t *testing.T, pid int) (kib int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatalf("VmHWM: %v", err)
	}
	return kib
}

// TestFloodThatStood: as many stood before; this is the control too. None is
// lost.
func TestFloodThatStood(t *testing.T) {
	needs(t)
	s := newStub(t)
	s.runBatch(t, batch(flood))
	before := s.Client.MainTable(t)
	if n := strings.Count(before, " via 10.77.0.66 "); n != flood {
		t.Fatalf("control: %d routes stand", n)
	}
	s.leaksBy(t, attack{probe: "172.31.1.10", leaks: byEth})
	d := s.daemon(t)
	if n := strings.Count(s.Client.MainTable(t), " via 10.77.0.66 "); n != 0 {
		t.Errorf("%d of them are left", n)
	}
	if n := len(statusOf(t, s.prog).Sessions[0].Held); n != flood {
		t.Errorf("%d held", n)
	}
	d.Kill()
	s.prog.Must(t, "recover")
	sameTable(t, s.Client, "after a crash and recover", before)
}

// TestRival: somebody adds the same route every 5 ms. It is counted, and who
// does it is named.
func TestRival(t *testing.T) {
	needs(t)
	s := newStub(t)
	before := s.Client.MainTable(t)
	d := s.daemon(t)
	const times = 200
	cmd := s.Client.Command("ip", "-force", "-batch", "-")
	in, out := io.Pipe()
	cmd.Stdin = in
	rival := testenv.Start(t, cmd)
	defer out.Close() //nolint:errcheck // else nothing would end the rival's standard input
	testenv.Eventually(t, patience, "the removals", func() bool {
		for range times {
			fmt.Fprintln(out, "route add 172.31.1.0/24 via 10.77.0.66 proto dhcp") //nolint:errcheck // a pipe to a reader that lives
			time.Sleep(5 * time.Millisecond)
		}
		return statusOf(t, s.prog).removed() >= times/2
	})
	st := statusOf(t, s.prog).Sessions[0]
	if len(st.Contested) != 1 || st.Contested[0].Times < times/2 {
		t.Fatalf("contested: %+v", st.Contested)
	}
	by := st.Contested[0].By
	if want := (adder{Protocol: "dhcp", Port: rival.Pid(), Process: "ip"}); by != want {
		t.Errorf("contested by %+v, want %+v", by, want)
	}
	if text := s.prog.Must(t, "status"); !strings.Contains(text, "added again and again") {
		t.Errorf("status does not tell:\n%s", text)
	}
	if err := out.Close(); err != nil {
		t.Error(err)
	}
	rival.Kill()
	sameTable(t, s.Client, "after the contest", before)
	stopped(t, d)
	sameTable(t, s.Client, "after the end", before)
}
