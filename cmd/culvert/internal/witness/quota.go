package witness

import "time"

// quota limits the lines that somebody else can cause without end.
type quota struct {
	window time.Time // began at
	lines  int
	over   int // left out, and not yet told of
}

const (
	quotaWindow = time.Second
	quotaLines  = 20 // per window
)

// take reports whether there is room for one more line.
func (q *quota) take(now time.Time) bool {
	if now.Sub(q.window) >= quotaWindow {
		q.window, q.lines = now, 0
	}
	if q.lines >= quotaLines {
		q.over++
		return false
	}
	q.lines++
	return true
}

// hidden is how many were left out, once the window in which they were is over.
// They are told of once.
func (q *quota) hidden(now time.Time) int {
	if q.over == 0 || now.Sub(q.window) < quotaWindow {
		return 0
	}
	n := q.over
	q.over = 0
	return n
}
