//go:build !linux

package witness

import "time"

var started = time.Now()

// bootTime is the process's own clock: nothing is guarded on this system.
func bootTime() time.Duration { return time.Since(started) }

func newTicker(every time.Duration) (ticks <-chan time.Time, stop func()) {
	return monotonicTicker(every)
}
