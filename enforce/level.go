package enforce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

// pacer says when the table is read: at once after a quiet time, else after a pause. The
// pause grows with the time that a reading takes, up to longestPause: a reading may have
// taken long only because the process or the host was suspended.
type pacer struct {
	timer *time.Timer
	at    time.Time // when the timer fires
	why   string
	last  time.Time     // end of the last reading
	took  time.Duration // how long it took
}

const (
	shortestPause = 20 * time.Millisecond
	longestPause  = time.Second
	pauseFactor   = 4 // of the time that a reading takes
	retryPause    = time.Second
)

// due fires when a wanted reading may be made.
func (p *pacer) due() <-chan time.Time {
	if p.timer == nil {
		return nil
	}
	return p.timer.C
}

// want asks for a reading after a pause at least, counted from the last one.
func (p *pacer) want(why string, pause time.Duration) {
	p.wish(why, max(pause, pauseFactor*p.took))
}

// hurry asks for a reading because something is wrong already, or a tunnel may have
// come. The pause is only as long as a reading takes, and at least shortestPause.
func (p *pacer) hurry(why string) { p.wish(why, max(shortestPause, p.took)) }

// wish can only bring the next reading nearer, so a flood of wishes cannot postpone it.
func (p *pacer) wish(why string, pause time.Duration) {
	at := p.last.Add(min(pause, longestPause))
	if p.timer != nil && !at.Before(p.at) {
		return
	}
	p.stop()
	p.timer, p.at, p.why = time.NewTimer(max(0, time.Until(at))), at, why
}

func (p *pacer) stop() {
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
}

// read notes that a reading that began at start is over.
func (p *pacer) read(start time.Time) {
	p.last = time.Now()
	p.took = p.last.Sub(start)
}

// wantLevel asks for the table to be judged whole soon.
func (e *Enforcer) wantLevel(why string) { e.pace.want(why, shortestPause) }

// rounds bounds how often one level pass reads the table: each reading after
// the first finds what came up, or what failed, during the last.
const rounds = 4

// level judges the whole table and makes it right, until a reading finds
// nothing left to do. What cannot be done is told in the sessions' errors.
func (e *Enforcer) level(ctx context.Context, why string) {
	start := time.Now()
	e.pace.stop()
	if at := e.sink.takeHint(); e.hinted.IsZero() || (!at.IsZero() && at.Before(e.hinted)) {
		e.hinted = at
	}
	defer func() { e.hinted = time.Time{} }()
	e.tellRest()
	settled, err := e.settleTable(ctx)
	e.writeLives()
	e.pace.read(start)
	if err != nil && ctx.Err() == nil {
		e.failAll(err)
	}
	if !settled || e.unwritten || e.insecure != nil || e.unkept {
		e.pace.want("not settled", retryPause)
	}
	e.log.debug("table judged", "why", why, "took", e.pace.took, "settled", settled)
}

func (e *Enforcer) settleTable(ctx context.Context) (settled bool, err error) {
	if err := e.look(ctx); err != nil {
		return false, err
	}
	select {
	case <-e.known:
	default:
		close(e.known)
	}
	e.secure()
	// It is the first look until it is settled: a reading can bring to light what
	// the last one hid (IPv6 routes between the legs of a multipath route). A route that
	// stayed because it could not be written down counts at the next look too as one that
	// stood. The edge path is armed all the same: unarmed, it would leave to the loop what
	// the loop cannot do.
	defer func() {
		if err != nil {
			return
		}
		if !e.unwritten {
			e.baseline, e.before = false, e.policy()
		}
		e.arm()
	}()
	for range rounds {
		settled, err = e.round(ctx)
		if settled || (err != nil && !errors.Is(err, ErrInterrupted)) {
			return settled, err
		}
	}
	e.settle(nil)
	return false, err
}

// round reads the table once and acts on it. It is settled when nothing had to
// be done, or nothing more can be done now.
func (e *Enforcer) round(ctx context.Context) (settled bool, err error) {
	pl, err := e.judgeKnown(ctx)
	if err != nil {
		return false, err
	}
	e.markPolicy(pl.Policy)
	e.setPolicy(pl.Policy) // before acting: the edge path must spare our pinholes
	e.reported.begin()
	e.noteStaying(&pl)
	e.takeIn(&pl)
	e.unwritten = false
	progress := false
	if e.opt.Audit {
		e.auditPlan(&pl)
	} else if len(pl.Actions) > 0 {
		progress = e.carryOut(ctx, pl.Actions, occasion{path: "level", seen: e.exposedSince()})
		e.outdated = e.outdated || holds(pl.Actions)
	}
	if progress {
		return false, nil
	}
	e.settleMarks()
	e.swallowed(pl.Swallowed)
	e.verify(ctx, pl.Missing)
	e.settle(pl.Missing)
	return true, nil
}

