package enforce_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// kernel is the main table as rtnl shows it to the Enforcer, in single steps: it says
// ErrAlready where there was nothing to do, deletes as Linux does, whose deletes can take
// a look-alike, and announces what others do, not what culvert does.
type kernel struct {
	table  *enforcetest.Table
	store  store
	queue  []announced // nobody has read these yet
	own    bool        // culvert is acting
	echo   bool        // what culvert does is announced too
	watch  bool        // the process lives, and hears
	full   bool        // the disk is full
	broken int         // so many readings of the table are interrupted

	dead  bool // the process is dead: nothing it asks for happens
	steps int  // writes of the current operation
	kill  int  // the process dies before this write; 0: it lives
	spots int  // moments of the current operation at which others may act
	spot  int  // at this one they do; 0: at none
	act   func()

	victim *plan.Route         // what a delete took
	gone   map[plan.Route]bool // what culvert deleted and nobody added since
	behind map[plan.Route]bool // of them: what stood behind one of its place that stayed
	done   enforce.Totals      // by the process that lives
}

// announced is something that the table announced.
type announced struct {
	change enforce.Change
	route  plan.Route
	hint   string
	urgent bool
	own    bool
}

func newKernel(t *enforcetest.Table) *kernel {
	k := &kernel{table: t.Clone(), gone: map[plan.Route]bool{}, behind: map[plan.Route]bool{}}
	k.listen()
	k.store.k = k
	return k
}

func (k *kernel) clone() *kernel {
	c := *k
	c.table, c.queue, c.gone, c.behind = k.table.Clone(), slices.Clone(k.queue), maps.Clone(k.gone), maps.Clone(k.behind)
	c.act, c.victim = nil, nil
	c.store = k.store.clone(&c)
	c.listen()
	return &c
}

func (k *kernel) listen() {
	k.table.Listen(func(c enforce.Change, r plan.Route) {
		if c == enforce.Deleted {
			r = raw(r)
			k.victim = &r
		}
		if k.watch && (!k.own || k.echo) {
			k.queue = append(k.queue, announced{change: c, route: raw(r), own: k.own})
		}
	}, func(why string, urgent bool) {
		if k.watch {
			k.queue = append(k.queue, announced{hint: why, urgent: urgent})
		}
	})
}

// raw gives a route the bytes that it has whenever it is read: the table numbers its rows.
func raw(r plan.Route) plan.Route {
	_, extra, _ := strings.Cut(r.Raw, ";")
	return enforcetest.WithExtra(r, extra)
}

// write reports whether the process lives to make its next write.
func (k *kernel) write() bool {
	k.moment()
	if k.steps++; k.steps == k.kill {
		k.dead = true
	}
	return !k.dead
}

// moment lets others act where they were told to.
func (k *kernel) moment() {
	if k.spots++; k.spots == k.spot && k.act != nil {
		act := k.act
		k.act = nil
		act()
	}
}

var errDead = errors.New("the process is dead")

// Watch is for [enforce.System]; the model serves announcements one by one.
func (k *kernel) Watch(context.Context, enforce.Edge, *enforce.Sink, func()) error { return nil }

// Facts is for [enforce.System].
func (k *kernel) Facts(context.Context) (enforce.Facts, error) {
	k.moment()
	if k.dead {
		return enforce.Facts{}, errDead
	}
	return enforce.Facts{Links: k.table.Links(), Uptime: time.Hour}, nil
}

// Table is for [enforce.System].
func (k *kernel) Table(context.Context) iter.Seq2[plan.Route, error] {
	return func(yield func(plan.Route, error) bool) {
		k.moment()
		if k.dead {
			yield(plan.Route{}, errDead)
			return
		}
		if k.broken > 0 {
			k.broken--
			yield(plan.Route{}, fmt.Errorf("dump: %w", enforce.ErrInterrupted))
			return
		}
		for r := range k.table.Routes() {
			if !yield(raw(r), nil) {
				return
			}
		}
	}
}

// Apply is for [enforce.System].
func (k *kernel) Apply(_ context.Context, actions []plan.Action) []error {
	errs := make([]error, len(actions))
	for i := range actions {
		errs[i] = k.apply(&actions[i])
	}
	return errs
}

