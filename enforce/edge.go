package enforce

import (
	"context"
	"errors"
	"slices"

	"github.com/culvert-project/culvert/enforce/plan"
)

// edge judges one announced route. It runs on the System's watch, between the
// announcement and the answer: it must not wait, allocate or log.
func (e *Enforcer) edge(change Change, r *plan.Route) Answer {
	v := e.view.Load()
	if v.policy.Empty() {
		return Answer{}
	}
	a := Answer{Verdict: plan.Judge(v.policy, r)}
	if change == Deleted {
		answerDeleted(v, r, &a)
	} else {
		answerAdded(v, r, &a)
	}
	if a.Delete && e.stay.Load().risks(r) {
		a.Delete = false // what the delete may take is written down first
	}
	a.tally = v.tallyOf(a.Verdict.Entry)
	return a
}

// answerDeleted puts a tunnel's own route back. What leads to a server may be
// what the transport leans on: the level path knows.
func answerDeleted(v *view, r *plan.Route, a *Answer) {
	en := a.Verdict.Entry
	switch a.Verdict.Decision {
	case plan.Ours:
		if r.Dst != en.Prefix || r.TOS != 0 || r.Src.IsValid() {
			return
		}
		a.Tell = true
		if !v.audit && v.mayPut(en) {
			a.Put = &en.Route
		}
	case plan.Keep:
		a.Tell = v.policy.Carries(r)
	}
}

// answerAdded deletes a conflicting route at once. It leaves to the loop a route that
// must come back, or may have stood before: that is written down first. It leaves to
// the level path a route that shares the tunnel's legs: that needs the whole table. And
// a route by an interface that was not looked at yet may be the tunnel's own, on an
// interface that it has just got.
func answerAdded(v *view, r *plan.Route, a *Answer) {
	switch a.Verdict.Decision {
	case plan.Report:
		a.Tell = true
	case plan.Keep:
		a.Tell = v.policy.Carries(r)
	case plan.Ours:
		a.Tell = betters(r, a.Verdict.Entry)
	case plan.Conflict:
		a.Tell = true
		if v.audit {
			return
		}
		if a.stood = v.mayHaveStood(r); a.stood {
			return
		}
		a.Delete = !a.Verdict.Shared && !plan.MustReturn(v.policy, r) && v.knows(r)
		if a.Verdict.Reason != plan.Longer && v.mayPut(a.Verdict.Entry) {
			// It may have replaced the tunnel's route: a replacement does not
			// name its victim.
			a.Put = &a.Verdict.Entry.Route
		}
	}
}

// mayHaveStood reports whether a conflict may have stood before the policy. Until the
// table has been read by the new policy nobody knows what stood, for announcements wait
// in the socket. A route that conflicted with the previous policy too did not stand: it
// came while that policy was in force.
func (v *view) mayHaveStood(r *plan.Route) bool {
	return v.before != nil && plan.Judge(v.before, r).Decision != plan.Conflict
}

// knows reports whether the route leads by interfaces that were looked at.
func (v *view) knows(r *plan.Route) bool {
	if !r.Multipath() {
		return r.Hop.Link == 0 || v.links[r.Hop.Link]
	}
	for hop := range r.Hops() {
		if hop.Link != 0 && !v.links[hop.Link] {
			return false
		}
	}
	return true
}

// mayPut reports whether the tunnel's route may be put at once. A route that culvert
// made up waits until the table has been read: the VPN's own may stand there.
func (v *view) mayPut(en *plan.Entry) bool {
	return v.policy.MayPut(en) && (v.before == nil || en.Known)
}

// betters reports whether r, a route of the tunnel's own, has a lower metric than the
// one that is known: then fewer routes compete with it.
func betters(r *plan.Route, en *plan.Entry) bool {
	return r.Dst == en.Prefix && r.TOS == 0 && !r.Src.IsValid() && r.Metric < en.Route.Metric
}

// event takes in what the edge path did, after the fact.
func (e *Enforcer) event(ctx context.Context, ev Event) {
	defer e.wantLevel("route event")
	if ev.Err = e.displaced(ev.Err); errors.Is(ev.Err, ErrAlready) {
		ev.Err = nil // Idle says it
	}
	e.tellReadded(&ev)
	if ev.Change == Deleted {
		return
	}
	if e.written.events[ev.Route.Slot()] != nil {
		e.removeWritten(ctx) // in the order in which they came
	}
	e.meet(ctx, &ev)
	v := plan.Judge(e.policy(), &ev.Route)
	switch {
	case ev.Removed && v.Decision != plan.Conflict && !outlived(&ev):
		e.amends(ctx, ev)
	case ev.Answer.Delete:
		e.eventRemoved(ev)
	case v.Decision == plan.Conflict && !e.opt.Audit && !v.Shared:
		e.mustWriteFirst(&ev, v)
	case v.Decision == plan.Conflict && v.Shared && e.hinted.IsZero():
		e.hinted = ev.Seen // the next reading takes it apart
	case v.Decision == plan.Conflict && e.opt.Audit, v.Decision == plan.Report:
		e.report(&ev.Route, v, ev)
	}
}

// meet reads the interfaces when a route names one that came since they were read:
// it may be one that the operator excludes, and it has a name.
func (e *Enforcer) meet(ctx context.Context, ev *Event) {
	for hop := range ev.Route.Hops() {
		if e.knowsLink(hop.Link) || !e.lookedAt.Before(ev.Seen) {
			continue
		}
		e.removeWritten(ctx) // as it was judged
		if err := e.look(ctx); err != nil {
			e.log.error("read interfaces", "err", err)
		}
		return
	}
}

