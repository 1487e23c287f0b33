package enforcetest

import (
	"context"
	"net/netip"
	"time"

	"github.com/culvert-project/culvert/enforce"
)

// Name gives the process behind a port id a name.
func (s *System) Name(port uint32, process string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.extra.names == nil {
		s.extra.names = map[uint32]string{}
	}
	s.extra.names[port] = process
}

// SetBypasses says what is asked before main, and hints that it changed.
func (s *System) SetBypasses(words ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.extra.bypasses = words
	s.table.hint("rules changed")
}

// SetRules says which rules there are and what the tables that they ask hold; the
// main table's content stays what it is. Ways that are not set lead through it.
func (s *System) SetRules(f enforce.Facts, ways map[netip.Prefix]enforce.Way) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.extra.rules, s.extra.ways = f, ways
	s.table.hint("rules changed")
}

// Ways implements [enforce.Asker].
func (s *System) Ways(_ context.Context, to []netip.Addr) ([]enforce.Way, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault.halted {
		return nil, ErrHalted
	}
	out := make([]enforce.Way, len(to))
	for i, a := range to {
		out[i] = s.way(a)
	}
	return out, nil
}

func (s *System) way(a netip.Addr) enforce.Way {
	for p, w := range s.extra.ways {
		if p.Contains(a) {
			return w
		}
	}
	r, ok := s.table.Lookup(a, 0, netip.Addr{})
	if !ok || rejecting(r.Type) {
		return enforce.Way{Err: ErrNotFound}
	}
	return enforce.Way{Route: r, Table: "main"}
}

var _ enforce.Asker = (*System)(nil)

// SetUptime sets the time since boot.
func (s *System) SetUptime(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.extra.uptime = d
}

// Lose makes the next n route announcements vanish without a sign.
func (s *System) Lose(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault.lose = n
}

// Overrun makes the next n announcements vanish as when the receive buffer
// runs over: Watch notices and says dirty.
func (s *System) Overrun(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault.overrun = n
}

// Interrupt makes the next n readings of the table end in [ErrInterrupted].
func (s *System) Interrupt(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault.interrupt = n
}

// BreakWatch makes the running Watch return err.
func (s *System) BreakWatch(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault.watch = err
	s.table.hint("broken")
}

// Halt is the process dying: from now on its calls fail and change nothing,
// while the table lives on and others may act on it.
func (s *System) Halt() { s.setHalted(true) }

// Resume lets the next process of the same machine use the System.
func (s *System) Resume() { s.setHalted(false) }

func (s *System) setHalted(to bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault.halted = to
}

// Pending returns how many announcements Watch has not finished serving.
func (s *System) Pending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue) + s.busy
}
