package enforce

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

// incidentRing keeps the last incidents.
type incidentRing struct {
	list []Incident // that of ID n is at (n-1) mod incidentsKept
	next uint64
}

const incidentsKept = 256

func (r *incidentRing) add(in Incident) Incident {
	r.next++
	in.ID = r.next
	if len(r.list) < incidentsKept {
		r.list = append(r.list, in)
	} else {
		r.list[(in.ID-1)%incidentsKept] = in
	}
	return in
}

// all returns them, the oldest first.
func (r *incidentRing) all() []Incident {
	if len(r.list) < incidentsKept {
		return append([]Incident{}, r.list...)
	}
	oldest := r.next % incidentsKept
	return slices.Concat(r.list[oldest:], r.list[:oldest])
}

// contests counts the routes that come back again and again.
type contests struct {
	list map[contestKey]*Contest
}

type contestKey struct {
	slot   plan.Slot
	link   uint32
	tunnel string
}

// contestsKept bounds the memory that somebody adding ever new routes can take.
const contestsKept = 1024

func (c *contests) count(r *plan.Route, in Incident) {
	if c.list == nil {
		c.list = map[contestKey]*Contest{}
	}
	if len(c.list) >= contestsKept {
		c.thin()
	}
	key := contestKey{slot: r.Slot(), link: r.Hop.Link, tunnel: in.Tunnel}
	ct := c.list[key]
	if ct == nil {
		ct = &Contest{Route: in.Route}
		c.list[key] = ct
	}
	ct.Times++
	ct.By = in.By
}

// thin makes room for half: the routes that came least often are forgotten, so that
// ever new ones hide none that comes again and again.
func (c *contests) thin() {
	var times []uint64
	for _, ct := range c.list {
		times = append(times, ct.Times)
	}
	slices.Sort(times)
	least := times[contestsKept/2]
	maps.DeleteFunc(c.list, func(_ contestKey, ct *Contest) bool { return ct.Times < least })
	for key, ct := range c.list {
		if len(c.list) <= contestsKept/2 {
			return
		}
		if ct.Times == least {
			delete(c.list, key)
		}
	}
}

// of returns the contests on a tunnel, the fiercest first.
func (c *contests) of(tunnel string) []Contest {
	var out []Contest
	for k, ct := range c.list {
		if k.tunnel == tunnel && ct.Times > 1 {
			out = append(out, *ct)
		}
	}
	slices.SortFunc(out, func(a, b Contest) int {
		return cmp.Or(cmp.Compare(b.Times, a.Times), cmp.Compare(a.Route, b.Route))
	})
	return out
}

// incident makes the record of an event.
func (e *Enforcer) incident(ev Event, what, reason string) Incident {
	in := Incident{
		What: what, Route: e.text(&ev.Route), Reason: reason, Path: "edge",
		By:   Adder{Protocol: e.opt.ProtocolName(ev.Route.Protocol), Port: ev.Port, Process: ev.Process},
		Seen: ev.Seen, Gone: ev.Done, Exposed: max(0, ev.Done.Sub(ev.Seen).Microseconds()),
	}
	if t := ev.Answer.tally; t != nil { // though it ended since
		in.Tunnel = t.owner.Tunnel
	} else if s := e.sessionOf(ev.Answer.Verdict); s != nil {
		in.Tunnel = s.Tunnel
	}
	if ev.Err != nil {
		in.What, in.Error, in.Gone = "failed", ev.Err.Error(), time.Time{}
	}
	return in
}

// removal makes the record of a removal by the level path, or of one that had
// to be written down first.
func (e *Enforcer) removal(a *plan.Action, on occasion) Incident {
	ev := Event{Route: a.Route, Answer: Answer{Verdict: a.Verdict}, Seen: on.seen, Done: time.Now()}
	if was := on.events[a.Route.Slot()]; was != nil {
		ev.Seen, ev.Port, ev.Process = was.Seen, was.Port, was.Process
	}
	in := e.incident(ev, "removed", a.Verdict.Explain(e.name))
	in.Path = on.path
	return in
}

// tell keeps an incident, logs it and shows it to whoever observes.
func (e *Enforcer) tell(in Incident) {
	in = e.incidents.add(in)
	e.log.limited(in.What, "route", in.Route, "reason", in.Reason, "tunnel", in.Tunnel, "by", in.By.String(),
		"exposed_us", in.Exposed, "path", in.Path, "err", in.Error)
	if e.opt.Observe != nil {
		e.opt.Observe(in)
	}
}

