package witness

import (
	"errors"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/loader"
)

// feed hands events to whoever listens. A slow listener loses lines, and is told.
type feed map[*subscriber]bool

type subscriber struct {
	events chan report.Event
	lost   int
}

// The bounds of a feed.
const (
	subscribers  = 8
	eventsQueued = 256
)

var errCrowded = errors.New("too many are watching already; end one of them")

func (f feed) join() (*subscriber, error) {
	if len(f) >= subscribers {
		return nil, errCrowded
	}
	s := &subscriber{events: make(chan report.Event, eventsQueued)}
	f[s] = true
	return s, nil
}

func (f feed) leave(s *subscriber) { delete(f, s) }

func (f feed) tell(events []report.Event) {
	for s := range f {
		for _, ev := range events {
			s.tell(ev)
		}
	}
}

// tell queues an event, behind the count of those that were lost.
func (s *subscriber) tell(ev report.Event) {
	if s.lost > 0 {
		select {
		case s.events <- report.Event{Time: ev.Time, Kind: "lost", Lost: s.lost}:
			s.lost = 0
		default:
		}
	}
	select {
	case s.events <- ev:
	default:
		s.lost++
	}
}

// waker limits how often leaks wake the level path: at once after a quiet time,
// then less and less while reading the table does not end them.
type waker struct {
	last  time.Time
	pause time.Duration
}

// The pauses between wake-ups.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 5 * time.Second
)

// due reports whether a leak should wake the level path now. A packet that asked
// no route does so only after the longest pause.
func (w *waker) due(s *loader.Sample, now time.Time) bool {
	since := now.Sub(w.last)
	if since >= 2*lastPause {
		w.pause = 0
	}
	if since < w.pause || (s.Bound != 0 || s.Origin == loader.Packet) && since < lastPause {
		return false
	}
	w.last, w.pause = now, min(max(2*w.pause, firstPause), lastPause)
	return true
}
