package enforce

import "sync/atomic"

// sinkDepth is how many events may wait for the Enforcer. Beyond it they are
// counted and the table is marked dirty: the next dump finds what they said.
const sinkDepth = 4096

// Sink takes what a System's Watch has to tell. Its methods never wait and may
// be called from any goroutine.
type Sink struct {
	events chan Event
	dirty  chan string
	lost   atomic.Uint64
}

// NewSink returns an empty sink.
func NewSink() *Sink {
	return &Sink{events: make(chan Event, sinkDepth), dirty: make(chan string, 1)}
}

// Tell hands an event on.
func (s *Sink) Tell(ev Event) {
	select {
	case s.events <- ev:
	default:
		s.lost.Add(1)
		s.Dirty("events overran")
	}
}

// Dirty says that the table may differ from what the events told, and why.
// Reasons that arrive before the first is taken are folded into it.
func (s *Sink) Dirty(why string) {
	select {
	case s.dirty <- why:
	default:
	}
}

// Events is where told events come out.
func (s *Sink) Events() <-chan Event { return s.events }

// DirtyC is where reasons to read the table come out.
func (s *Sink) DirtyC() <-chan string { return s.dirty }

// Lost returns how many events found no room.
func (s *Sink) Lost() uint64 { return s.lost.Load() }