// String names the adder as far as it is known.
func (a Adder) String() string {
	switch {
	case a.Process != "":
		return fmt.Sprintf("%s (process %d, protocol %s)", a.Process, a.Port, a.Protocol)
	case a.Port != 0:
		return fmt.Sprintf("netlink port %d (protocol %s)", a.Port, a.Protocol)
	}
	return "protocol " + a.Protocol
}

// reports remembers what was told to stand, so that a reading of the table
// tells only of what came since the last one.
type reports struct {
	last, now map[uint64]bool // what stood, by a hash of the words
	told      int             // in this reading
	untold    uint64          // more came than are told one by one
	words     string          // of the first of those
}

const (
	reportsKept   = 1 << 16 // beyond it nothing is told one by one
	reportsAtOnce = 64
)

var reportSeed = maphash.MakeSeed()

// begin starts a reading of the table.
func (r *reports) begin() {
	r.last, r.now, r.told, r.untold, r.words = r.now, map[uint64]bool{}, 0, 0, ""
}

// isNew notes that something stands, and reports whether it is to be told of.
func (r *reports) isNew(text string) bool {
	if r.now == nil {
		r.now = map[uint64]bool{}
	}
	h := maphash.String(reportSeed, text)
	known := r.now[h] || r.last[h]
	full := len(r.now) >= reportsKept
	if !full {
		r.now[h] = true
	}
	if known || full && len(r.last) >= reportsKept {
		return false // told, or as good as told with those that were too many
	}
	if r.told++; r.told <= reportsAtOnce && !full {
		return true
	}
	if r.untold++; r.words == "" {
		r.words = text
	}
	return false
}

// tellUntold tells of what was too much to be told one by one.
func (e *Enforcer) tellUntold() {
	if e.reported.untold == 0 {
		return
	}
	e.tell(Incident{What: "reported", Route: e.reported.words, Path: "level", Seen: e.lookedAt, Count: e.reported.untold,
		Reason: fmt.Sprintf("%d routes like this take protected traffic and stay: they are too many to be told one by one", e.reported.untold)})
	e.reported.untold = 0
}

// report tells of a route that takes protected traffic and stays.
func (e *Enforcer) report(r *plan.Route, v plan.Verdict, ev Event) {
	if fresh := e.reported.isNew(e.text(r)); !fresh && ev.Done.IsZero() {
		return
	}
	ev.Route, ev.Answer.Verdict = *r, v
	in := e.incident(ev, "reported", v.Explain(e.name))
	in.Gone, in.Exposed = time.Time{}, 0
	e.tell(in)
}

// reportText tells once of something that enforcing would have added.
func (e *Enforcer) reportText(kind plan.Kind, r *plan.Route, why string) {
	if !e.reported.isNew(kind.String() + " " + e.text(r)) {
		return
	}
	in := Incident{What: "reported", Route: e.text(r), Reason: "missing: " + why, Seen: e.lookedAt, Path: "level"}
	if s := e.sessionFor(r); s != nil {
		in.Tunnel = s.Tunnel
	}
	e.tell(in)
}

// name returns an interface's name, or its index where it was never seen.
func (e *Enforcer) name(index uint32) string {
	if n := e.names[index]; n != "" {
		return n
	}
	return fmt.Sprintf("interface %d", index)
}

func (e *Enforcer) text(r *plan.Route) string { return RouteText(r, e.name, e.opt.ProtocolName) }

// RouteText writes a route in the manner of ip-route(8), with names for
// interfaces and protocols as the functions give them.
func RouteText(r *plan.Route, name func(uint32) string, protocol func(uint8) string) string {
	var w []string
	add := func(words ...string) { w = append(w, words...) }
	if r.Type != plan.Unicast {
		add(r.Type.String())
	}
	if add(r.Dst.String()); r.Src.IsValid() {
		add("from", r.Src.String())
	}
	if r.TOS != 0 {
		add("tos", fmt.Sprintf("%#x", r.TOS))
	}
	if r.NexthopID != 0 {
		add("nhid", fmt.Sprint(r.NexthopID))
	}
	for hop := range r.Hops() {
		if r.Multipath() {
			add("nexthop")
		}
		add(hopWords(hop, name)...)
	}
	if r.Origin == plan.Own && r.Protocol == 0 {
		add("proto culvert")
	} else {
		add("proto", protocol(r.Protocol))
	}
	if r.PrefSrc.IsValid() {
		add("src", r.PrefSrc.String())
	}
	if r.Metric != 0 {
		add("metric", fmt.Sprint(r.Metric))
	}
	return strings.Join(w, " ")
}

func hopWords(h plan.Hop, name func(uint32) string) []string {
	var w []string
	if h.Via.IsValid() {
		w = append(w, "via", h.Via.String())
	}
	if h.Link != 0 {
		w = append(w, "dev", name(h.Link))
	}
	return w
}
