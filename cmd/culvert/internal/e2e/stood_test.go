//go:build linux

package e2e

import (
	"flag"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	stoodRoutes = flag.Int("stood", 20_000, "how many routes TestManyThatStood has out at once")
	stoodRatio  = flag.Float64("ratio", 0, "how many times the kernel's own time each step of it may take; 0 does not judge")
)

// stoodBatch adds or deletes n routes that conflict with the sites.
func stoodBatch(verb string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "route %s 172.31.%d.%d via 10.77.0.66 metric %d\n", verb, i/250%250, 1+i%250, 1+i/62_500)
	}
	return b.String()
}

// feeding hears how long the watchdog is ever left unfed.
type feeding struct {
	path string
	mu   sync.Mutex // guards what follows
	last time.Time
	gap  time.Duration
}

func fedWatchdog(t *testing.T) *feeding {
	t.Helper()
	f := &feeding{path: filepath.Join(t.TempDir(), "notify"), last: time.Now()}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: f.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		for b := make([]byte, 4096); ; {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			if strings.Contains(string(b[:n]), "WATCHDOG=1") {
				f.longest()
				f.mu.Lock()
				f.last = time.Now()
				f.mu.Unlock()
			}
		}
	}()
	return f
}

// longest returns the longest time without food, until now.
func (f *feeding) longest() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gap = max(f.gap, time.Since(f.last))
	return f.gap
}

// TestManyThatStood: a crowd of conflicts that must all come back is removed, told
// of and given back, the watchdog is fed meanwhile, and the times are told beside
// those that iproute2 takes for the same deletes and adds ("make bench": 200,000
// routes).
func TestManyThatStood(t *testing.T) {
	needs(t)
	s, n := newStub(t), *stoodRoutes
	took := func(f func()) time.Duration {
		start := time.Now()
		f()
		return time.Since(start)
	}
	s.runBatch(t, stoodBatch("add", n))
	deletes := took(func() { s.runBatch(t, stoodBatch("del", n)) })
	adds := took(func() { s.runBatch(t, stoodBatch("append", n)) })
	before := s.Client.MainTable(t)
	if got := strings.Count(before, " via 10.77.0.66 "); got != n {
		t.Fatalf("control: %d routes stand", got)
	}
	fed := fedWatchdog(t)
	d := s.limited(t, "NOTIFY_SOCKET="+fed.path+" WATCHDOG_USEC=30000000")
	connect := took(func() { s.prog.Must(t, "up", "--tunnel", "tun0", "--protect", sites) })
	if left := strings.Count(s.Client.MainTable(t), " via 10.77.0.66 "); left != 0 {
		t.Errorf("%d of them are left", left)
	}
	enforcing(t, s.prog)
	var st status
	tell := took(func() { st = statusOf(t, s.prog) })
	if got := st.Sessions[0]; len(got.Held) != n || got.Removed != n {
		t.Errorf("%d held and %d removed, of %d", len(got.Held), got.Removed, n)
	}
	down := took(func() { s.prog.Must(t, "down", "--tunnel", "tun0") })
	sameTable(t, s.Client, "after the end", before)
	stopped(t, d)
	if gap := fed.longest(); gap > 30*time.Second {
		t.Errorf("the watchdog was not fed for %v", gap)
	}
	t.Logf("%d routes: iproute2 deletes in %v and adds in %v; connect %v, status %v, disconnect %v; unfed for %v at most",
		n, deletes, adds, connect, tell, down, fed.longest())
	for what, r := range map[string]float64{"connect": connect.Seconds() / deletes.Seconds(), "status": tell.Seconds() / deletes.Seconds(), "disconnect": down.Seconds() / adds.Seconds()} {
		t.Logf("%s: %.2f of the kernel's own time", what, r)
		if *stoodRatio > 0 && r > *stoodRatio {
			t.Errorf("%s takes %.2f times the kernel's own time", what, r)
		}
	}
}
