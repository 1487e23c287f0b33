package witness

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// bootTime is a clock that goes on while the machine sleeps. It cannot fail: every kernel that has the witness has it.
func bootTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return time.Duration(ts.Nano())
}

// newTicker returns ticks by boot time, and a function that ends them. A tick that was due while the host slept comes as
// soon as it wakes. Ticks that nobody takes are dropped.
func newTicker(every time.Duration) (ticks <-chan time.Time, stop func()) {
	f, err := bootTimer(every)
	if err != nil {
		return monotonicTicker(every)
	}
	c := make(chan time.Time, 1)
	go func() {
		var n [8]byte // how often it was due
		for {
			if _, err := f.Read(n[:]); err != nil {
				return // stopped
			}
			select {
			case c <- time.Now():
			default:
			}
		}
	}()
	return c, func() { _ = f.Close() }
}

func bootTimer(every time.Duration) (*os.File, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "boot timer")
	ts := unix.NsecToTimespec(int64(every))
	if err := unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Interval: ts, Value: ts}, nil); err != nil {
		_ = f.Close()
		return nil, os.NewSyscallError("timerfd_settime", err)
	}
	return f, nil
}
