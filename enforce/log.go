package enforce

import (
	"log/slog"
	"time"
)

// limitedLog writes one line per change of the system, and few of the lines
// that somebody else can cause without end.
type limitedLog struct {
	log    *slog.Logger
	window time.Time
	lines  int
	hidden int
}

const (
	logWindow = time.Second
	logLines  = 20 // per window, of the limited kind
)

func newLimitedLog(l *slog.Logger) *limitedLog {
	if l == nil {
		l = slog.New(slog.DiscardHandler)
	}
	return &limitedLog{log: l}
}

func (l *limitedLog) debug(msg string, args ...any) { l.log.Debug(msg, args...) }
func (l *limitedLog) info(msg string, args ...any)  { l.limited(msg, args...) }
func (l *limitedLog) warn(msg string, args ...any)  { l.log.Warn(msg, args...) }
func (l *limitedLog) error(msg string, args ...any) { l.log.Error(msg, args...) }

// limited writes the line unless the second is full already; how many were
// left out is said with the next one.
func (l *limitedLog) limited(msg string, args ...any) {
	now := time.Now()
	if now.Sub(l.window) > logWindow {
		l.window, l.lines = now, 0
	}
	if l.lines++; l.lines > logLines {
		l.hidden++
		return
	}
	if l.hidden > 0 {
		args = append(args, "lines_left_out", l.hidden)
		l.hidden = 0
	}
	l.log.Info(msg, args...)
}