func (k *kernel) apply(a *plan.Action) (err error) {
	switch a.Kind {
	case plan.Put:
		if err = k.put(a.Route, a.First); err == nil {
			k.done.Readded++
		}
	case plan.Restore:
		if err = k.restore(a); err == nil {
			k.done.Restored++
		}
	case plan.Remove:
		if err = k.remove(a.Route); err == nil {
			k.done.Removed++
			for leg := range legs(&a.Route) {
				k.gone[leg] = true
			}
		}
	case plan.Withdraw, plan.Lift:
		if err = k.remove(a.Route); err == nil {
			k.done.Withdrawn++
		}
	}
	return err
}

// as runs f as culvert's own act.
func (k *kernel) as(f func() error) error {
	if !k.write() {
		return errDead
	}
	k.own = true
	defer func() { k.own = false }()
	return f()
}

func how(first bool) enforcetest.How {
	if first {
		return enforcetest.Prepend
	}
	return enforcetest.Append
}

// put adds a route; one of our own making says that its gateway is on the link.
func (k *kernel) put(r plan.Route, first bool) error {
	if r.Raw == "" && r.Hop.Via.IsValid() {
		r = enforcetest.WithExtra(r, "onlink")
	}
	return answered(k.as(func() error { return k.table.Add(r, how(first)) }))
}

// answered is what rtnl makes of a refusal.
func answered(err error) error {
	switch {
	case errors.Is(err, enforcetest.ErrExists):
		return enforce.ErrAlready
	case errors.Is(err, enforcetest.ErrNoLink):
		return fmt.Errorf("%w: %w", enforce.ErrGone, err)
	case errors.Is(err, enforcetest.ErrLinkDown):
		return fmt.Errorf("%w: %w", enforce.ErrNotNow, err)
	}
	return err
}

// restore adds a route that stood, with host routes to its gateways for that moment
// where what led to them is out.
func (k *kernel) restore(a *plan.Action) error {
	r := a.Route
	if r.Expires != 0 && a.Age >= r.Expires {
		return enforce.ErrAlready
	}
	err := k.addBack(r, a.First)
	if !errors.Is(err, enforcetest.ErrGateway) {
		return err
	}
	var hosts []plan.Route
	for hop := range r.Hops() {
		host := plan.Route{Dst: netip.PrefixFrom(hop.Via, hop.Via.BitLen()), Hop: plan.Hop{Link: hop.Link}, Origin: plan.Own}
		if hop.Via.IsValid() && hop.Via.Is6() {
			host.Metric = 1
		}
		if hop.Via.IsValid() && k.as(func() error { return k.table.Add(host, enforcetest.Add) }) == nil {
			hosts = append(hosts, host)
		}
	}
	if len(hosts) == 0 {
		return enforce.ErrNotNow
	}
	err = k.addBack(r, a.First)
	for _, host := range hosts {
		_ = k.as(func() error { return k.table.DeleteExact(host) })
	}
	if errors.Is(err, enforcetest.ErrGateway) {
		return fmt.Errorf("%w: %w", enforce.ErrNotNow, err)
	}
	return err
}

// addBack adds a route; of an IPv6 multipath route of which legs stand, the whole.
func (k *kernel) addBack(r plan.Route, first bool) error {
	return answered(k.as(func() error { return k.table.Add(r, how(first)) }))
}

// remove deletes the very route or nothing. A look-alike that the kernel takes in its
// place is put back.
func (k *kernel) remove(r plan.Route) (err error) {
	if r.Dst.Addr().Is6() && r.NexthopID == 0 {
		return k.removeLegs(r)
	}
	var aside []plan.Route
	for {
		k.victim = nil
		err := k.as(func() error { return k.table.Delete(r) })
		if errors.Is(err, enforcetest.ErrNotFound) {
			err = enforce.ErrAlready
		}
		if err != nil || k.victim == nil || k.victim.Same(r) {
			return k.displaced(aside, err)
		}
		aside = append(aside, *k.victim)
	}
}

func (k *kernel) removeLegs(r plan.Route) error {
	result := enforce.ErrAlready
	for leg := range legs(&r) {
		switch err := k.as(func() error { return k.table.Delete(leg) }); {
		case err == nil:
			result = nil
		case !errors.Is(err, enforcetest.ErrNotFound):
			return err
		}
	}
	return result
}

func (k *kernel) displaced(aside []plan.Route, result error) error {
	var out []plan.Route
	for _, r := range slices.Backward(aside) {
		if err := k.restore(&plan.Action{Kind: plan.Restore, Route: r, First: true}); err != nil && !errors.Is(err, enforce.ErrAlready) {
			out = append(out, r)
		}
	}
	if len(out) == 0 {
		return result
	}
	return &enforce.DisplacedError{Routes: out, Result: result}
}

