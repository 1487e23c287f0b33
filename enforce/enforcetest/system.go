package enforcetest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// OwnPort is the port id under which a System's own changes are announced.
const OwnPort uint32 = math.MaxUint32

// The failures that a System can be told to have.
var (
	ErrInterrupted = fmt.Errorf("dump: %w", enforce.ErrInterrupted)
	ErrHalted      = errors.New("the process is dead")
)

// Point is a moment at which a hook is called: before or after one step.
type Point struct {
	Op    string // "put", "remove", "restore", "withdraw", "edge"; a Journal's: "load", "hold", "mark", "forget"
	After bool
	N     int // how many steps of any kind came before this one
}

// System is an [enforce.System] in memory. All methods may be called at once
// from different goroutines. Set the exported fields before that.
type System struct {
	// Hook, when not nil, is called around every change that the Enforcer
	// makes. It may call Halt.
	Hook func(Point)
	// Refuse, when not nil, may answer an action with an error in the
	// system's place. Edge deletes are Remove actions here.
	Refuse func(plan.Action) error
	// Dumping, when not nil, is called before each route that Table yields.
	// It may wait, or act on the System.
	Dumping func(n int)

	mu    sync.Mutex // guards what follows
	table Table
	extra facts
	queue []announced
	wake  chan struct{} // holds one token when the queue has grown; nil: nobody watches
	fault faults
	port  uint32 // who is acting
	steps int
	made  Made
	busy  int // 1 while an announcement is being served
}

type facts struct {
	bypasses []string
	rules    enforce.Facts                // Rules, Tables and Local of it
	ways     map[netip.Prefix]enforce.Way // that do not lead through the main table
	uptime   time.Duration
	names    map[uint32]string // processes by port
}

type faults struct {
	lose, overrun, interrupt int
	watch                    error
	halted                   bool
}

type announced struct {
	announcement
	port uint32
}

// NewSystem returns a System over a copy of the table.
func NewSystem(t *Table) *System {
	s := &System{}
	if t != nil {
		s.table = *t.Clone()
	}
	s.table.hear = s.heard
	return s
}

// Made is how often the Enforcer's own changes added a route and deleted one, by the
// table's account: an IPv6 multipath route is deleted leg by leg.
type Made struct{ Added, Deleted int }

// Made returns what the Enforcer's changes came to so far.
func (s *System) Made() Made {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.made
}

// heard queues what the table announces. The lock is held.
func (s *System) heard(a announcement) {
	switch {
	case s.port != OwnPort:
	case a.change == added:
		s.made.Added++
	case a.change == deleted:
		s.made.Deleted++
	}
	switch {
	case s.wake == nil:
		return
	case a.change != hint && a.change != urgent && s.fault.lose > 0:
		s.fault.lose--
		return
	case s.fault.overrun > 0:
		s.fault.overrun--
		a = announcement{change: hint, why: "receive buffer overran"}
	}
	s.queue = append(s.queue, announced{a, s.port})
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Watch implements [enforce.System].
func (s *System) Watch(ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
	wake := make(chan struct{}, 1)
	s.mu.Lock()
	s.wake, s.queue = wake, nil
	s.mu.Unlock()
	defer s.unwatch(wake)
	ready()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		}
		for {
			a, ok, err := s.next()
			if err != nil {
				return err
			}
			if !ok || ctx.Err() != nil {
				break
			}
			s.serve(a, edge, sink)
		}
	}
}

func (s *System) unwatch(wake chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wake == wake {
		s.wake, s.queue = nil, nil
	}
}

func (s *System) next() (a announced, ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fault.watch; err != nil {
		s.fault.watch = nil
		return a, false, err
	}
	if s.busy = min(len(s.queue), 1); s.busy == 0 {
		return a, false, nil
	}
	a = s.queue[0]
	s.queue = s.queue[1:]
	return a, true, nil
}

// serve brings one announcement to the edge and carries out its answer.
func (s *System) serve(a announced, edge enforce.Edge, sink *enforce.Sink) {
	switch a.change {
	case hint:
		sink.Dirty(a.why)
		return
	case urgent:
		sink.Hurry(a.why)
		return
	}
	ev := enforce.Event{Change: enforce.Added, Route: a.route, Seen: time.Now(), Port: a.port, Process: s.process(a.port)}
	if a.change == deleted {
		ev.Change = enforce.Deleted
	}
	scratch := a.route
	scratch.Raw = ""
	ev.Answer = edge(ev.Change, &scratch)
	ev.Err = s.answer(&ev)
	ev.Done = time.Now()
	if ev.Answer.Tell || ev.Answer.Delete || ev.Answer.Put != nil {
		sink.Tell(ev)
	}
}

func (s *System) answer(ev *enforce.Event) error {
	var err error
	if put := ev.Answer.Put; put != nil {
		ev.Idle, err = idle(s.step("edge", plan.Action{Kind: plan.Put, Route: *put, First: true}))
		ev.Readded = !ev.Idle && err == nil
	}
	if ev.Answer.Delete {
		var gone error
		ev.Idle, gone = idle(s.step("edge", plan.Action{Kind: plan.Remove, Route: ev.Route, Verdict: ev.Answer.Verdict}))
		ev.Removed = !ev.Idle && gone == nil
		err = errors.Join(err, gone)
	}
	return err
}

