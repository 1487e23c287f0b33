package enforce

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

// tally counts what was done for a session, where it is done: by [Enforcer.apply]
// in the loop and by [Event.count] on the edge path, and nowhere else. Reports may group
// changes; counts never do.
type tally struct {
	removed, readded, restored, withdrawn atomic.Uint64

	// changed is when the session ended, or was last asked to protect something else.
	// Only the loop uses it.
	changed time.Time

	owner *session // open or not; nil for the sum
	all   *tally   // the sum of all sessions, open or not, which counts the same change; nil for the sum
}

// count adds one change of the table. It may be called from any goroutine.
func (t *tally) count(k plan.Kind) {
	switch {
	case t == nil:
		return
	case k == plan.Remove:
		t.removed.Add(1)
	case k == plan.Put:
		t.readded.Add(1)
	case k == plan.Restore:
		t.restored.Add(1)
	case k == plan.Withdraw, k == plan.Lift:
		t.withdrawn.Add(1)
	}
	t.all.count(k)
}

func (t *tally) totals() Totals {
	return Totals{Removed: t.removed.Load(), Readded: t.readded.Load(), Restored: t.restored.Load(), Withdrawn: t.withdrawn.Load()}
}

// count adds what an answer changed, once.
func (ev *Event) count() {
	if ev.counted {
		return
	}
	ev.counted = true
	if ev.Removed {
		ev.Answer.tally.count(plan.Remove)
	}
	if ev.Readded {
		ev.Answer.tally.count(plan.Put)
	}
}

// apply carries actions out and counts what they changed, each for its session. A change
// whose session is not known is counted in the sum alone.
func (e *Enforcer) apply(ctx context.Context, actions []plan.Action, of func(*plan.Action) *tally) []error {
	errs := e.sys.Apply(ctx, actions)
	for i := range actions {
		if !Changed(errs[i]) {
			continue
		}
		if t := of(&actions[i]); t != nil {
			t.count(actions[i].Kind)
		} else {
			e.totals.count(actions[i].Kind)
		}
	}
	return errs
}

// tallyFor returns where an action is counted, or nil. A route that comes back counts for
// the session for which it was removed, even if that has ended or no longer protects it.
func (e *Enforcer) tallyFor(a *plan.Action) *tally {
	v := e.view.Load()
	switch a.Kind {
	case plan.Remove:
		return v.tallyOf(a.Verdict.Entry)
	case plan.Restore:
		if t := e.held.tally(a.Held); t != nil {
			return t
		}
	}
	if t := v.tallyOf(plan.Judge(v.policy, &a.Route).Entry); t != nil || e.closing == nil {
		return t
	}
	return &e.closing.tally
}

// owner returns the open session that a tally belongs to, or nil.
func (e *Enforcer) owner(t *tally) *session {
	if t == nil || !slices.Contains(e.sessions, t.owner) {
		return nil
	}
	return t.owner
}

// groupKey is what the removals of one group have in common.
type groupKey struct {
	prefix   netip.Prefix // protected
	tunnel   uint32
	link     uint32 // that they lead by
	protocol uint8
	port     uint32
	failed   bool
	readded  bool // routes put back, not removals
}

// group is removals, or tunnel's routes put back, that came too fast to be reported one
// by one.
type group struct {
	verdict     plan.Verdict
	tally       *tally
	change      Change
	sample      plan.Route // the first of them
	protocol    uint8
	port        uint32
	process     string
	path        string
	err         error
	count       uint64
	first, last time.Time
	exposed     time.Duration // the longest
}

// groupsKept bounds the groups. When there are so many, an event that fits none goes to
// the group of its protected prefix and tunnel alone, of which there is no endless number.
const groupsKept = 256

// groups are the groups that were not told yet. The zero value is empty.
type groups map[groupKey]*group

// add puts an event into its group; one that removed a route and put one back, into two.
func (g *groups) add(ev *Event, path string) {
	if ev.Readded {
		put := *ev
		put.Route, put.Err = *ev.Answer.Put, nil
		g.join(&put, path, true)
	}
	if ev.Removed || ev.Answer.Delete && ev.Err != nil {
		g.join(ev, path, false)
	}
}

func (g *groups) join(ev *Event, path string, readded bool) {
	v := &ev.Answer.Verdict
	if v.Entry == nil {
		return
	}
	if *g == nil {
		*g = groups{}
	}
	key := groupKey{v.Entry.Prefix, v.Entry.Tunnel, v.Link, ev.Route.Protocol, ev.Port, ev.Err != nil, readded}
	in := (*g)[key]
	if in == nil && len(*g) >= groupsKept {
		key = groupKey{prefix: v.Entry.Prefix, tunnel: v.Entry.Tunnel, failed: key.failed, readded: readded}
		in = (*g)[key]
	}
	if in == nil {
		in = &group{verdict: *v, tally: ev.Answer.tally, change: ev.Change, sample: ev.Route.Clone(), protocol: key.protocol, port: key.port, path: path, err: ev.Err, first: ev.Seen}
		(*g)[key] = in
	}
	in.count++
	in.last = ev.Done
	in.exposed = max(in.exposed, ev.Done.Sub(ev.Seen))
	if ev.Process != "" {
		in.process = ev.Process
	}
}

// tellGroups tells of the removals that were not told one by one.
func (e *Enforcer) tellGroups(list groups) {
	for key, g := range list {
		what, why := "removed", g.verdict.Explain(e.name)
		if key.readded {
			what, why = "readded", readdedWhy(g.change)
		}
		ev := Event{Route: g.sample, Answer: Answer{Verdict: g.verdict, tally: g.tally}, Err: g.err, Seen: g.first, Done: g.last, Port: g.port, Process: g.process}
		in := e.incident(ev, what, why)
		in.By.Protocol = e.opt.ProtocolName(g.protocol)
		in.Path, in.Count, in.Exposed = g.path, g.count, g.exposed.Microseconds()
		if g.count > 1 {
			e.sumUp(&in, g)
		}
		e.tell(in)
	}
}

// sumUp makes the record of a group's first the record of them all.
func (e *Enforcer) sumUp(in *Incident, g *group) {
	const faster = "they came faster than they could be told one by one"
	if in.What == "readded" {
		in.Reason = fmt.Sprintf("%s, %d times: %s", in.Reason, g.count, faster)
		return
	}
	in.Reason = fmt.Sprintf("%d routes like %s, %s: %s", g.count, g.sample.Dst, in.Reason, faster)
	in.Route = g.verdict.Entry.Prefix.String()
	if g.verdict.Link != 0 {
		in.Route += " dev " + e.name(g.verdict.Link)
	}
}

// toldAtOnce is how many removals of one reading are told one by one.
const toldAtOnce = 256

// tellRemoval tells of a removal by the loop, by itself or in its group.
func (e *Enforcer) tellRemoval(a *plan.Action, on occasion) {
	if e.told++; e.told <= toldAtOnce {
		e.tell(e.removal(a, on))
		return
	}
	ev := Event{Route: a.Route, Answer: Answer{Verdict: a.Verdict, tally: e.tallyFor(a)}, Removed: true, Seen: on.seen, Done: time.Now()}
	if was := on.events[a.Route.Slot()]; was != nil {
		ev.Seen, ev.Port, ev.Process = was.Seen, was.Port, was.Process
	}
	e.grouped.add(&ev, on.path)
}

// tellRest tells of what is grouped, by the loop and before it.
func (e *Enforcer) tellRest() {
	grouped := e.grouped
	e.told, e.grouped = 0, nil
	e.tellGroups(grouped)
	e.tellGroups(e.sink.takeGroups())
}