// outlived reports whether a route was deleted for a session that was open then
// and has left since, or protects something else now: it came while connected, and
// does not come back.
func outlived(ev *Event) bool {
	t := ev.Answer.tally
	return t != nil && ev.Seen.Before(t.changed)
}

// amends puts back a route that the edge path deleted under a policy that was
// just being replaced by one that lets it stand.
func (e *Enforcer) amends(ctx context.Context, ev Event) {
	back := []plan.Action{{Kind: plan.Restore, Route: ev.Route}}
	e.markActions(back)
	e.tellRemoved(&ev)
	errs := e.apply(ctx, back, func(*plan.Action) *tally { return ev.Answer.tally })
	if errs[0] == nil {
		e.log.info("restore", "route", e.text(&ev.Route), "reason", "it was deleted by a policy that was just being replaced")
	}
	if errs[0] == nil || errors.Is(errs[0], ErrAlready) {
		return
	}
	// It cannot stand now: hold it like any other, so that it is not lost.
	if _, err := e.hold([]holding{{route: ev.Route, of: ev.Answer.tally}}, false); err != nil {
		e.log.error("route lost", "route", e.text(&ev.Route), "err", errors.Join(errs[0], err))
	}
}

// tellReadded tells of a tunnel's route that the edge path put back, or could not.
func (e *Enforcer) tellReadded(ev *Event) {
	put := *ev
	switch {
	case ev.Readded:
		put.Err = nil // what came of the Delete is told by itself
	case ev.Answer.Put == nil || ev.Change == Added || ev.Err == nil || harmless(ev.Err):
		return
	}
	put.Route = *ev.Answer.Put
	e.tell(e.incident(put, "readded", readdedWhy(ev.Change)))
}

func readdedWhy(c Change) string {
	if c == Added {
		return "the tunnel's route was replaced"
	}
	return "the tunnel's route was deleted"
}

// harmless reports whether an answer failed only because the tunnel is going.
func harmless(err error) bool { return errors.Is(err, ErrGone) || errors.Is(err, ErrNotNow) }

// eventRemoved records a route that the edge path deleted, or tried to.
func (e *Enforcer) eventRemoved(ev Event) {
	if ev.Idle {
		// The level path deleted it first, and has reported and held it; or its owner
		// took it back, and then it is no newer copy of a held route.
		return
	}
	e.tellRemoved(&ev)
	if ev.Err == nil {
		e.renew(&ev.Route)
	}
}

// tellRemoved reports a route that the edge path deleted, or tried to. One that was gone
// already is reported by whoever deleted it.
func (e *Enforcer) tellRemoved(ev *Event) {
	if ev.Idle {
		return
	}
	in := e.incident(*ev, "removed", ev.Answer.Verdict.Explain(e.name))
	e.contests.count(&ev.Route, in)
	e.tell(in)
}

// renew replaces the held copy of a route by the newer one that its owner added.
func (e *Enforcer) renew(r *plan.Route) {
	id := e.held.superseded(r)
	a := plan.Action{Kind: plan.Remove, Route: *r, Hold: true, Held: id}
	switch {
	case id == 0:
		return
	case e.renewsLife(&a):
		e.relive(id, r)
		return
	case !e.mustWrite(&a):
		return
	}
	if _, err := e.hold([]holding{e.replacing(id, r, false)}, false); err != nil {
		e.log.error("write journal", "route", e.text(r), "err", err)
		return // the older copy is still held
	}
	e.forget(id)
}

// written are routes that must come back, to be written down together and then
// deleted: a disk can be waited for once, not once for each. Each place in the
// table is in it once. The zero value is empty.
type written struct {
	actions []plan.Action
	events  map[plan.Slot]*Event
}

// writtenAtOnce bounds how many routes wait for the disk together: the first of
// them stands until the last is written.
const writtenAtOnce = 1024

// serve takes in an event and those that wait behind it, and returns how many.
func (e *Enforcer) serve(ctx context.Context, ev Event) (n int) {
	defer e.removeWritten(ctx)
	for n = 1; ; n++ {
		e.event(ctx, ev)
		if n == writtenAtOnce {
			return n
		}
		select {
		case ev = <-e.sink.Events():
		default:
			return n
		}
	}
}

// mustWriteFirst notes a route to delete that the edge path left to the loop. The route
// is held unless it came while what it conflicts with was protected, and nothing else
// wants it back: then the edge path left it because its interface was not known, or
// because the delete may take another route by mistake.
func (e *Enforcer) mustWriteFirst(ev *Event, v plan.Verdict) {
	if e.written.events == nil {
		e.written.events = map[plan.Slot]*Event{}
	}
	e.written.events[ev.Route.Slot()] = ev
	held := e.held.superseded(&ev.Route)
	a := &ev.Answer
	hold := held != 0 || a.stood || a.Verdict.Decision != plan.Conflict || plan.MustReturn(e.policy(), &ev.Route)
	e.written.actions = append(e.written.actions, plan.Action{Kind: plan.Remove, Route: ev.Route, Verdict: v, Hold: hold, Held: held,
		First: e.comesFirst(&ev.Route, v.Entry)})
}

// comesFirst reports whether r is the first of its slot: none that stays stands before
// it, as far as the last reading knows.
func (e *Enforcer) comesFirst(r *plan.Route, en *plan.Entry) bool {
	behind := func(o plan.Route) bool { return o.Slot() == r.Slot() }
	return r.Dst.Addr().Is4() && !(en != nil && behind(en.Route)) && !slices.ContainsFunc((*e.stay.Load())[r.Dst], behind)
}

// removeWritten writes down what was noted, then deletes it.
func (e *Enforcer) removeWritten(ctx context.Context) {
	w := e.written
	if e.written = (written{}); len(w.actions) > 0 {
		e.carryOut(ctx, w.actions, occasion{path: "edge", events: w.events})
	}
}