// idle tells an error apart from there having been nothing to do.
func idle(err error) (bool, error) {
	if errors.Is(err, enforce.ErrAlready) {
		return true, nil
	}
	return false, err
}

func (s *System) process(port uint32) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.extra.names[port]
}

// Table implements [enforce.System].
func (s *System) Table(ctx context.Context) iter.Seq2[plan.Route, error] {
	return func(yield func(plan.Route, error) bool) {
		routes, stop, err := s.dump()
		if err != nil {
			yield(plan.Route{}, err)
			return
		}
		n := 0
		for r := range routes {
			if s.Dumping != nil {
				s.Dumping(n)
			}
			if err := ctx.Err(); err != nil {
				yield(plan.Route{}, err)
				return
			}
			if n == stop {
				yield(plan.Route{}, ErrInterrupted)
				return
			}
			n++
			if !yield(r, nil) {
				return
			}
		}
		if stop >= 0 {
			yield(plan.Route{}, ErrInterrupted)
		}
	}
}

// dump returns the routes as they are now, and after how many of them the
// reading is interrupted, or -1.
func (s *System) dump() (routes iter.Seq[plan.Route], stop int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault.halted {
		return nil, 0, ErrHalted
	}
	stop = -1
	if s.fault.interrupt > 0 {
		s.fault.interrupt--
		stop = len(s.table.rows) / 2
	}
	return s.table.Clone().Routes(), stop, nil
}

// Apply implements [enforce.System].
func (s *System) Apply(ctx context.Context, actions []plan.Action) []error {
	errs := make([]error, len(actions))
	for i, a := range actions {
		if errs[i] = ctx.Err(); errs[i] == nil {
			errs[i] = s.step(a.Kind.String(), a)
		}
	}
	return errs
}

// step carries out one action between its two hooks.
func (s *System) step(op string, a plan.Action) error {
	s.mu.Lock()
	n := s.steps
	s.steps++
	s.mu.Unlock()
	if s.Hook == nil {
		return s.apply(a)
	}
	s.Hook(Point{Op: op, N: n})
	err := s.apply(a)
	s.Hook(Point{Op: op, After: true, N: n})
	return err
}

func (s *System) apply(a plan.Action) error {
	if s.Refuse != nil {
		if err := s.Refuse(a); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault.halted {
		return ErrHalted
	}
	defer func(p uint32) { s.port = p }(s.port)
	s.port = OwnPort
	switch a.Kind {
	case plan.Put:
		return explain(s.table.give(a.Route, a.First))
	case plan.Restore:
		return explain(s.table.giveBack(a))
	case plan.Remove, plan.Lift, plan.Withdraw:
		return explain(s.table.DeleteExact(a.Route))
	}
	return nil
}

// explain says what an error means to the Enforcer.
func explain(err error) error {
	switch {
	case errors.Is(err, ErrExists), errors.Is(err, ErrNotFound):
		return fmt.Errorf("%w: %w", enforce.ErrAlready, err)
	case errors.Is(err, ErrNoLink), errors.Is(err, ErrNexthop):
		return fmt.Errorf("%w: %w", enforce.ErrGone, err)
	case errors.Is(err, ErrLinkDown), errors.Is(err, ErrGateway), errors.Is(err, ErrMute6):
		return fmt.Errorf("%w: %w", enforce.ErrNotNow, err)
	}
	return err
}

// give adds a route that may be there already.
func (t *Table) give(r plan.Route, first bool) error {
	how := Append
	if first {
		how = Prepend
	}
	err := t.Add(r, how)
	if errors.Is(err, ErrGateway) {
		// What held the gateway is still out.
		_, extra := t.stored(r)
		err = t.Add(WithExtra(r, joinWords("onlink", extra)), how)
	}
	return err
}

// giveBack adds a held route with what is left of its lifetime.
func (t *Table) giveBack(a plan.Action) error {
	r := a.Route
	if r.Expires != 0 {
		if a.Age >= r.Expires {
			return nil
		}
		r.Expires -= a.Age
	}
	return t.give(r, a.First)
}

func joinWords(a, b string) string {
	if b == "" {
		return a
	}
	return a + " " + b
}

// Facts implements [enforce.System].
func (s *System) Facts(context.Context) (enforce.Facts, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault.halted {
		return enforce.Facts{}, ErrHalted
	}
	f := s.extra.rules
	f.Links, f.Bypasses, f.Uptime = s.table.Links(), s.extra.bypasses, s.extra.uptime
	return f, nil
}

var _ enforce.System = (*System)(nil)

// Do runs f on the table, as somebody else with the given port id. What f
// changes is announced.
func (s *System) Do(port uint32, f func(*Table) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func(p uint32) { s.port = p }(s.port)
	s.port = port
	return f(&s.table)
}

// Snapshot returns a copy of the table as it is now.
func (s *System) Snapshot() *Table {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table.Clone()
}

// Text says the whole table; see [Table.Text].
func (s *System) Text() string { return s.Snapshot().Text() }

// Lookup asks the table as it is now; see [Table.Lookup].
func (s *System) Lookup(addr netip.Addr, tos uint8, src netip.Addr) (plan.Route, bool) {
	return s.Snapshot().Lookup(addr, tos, src)
}