// noteStaying notes which routes a delete may take by mistake.
func (e *Enforcer) noteStaying(pl *plan.Plan) {
	stay := staying{}
	for _, r := range slices.Concat(pl.Shadowed, pl.Reported) {
		stay[r.Dst] = append(stay[r.Dst], r)
	}
	e.stay.Store(&stay)
}

// unknownLinks reports whether a plan removes routes of an interface that came after
// the interfaces were read. It may be excluded, and whether such a route must come
// back cannot be told without its addresses.
func (e *Enforcer) unknownLinks(pl *plan.Plan) bool {
	for i := range pl.Actions {
		a := &pl.Actions[i]
		for hop := range a.Route.Hops() {
			if a.Kind == plan.Remove && !e.knowsLink(hop.Link) {
				return true
			}
		}
	}
	return false
}

// knowsLink reports whether an interface was there when they were looked at. No
// interface, 0, is always known.
func (e *Enforcer) knowsLink(index uint32) bool { return index == 0 || e.linkSet[index] }

// judgeKnown judges by facts that are newer than what is removed for good. The
// table may show an interface, or a connected route, that came after the facts
// were read: then both are read again.
func (e *Enforcer) judgeKnown(ctx context.Context) (plan.Plan, error) {
	if e.outdated {
		if err := e.look(ctx); err != nil {
			return plan.Plan{}, err
		}
	}
	e.outdated = false
	pl, err := e.judge(ctx)
	if err != nil {
		return pl, err
	}
	seen := e.addressless(&pl)
	if len(seen) == 0 && !e.unknownLinks(&pl) {
		return pl, nil
	}
	if err = e.look(ctx); err == nil {
		pl, err = e.judge(ctx)
	}
	e.holdUnseen(&pl, seen)
	return pl, err
}

// addressless returns the removals that would be held if only the address that
// the route follows from were known.
func (e *Enforcer) addressless(pl *plan.Plan) map[plan.Route]bool {
	out := map[plan.Route]bool{}
	for i := range pl.Actions {
		if a := &pl.Actions[i]; a.Kind == plan.Remove && !a.Hold && plan.MustReturn(pl.Policy, &a.Route) {
			out[a.Route.Identity()] = true
		}
	}
	return out
}

// holds reports whether routes are held that may have come after the facts were
// read. Nothing of them may be forgotten by those facts: the address that a route
// needs can have come with it.
func holds(actions []plan.Action) bool {
	return slices.ContainsFunc(actions, func(a plan.Action) bool { return a.Kind == plan.Remove && a.Hold })
}

// holdUnseen holds what came with its address after the facts were read once more.
// The next reading, with facts that are newer, forgets what has no address.
func (e *Enforcer) holdUnseen(pl *plan.Plan, seen map[plan.Route]bool) {
	for i := range pl.Actions {
		a := &pl.Actions[i]
		if a.Kind == plan.Remove && !a.Hold && plan.MustReturn(pl.Policy, &a.Route) && !seen[a.Route.Identity()] {
			a.Hold = true
		}
	}
}

// judge reads the table and decides. The table is streamed, not kept.
func (e *Enforcer) judge(ctx context.Context) (plan.Plan, error) {
	var failed error
	e.marks.begin()
	pl := plan.Make(plan.Input{
		Policy: e.policy(), Held: e.planHeld(), Links: e.facts.Links, Baseline: e.baseline, Before: e.before,
		Table: func(yield func(plan.Route) bool) {
			for r, err := range e.sys.Table(ctx) {
				if err != nil {
					failed = err
					return
				}
				if e.marks.judge(&r); !yield(r) {
					return
				}
			}
		},
	})
	if failed != nil {
		return plan.Plan{}, fmt.Errorf("read main table: %w", failed)
	}
	return pl, nil
}

// exposedSince is when what this reading found is taken to have begun: with the
// first hint or announcement since the last reading, for the table was right then.
// What stood before the connection is exposed since it is known.
func (e *Enforcer) exposedSince() time.Time {
	if e.baseline || e.hinted.IsZero() {
		return time.Now()
	}
	return e.hinted
}

// occasion says on which path actions are carried out, and since when what
// they answer was known.
type occasion struct {
	path   string
	seen   time.Time
	events map[plan.Slot]*Event // the announcements, on the edge path
}