// legs yields the rows that a route is stored as, each as it is known again.
func legs(r *plan.Route) iter.Seq[plan.Route] {
	return func(yield func(plan.Route) bool) {
		if r.Dst.Addr().Is4() || r.NexthopID != 0 {
			yield(known(*r))
			return
		}
		for hop := range r.Hops() {
			if !yield(known(r.WithHops(hop))) {
				return
			}
		}
	}
}

// known is a row as it is known again. The legs of an IPv6 multipath route come back
// with the protocol of the first: a known limit ("a leg that is taken out and given back
// carries the first leg's").
func known(r plan.Route) plan.Route {
	r = r.Identity()
	if r.Dst.Addr().Is6() && r.Hop.Via.IsValid() && r.Origin != plan.Own {
		r.Protocol, r.Origin = 0, plan.Foreign
	}
	return r
}

// serve brings the oldest announcement to the edge path and carries its answer out.
func (k *kernel) serve(s *enforce.Stepper) {
	a := k.queue[0]
	k.queue = k.queue[1:]
	if a.hint != "" {
		s.Hint(a.hint, a.urgent)
		return
	}
	ev := enforce.Event{Change: a.change, Route: a.route, Seen: time.Now(), Port: 4711}
	scratch := a.route
	scratch.Raw = ""
	ev.Answer = s.Edge(a.change, &scratch)
	var errs error
	answer := func(kind plan.Kind, r plan.Route) (did bool) {
		err := k.apply(&plan.Action{Kind: kind, Route: r, First: kind == plan.Put})
		if ev.Idle = errors.Is(err, enforce.ErrAlready); !ev.Idle || isDisplaced(err) {
			errs = errors.Join(errs, err)
		}
		return err == nil
	}
	if ev.Answer.Put != nil {
		ev.Readded = answer(plan.Put, *ev.Answer.Put)
	}
	if ev.Answer.Delete {
		ev.Removed = answer(plan.Remove, a.route)
	}
	ev.Err, ev.Done = errs, time.Now()
	if ev.Answer.Tell || ev.Answer.Delete || ev.Answer.Put != nil {
		s.Tell(ev)
	}
}

func isDisplaced(err error) bool {
	var d *enforce.DisplacedError
	return errors.As(err, &d)
}

// store is the journal: it outlives the process.
type store struct {
	k       *kernel
	entries []enforce.Entry
	marks   map[enforce.Mark]bool
}

func (s *store) clone(k *kernel) store {
	return store{k: k, entries: slices.Clone(s.entries), marks: maps.Clone(s.marks)}
}

var errFull = errors.New("no space left on device (ENOSPC)")

// Load is for [enforce.Journal].
func (s *store) Load() ([]enforce.Entry, error) { return slices.Clone(s.entries), nil }

// Hold is for [enforce.Journal].
func (s *store) Hold(entries []enforce.Entry) error {
	switch {
	case !s.k.write():
		return errDead
	case s.k.full:
		return errFull
	}
	s.entries = slices.DeleteFunc(slices.Clone(s.entries), func(o enforce.Entry) bool {
		return slices.ContainsFunc(entries, func(e enforce.Entry) bool { return e.ID == o.ID })
	})
	s.entries = append(s.entries, entries...)
	slices.SortFunc(s.entries, func(a, b enforce.Entry) int { return cmp.Compare(a.ID, b.ID) })
	return nil
}

// Forget is for [enforce.Journal].
func (s *store) Forget(ids []uint64) error {
	if !s.k.write() {
		return errDead
	}
	s.entries = slices.DeleteFunc(slices.Clone(s.entries), func(e enforce.Entry) bool { return slices.Contains(ids, e.ID) })
	return nil
}

// LoadMarks is for [enforce.MarkStore].
func (s *store) LoadMarks() ([]enforce.Mark, bool) { return slices.Collect(maps.Keys(s.marks)), true }

// KeepMarks is for [enforce.MarkStore].
func (s *store) KeepMarks(c enforce.MarkChange) error {
	switch {
	case !s.k.write():
		return errDead
	case s.k.full:
		return errFull
	}
	if s.marks == nil {
		s.marks = map[enforce.Mark]bool{}
	}
	for _, m := range c.Add {
		s.marks[m] = true
	}
	for _, m := range c.Drop {
		delete(s.marks, m)
	}
	return nil
}
