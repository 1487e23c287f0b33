package enforce

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

// tally counts what was done for a session, where it is done: on the edge path as
// well as by the loop. What is told of it may be grouped, never what is counted.
type tally struct {
	removed, readded, restored atomic.Uint64

	// changed is when the session left, or was last asked to protect something else. It
	// is the loop's.
	changed time.Time
}

// count adds what an answer changed, once.
func (ev *Event) count() {
	t := ev.Answer.tally
	if t == nil || ev.counted {
		return
	}
	ev.counted = true
	if ev.Removed {
		t.removed.Add(1)
	}
	if ev.Readded {
		t.readded.Add(1)
	}
}

// groupKey is what removals have in common that are told as one.
type groupKey struct {
	prefix   netip.Prefix // protected
	tunnel   uint32
	link     uint32 // by which they lead
	protocol uint8
	port     uint32
	failed   bool
}

// group is removals that came faster than they could be told one by one.
type group struct {
	verdict     plan.Verdict
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

// groupsKept bounds the groups. Whatever differs from all of them is added to the
// one that any is like: what nobody can make without end is the protected prefix.
const groupsKept = 256

// groups are the groups that were not told yet. The zero value is empty.
type groups map[groupKey]*group

// add puts an event into its group.
func (g *groups) add(ev *Event, path string) {
	v := &ev.Answer.Verdict
	if v.Entry == nil {
		return
	}
	if *g == nil {
		*g = groups{}
	}
	key := groupKey{v.Entry.Prefix, v.Entry.Tunnel, v.Link, ev.Route.Protocol, ev.Port, ev.Err != nil}
	in := (*g)[key]
	if in == nil && len(*g) >= groupsKept {
		key = groupKey{prefix: v.Entry.Prefix, tunnel: v.Entry.Tunnel, failed: key.failed}
		in = (*g)[key]
	}
	if in == nil {
		in = &group{verdict: *v, sample: ev.Route.Clone(), protocol: key.protocol, port: key.port, path: path, err: ev.Err, first: ev.Seen}
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
	for _, g := range list {
		ev := Event{Route: g.sample, Answer: Answer{Verdict: g.verdict}, Err: g.err, Seen: g.first, Done: g.last, Port: g.port, Process: g.process}
		in := e.incident(ev, "removed", "")
		in.By.Protocol = e.opt.ProtocolName(g.protocol)
		in.Path, in.Count, in.Exposed = g.path, g.count, g.exposed.Microseconds()
		if g.count > 1 {
			in.Reason = fmt.Sprintf("%d routes like %s, %s: they came faster than they could be told one by one",
				g.count, g.sample.Dst, g.verdict.Explain(e.name))
			in.Route = g.verdict.Entry.Prefix.String()
			if g.verdict.Link != 0 {
				in.Route += " dev " + e.name(g.verdict.Link)
			}
		} else {
			in.Reason = g.verdict.Explain(e.name)
		}
		e.tell(in)
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
	ev := Event{Route: a.Route, Answer: Answer{Verdict: a.Verdict}, Seen: on.seen, Done: time.Now()}
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