// carryOut applies actions in order, with the journal around them: written
// down, then deleted; given back, then crossed out. It reports whether anything
// changed.
func (e *Enforcer) carryOut(ctx context.Context, actions []plan.Action, on occasion) (progress bool) {
	actions, ids := e.writeDown(actions, on.events == nil)
	// A crash here leaves entries of routes that still stand: giving them back
	// finds them there.
	e.markActions(actions)
	atRisk := e.holdAtRisk(actions)
	e.demote(actions)
	errs := e.apply(ctx, actions, e.tallyFor)
	// A crash here leaves the entries of what was deleted, which is right, and
	// those of what was given back, which are found to be there.
	crossed := atRisk
	for i := range actions {
		a := &actions[i]
		errs[i] = e.displaced(errs[i])
		crossed = append(crossed, e.outcome(a, errs[i], ids[i], on)...)
		e.note(a, errs[i], on)
		progress = progress || (errs[i] == nil && a.Kind != plan.Forget)
	}
	e.forget(crossed...)
	e.tellRest()
	return progress
}

// outcome returns the entries that an action's result crosses out.
func (e *Enforcer) outcome(a *plan.Action, err error, id uint64, on occasion) []uint64 {
	already := errors.Is(err, ErrAlready)
	switch {
	case a.Kind == plan.Forget, a.Kind == plan.Restore && (err == nil || already || errors.Is(err, ErrGone)):
		return []uint64{a.Held}
	case a.Kind != plan.Remove || id == 0 || id == a.Held: // not written down anew
		return nil
	case err != nil && !already:
		return []uint64{id} // it still stands
	case already && on.events != nil && !e.isHeld(a):
		return []uint64{id} // an announcement waited so long that its owner has taken it back
	case a.Held != 0:
		return []uint64{a.Held} // the newer copy is held now
	}
	return nil
}

// isHeld reports whether the very route of a removal was held before, whatever its
// lifetime was.
func (e *Enforcer) isHeld(a *plan.Action) bool {
	h := e.held.get(a.Held)
	return h != nil && h.Route.Same(a.Route)
}

// writeDown journals what must come back and returns the actions that may be
// carried out, with the entry of each. What cannot be written down is not
// deleted.
func (e *Enforcer) writeDown(actions []plan.Action, placed bool) ([]plan.Action, []uint64) {
	routes := make([]holding, 0, e.mustWriteOf(actions))
	for i := range actions {
		switch a := &actions[i]; {
		case e.mustWrite(a):
			h := e.replacing(a.Held, &a.Route, a.First)
			h.of = cmp.Or(h.of, e.tallyFor(a))
			if !placed && !h.first && h.place == 0 {
				h.place = e.held.lastPlace(a.Route.Slot()) // it came behind them
			}
			routes = append(routes, h)
		case e.renewsLife(a):
			e.relive(a.Held, &a.Route)
		}
	}
	written, err := e.hold(routes, placed)
	if err != nil {
		return e.leaveOut(actions, err)
	}
	ids := make([]uint64, len(actions))
	for i := range actions {
		switch {
		case e.mustWrite(&actions[i]):
			ids[i], written = written[0], written[1:]
		case actions[i].Kind == plan.Remove:
			ids[i] = actions[i].Held
		}
	}
	return actions, ids
}

// mustWriteOf returns how many of the actions need an entry of their own.
func (e *Enforcer) mustWriteOf(actions []plan.Action) (n int) {
	for i := range actions {
		if e.mustWrite(&actions[i]) {
			n++
		}
	}
	return n
}

// mustWrite reports whether a removal needs an entry of its own. A route that is held
// already needs none, unless its owner changed an attribute that only its bytes show. A
// route with a lifetime keeps its first bytes: see relive.
func (e *Enforcer) mustWrite(a *plan.Action) bool {
	if a.Kind != plan.Remove || !a.Hold {
		return false
	}
	h := e.held.get(a.Held)
	return h == nil || !h.Route.Same(a.Route) || !e.renewsLife(a) && (h.Route.Expires != a.Route.Expires || h.Route.Raw != a.Route.Raw)
}

// renewsLife reports whether a removal is of a held route whose lifetime was renewed.
// Where a router's word decides, it can also be made endless, or be announced before
// it is set.
func (e *Enforcer) renewsLife(a *plan.Action) bool {
	h := e.held.get(a.Held)
	return a.Kind == plan.Remove && a.Hold && h != nil && h.Route.Same(a.Route) &&
		(a.Route.Expires != 0 || h.Route.Expires != 0 && a.Route.Origin != plan.Foreign)
}

// leaveOut drops the removals that could not be written down, and says so.
func (e *Enforcer) leaveOut(actions []plan.Action, cause error) ([]plan.Action, []uint64) {
	var out []plan.Action
	left := 0
	for _, a := range actions {
		if !e.mustWrite(&a) {
			out = append(out, a)
			continue
		}
		left++
		e.unwritten = true
		e.fail(a.Verdict, fmt.Errorf("%s stays: it could not be written down and so not be given back: %w", e.text(&a.Route), cause))
	}
	e.log.error("journal cannot be written: conflicting routes stay", "routes", left, "err", cause)
	return out, make([]uint64, len(out))
}
