package enforce

import (
	"sync"
	"sync/atomic"
	"time"
)

// sinkDepth is how many events may wait for the Enforcer. Beyond it what they say
// is grouped, and the table is marked dirty: the next dump finds the rest.
const sinkDepth = 4096

// Sink takes what a System's Watch has to tell. Its methods never wait and may
// be called from any goroutine.
type Sink struct {
	events chan Event
	dirty  chan string
	lost   atomic.Uint64
	hurry  atomic.Bool  // one of the reasons in dirty cannot wait
	hinted atomic.Int64 // when the first hint came that was not taken yet, in ns since 1970; 0: none

	mu      sync.Mutex // guards grouped; held for the time of a look-up
	grouped groups
}

// NewSink returns an empty sink.
func NewSink() *Sink {
	return &Sink{events: make(chan Event, sinkDepth), dirty: make(chan string, 1)}
}

// Count counts what an event's answer changed, if it was not counted yet. A System
// that keeps events for a while calls it before.
func (s *Sink) Count(ev *Event) { ev.count() }

// Tell counts an event and hands it on.
func (s *Sink) Tell(ev Event) {
	ev.count()
	select {
	case s.events <- ev:
	default:
		s.lost.Add(1)
		s.group(&ev)
		s.Dirty("events overran")
	}
}

// group keeps of an event that finds no room what is told of many: what its answer
// changed, or could not.
func (s *Sink) group(ev *Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grouped.add(ev, "edge")
}

func (s *Sink) takeGroups() groups {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.grouped
	s.grouped = nil
	return list
}

// Dirty says that the table may differ from what the events told, and why.
// Reasons that arrive before the first is taken are folded into it.
func (s *Sink) Dirty(why string) {
	s.hinted.CompareAndSwap(0, time.Now().UnixNano())
	select {
	case s.dirty <- why:
	default:
	}
}

// Hurry is Dirty for what cannot wait as long: an interface came or went, say.
func (s *Sink) Hurry(why string) {
	s.hurry.Store(true)
	s.Dirty(why)
}

// takeHint returns when the first hint came that was not taken yet, or the zero time.
func (s *Sink) takeHint() time.Time {
	if at := s.hinted.Swap(0); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

// Events is where told events come out.
func (s *Sink) Events() <-chan Event { return s.events }

// DirtyC is where reasons to read the table come out.
func (s *Sink) DirtyC() <-chan string { return s.dirty }

// Lost returns how many events found no room.
func (s *Sink) Lost() uint64 { return s.lost.Load() }
