package loader

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// setDeadlines makes drops end when the first of the two times is over; 0 is never. See [Config].
func (w *Witness) setDeadlines(heartbeat, remaining time.Duration) error {
	var s leakSettings
	if heartbeat > 0 {
		s.Heard = uint64(monotonicNow() + heartbeat)
	}
	if remaining > 0 {
		s.Until = uint64(bootNow() + remaining)
	}
	if err := w.putDeadlines(s); err != nil {
		return err
	}
	w.status.Until = untilOf(s)
	return nil
}

// putDeadlines stores two aligned words: of each the programs see the old value or the new one.
func (w *Witness) putDeadlines(s leakSettings) error {
	if err := w.put(w.objs.Settings, uint32(0), s); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	return nil
}

func (w *Witness) deadlines() (s leakSettings, err error) {
	if err := w.objs.Settings.Lookup(uint32(0), &s); err != nil {
		return s, fmt.Errorf("read deadline: %w", err)
	}
	return s, nil
}

// readDeadline reads the deadline of an adopted guard.
func (w *Witness) readDeadline() error {
	s, err := w.deadlines()
	w.status.Until = untilOf(s)
	return err
}

// untilOf is when drops end if the host does not sleep; zero is never.
func untilOf(s leakSettings) (end time.Time) {
	if s.Heard != 0 {
		end = time.Now().Add(time.Duration(s.Heard) - monotonicNow())
	}
	if s.Until == 0 {
		return end
	}
	if at := wallTime(s.Until); end.IsZero() || at.Before(end) {
		end = at
	}
	return end
}

// monotonicNow reads the programs' clock that stands still while the host sleeps.
func monotonicNow() time.Duration { return clockOf(unix.CLOCK_MONOTONIC) - offsets().monotonic }

// bootNow reads the programs' clock that goes on in sleep.
func bootNow() time.Duration { return clockOf(unix.CLOCK_BOOTTIME) - offsets().boot }

func clockOf(id int32) time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(id, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func wallTime(boot uint64) time.Time {
	return time.Now().Add(time.Duration(boot) - bootNow())
}

// timeOffsets is by how much this process's clocks are ahead of the host's: the programs know of no time namespaces.
type timeOffsets struct{ monotonic, boot time.Duration }

// offsets do not change while the process lives.
var offsets = sync.OnceValue(func() timeOffsets {
	text, err := os.ReadFile("/proc/self/timens_offsets")
	if err != nil {
		return timeOffsets{} // a kernel without time namespaces
	}
	return parseOffsets(string(text))
})

func parseOffsets(text string) (o timeOffsets) {
	for line := range strings.Lines(text) {
		var clock string
		var s, ns int64
		if n, _ := fmt.Sscan(line, &clock, &s, &ns); n < 3 {
			continue
		}
		switch by := time.Duration(s)*time.Second + time.Duration(ns); clock {
		case "monotonic":
			o.monotonic = by
		case "boottime":
			o.boot = by
		}
	}
	return o
}
