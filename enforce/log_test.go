package enforce

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestLimitedLog: of the lines that somebody else can cause without end a second has
// room for some. How many were left out stands in the next one, and once.
func TestLimitedLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		l := newLimitedLog(slog.New(slog.NewTextHandler(&b, nil)))
		lines := func() []string {
			defer b.Reset()
			return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
		}
		for range logLines + 7 {
			l.limited("flood")
		}
		if got := lines(); len(got) != logLines || strings.Contains(got[logLines-1], "lines_left_out") {
			t.Errorf("%d lines, the last of them %q", len(got), got[len(got)-1])
		}
		l.warn("said whatever the second is full of")
		if got := lines(); len(got) != 1 || !strings.Contains(got[0], "level=WARN") {
			t.Errorf("%q", got)
		}
		time.Sleep(logWindow + time.Millisecond)
		l.info("first")
		l.info("second")
		got := lines()
		if len(got) != 2 || !strings.Contains(got[0], "lines_left_out=7") || strings.Contains(got[1], "lines_left_out") {
			t.Errorf("%q", got)
		}
	})
}

// TestSinkIsFull: an event that finds no room is counted as such, and the table is read.
func TestSinkIsFull(t *testing.T) {
	s := NewSink()
	for range sinkDepth {
		s.Tell(Event{})
	}
	select {
	case why := <-s.DirtyC():
		t.Errorf("dirty before it is full: %s", why)
	default:
	}
	s.Tell(Event{})
	if why := <-s.DirtyC(); why != "events overran" || s.Lost() != 1 {
		t.Errorf("%q, %d lost", why, s.Lost())
	}
}
