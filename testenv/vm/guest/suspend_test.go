//go:build linux && vm

package guest

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// slept is how long the machine has slept since it was started: what one clock counts
// and the other does not.
func (r *rig) slept() time.Duration {
	r.t.Helper()
	var all, awake unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &awake); err != nil {
		r.t.Fatal(err)
	}
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &all); err != nil {
		r.t.Fatal(err)
	}
	return time.Duration(all.Nano() - awake.Nano())
}

// TestSuspend: the machine sleeps for longer than guard_for. The tunnel is there, and the
// daemon alive: nothing gets out when both wake, though the deadline of the drops would have
// passed by the clock on the wall.
func TestSuspend(t *testing.T) {
	r, _ := tunnelled(t)
	r.unit("on_leak: drop\nguard_for: 40s\n" + siteSession("tun0"))
	r.enforcing()
	r.pinned()
	before := r.slept()
	r.none("asleep for longer than guard_for", func() {
		r.sh("rtcwake -m mem -s 80")
		r.dropped(200) // the sender has woken, and got on
	})
	got := r.slept() - before
	t.Logf("measured: asleep for %.0f s", got.Seconds())
	if got < 41*time.Second {
		t.Errorf("the machine slept for %v: nothing is proved", got)
	}
	r.enforcing()
	r.pinned()
}
