package witness

import "time"

// monotonicTicker ticks by a clock that stands still while the machine sleeps.
func monotonicTicker(every time.Duration) (ticks <-chan time.Time, stop func()) {
	t := time.NewTicker(every)
	return t.C, t.Stop
}
