package witness

import (
	"net/netip"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"golang.org/x/sys/unix"
)

// processorTime is what the process has taken of the processors: a busy machine does not change it much.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestKeeperLingersWithMany: what a session that lingers says of addresses that another protects is left out, however many
// there are: each is looked up, not compared with all.
func TestKeeperLingersWithMany(t *testing.T) {
	many := func(first byte, n int) (list []netip.Prefix) {
		for i := range n {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{first, byte(i >> 8), byte(i), 7}), 30))
		}
		return list
	}
	took := func(n int) time.Duration {
		gone := lingering{ProtectedSession: enforce.ProtectedSession{Session: enforce.Session{Tunnel: "tun0", Protect: many(10, n)}}}
		live := []enforce.ProtectedSession{{Session: enforce.Session{Tunnel: "tun1", Protect: append(many(20, n), many(10, 5)...)}}}
		start := processorTime(t)
		rest, _ := gone.beside(live)
		if got := len(rest.Protect); got != n-5 {
			t.Errorf("%d of %d are left beside another session, want all but 5", got, n)
		}
		return processorTime(t) - start
	}
	took(1000)
	small, large := took(4000), took(64000)
	if large > 80*max(small, time.Millisecond) {
		t.Errorf("16 times as many took %v instead of %v", large, small)
	}
}
