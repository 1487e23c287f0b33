package enforce

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

// holding is a route to write down, and its place among the routes of its slot.
type holding struct {
	route plan.Route
	place uint64 // that of the older copy that it replaces; 0: its own
	first bool
	nets  []netip.Prefix // of its interfaces, when it is not read together with the facts
	of    *tally         // of the session for which it is removed; nil where that is not known
}

// replacing makes a holding of r that takes over the place of the held route id, if there
// is one.
func (e *Enforcer) replacing(id uint64, r *plan.Route, first bool) holding {
	if h := e.held.get(id); h != nil {
		return holding{route: *r, place: cmp.Or(h.Place, h.ID), first: h.First, nets: h.Nets, of: e.held.tally(id)}
	}
	return holding{route: *r, first: first}
}

// hold writes routes down. They are durable when it returns their entries' IDs.
// Placed says that they were read together with the facts: then the networks of
// their interfaces are written down too.
func (e *Enforcer) hold(routes []holding, placed bool) ([]uint64, error) {
	if len(routes) == 0 {
		return nil, nil
	}
	now := time.Now()
	entries := make([]Entry, len(routes))
	ids := make([]uint64, len(routes))
	for i := range routes {
		h := &routes[i]
		ids[i] = e.lastID + uint64(i) + 1
		entries[i] = Entry{ID: ids[i], Route: h.route, Taken: e.uptime(now), Since: now, Place: h.place, First: h.first, Nets: h.nets}
		if i > 0 && placed && sameWay(&h.route, &routes[i-1].route) { // as most are when there are many
			entries[i].Links, entries[i].Nets = entries[i-1].Links, entries[i-1].Nets
			continue
		}
		entries[i].Links = e.linkIDs(&h.route)
		if placed {
			entries[i].Nets = plan.Nets(&h.route, e.link)
		}
	}
	err := e.write(entries)
	for i := range routes {
		e.held.owe(ids[i], routes[i].of)
	}
	return ids, err
}

// sameWay reports whether two routes lead by the same interface, in the same family.
func sameWay(a, b *plan.Route) bool {
	return a.Hop.Link == b.Hop.Link && !a.Multipath() && !b.Multipath() && a.Dst.Addr().Is4() == b.Dst.Addr().Is4()
}

// demote has the routes that stay held come back behind those of their slot that now come
// back before them. It is written down first: a crash in between leaves the others held too.
func (e *Enforcer) demote(actions []plan.Action) {
	var entries []Entry
	var coming map[uint64]bool // asked for where equals are held alone
	comes := func(id uint64) bool {
		if coming == nil {
			coming = map[uint64]bool{}
			for i := range actions {
				coming[actions[i].Held] = actions[i].Kind == plan.Restore
			}
		}
		return coming[id]
	}
	for i := range actions {
		if a := &actions[i]; a.Kind == plan.Restore && a.First {
			entries = append(entries, e.held.demote(a, comes)...)
		}
	}
	if len(entries) == 0 {
		return
	}
	if err := e.journal.Hold(entries); err != nil {
		e.log.error("the places of held routes are not written down", "routes", len(entries), "err", err)
	}
}

// livesPause is the least time between two writes of renewed lifetimes. Each router
// advertisement renews some, and anybody on the link can send thousands a second: the
// loop must not wait for the disk each time. A crash loses the renewals of that time;
// the next advertisement makes up for it.
const livesPause = time.Minute

// relive renews the lifetime of a held route that its owner added again. The route's
// bytes stay the first ones: the kernel announces a route of a router advertisement
// before it has set the hop limit, and some before they have a lifetime. Where the
// announcement has none, the old lifetime begins anew.
func (e *Enforcer) relive(id uint64, r *plan.Route) {
	h := e.held.get(id)
	if h.Taken = e.uptime(time.Now()); !r.Dead && (r.Expires != 0 || r.Origin != plan.Leased) {
		h.Route.Expires = r.Expires
	}
	if e.lives == nil {
		e.lives = map[uint64]bool{}
	}
	e.lives[id] = true
}

// writeLives writes down the lifetimes that were renewed, when it is time to.
func (e *Enforcer) writeLives() {
	now := e.uptime(time.Now())
	if len(e.lives) == 0 || now-e.livesAt < livesPause {
		return
	}
	var entries []Entry
	for id := range e.lives {
		if h := e.held.get(id); h != nil {
			entries = append(entries, *h)
		}
	}
	if e.livesAt, e.lives = now, nil; len(entries) == 0 {
		return
	}
	if err := e.journal.Hold(entries); err != nil {
		e.log.error("renewed lifetimes are not written down", "routes", len(entries), "err", err)
	}
}

// write makes entries durable that have the next IDs.
func (e *Enforcer) write(entries []Entry) error {
	if err := e.journal.Hold(entries); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	e.lastID += uint64(len(entries))
	e.held.add(entries...)
	return nil
}

// secure sees to it that a crash would not lose what is held. Where it would, the
// sessions are failed: conflicts go on being removed, those that must come back
// are not.
func (e *Enforcer) secure() {
	j, ok := e.journal.(securer)
	if !ok {
		return
	}
	was := e.insecure
	if e.insecure = j.Secure(); e.insecure != nil {
		e.insecure = fmt.Errorf("what is held would be lost in a crash: %w", e.insecure)
		if was == nil {
			e.log.error("the journal keeps nothing", "routes", e.held.len(), "err", e.insecure)
		}
	}
	for _, s := range e.sessions {
		if s.err == nil || s.err == was {
			s.err = e.insecure
		}
	}
}

// displaced holds what a delete took beside what was meant, and returns the
// delete's own result.
func (e *Enforcer) displaced(err error) error {
	var d *DisplacedError
	if !errors.As(err, &d) {
		return err
	}
	displaced := make([]holding, len(d.Routes))
	for i := range d.Routes {
		displaced[i].route = d.Routes[i]
	}
	if _, failed := e.hold(displaced, false); failed != nil {
		e.log.error("routes lost", "first", e.text(&d.Routes[0]), "routes", len(d.Routes), "err", errors.Join(d.Why, failed))
	}
	e.wantLevel("a route was displaced")
	return d.Result
}

// holdAtRisk writes down the routes that stay but that a delete may take in place of
// the one it means. The System puts such a one back; only a crash in between needs
// the entries. They are crossed out after it. Where they cannot be written the
// deletes are made all the same: they hardly ever take a wrong one.
func (e *Enforcer) holdAtRisk(actions []plan.Action) []uint64 {
	var routes []holding
	known := map[plan.Route]bool{}
	for i := range actions {
		a := &actions[i]
		if a.Kind != plan.Remove {
			continue
		}
		for _, o := range (*e.stay.Load())[a.Route.Dst] {
			if a.Route.MayTake(&o) && !known[o.Identity()] {
				known[o.Identity()] = true
				// First: it would have been found ahead of the one that was meant.
				routes = append(routes, holding{route: o, first: true})
			}
		}
	}
	ids, err := e.hold(routes, false)
	if err != nil {
		e.log.error("routes that a delete may take by mistake are not written down", "routes", len(routes), "err", err)
		return nil
	}
	return ids
}

// forget crosses entries out. When that fails the worst is that they are given
// back once more, which finds them there.
func (e *Enforcer) forget(ids ...uint64) {
	if len(ids) == 0 {
		return
	}
	if err := e.journal.Forget(ids); err != nil {
		e.log.error("cross out journal entries", "err", err)
	}
	e.held.remove(ids...)
	for _, id := range ids {
		delete(e.notBack, id)
	}
}

// planHeld is the held routes as the decision wants them.
func (e *Enforcer) planHeld() []plan.Held {
	now := e.uptime(time.Now())
	out := make([]plan.Held, 0, e.held.len())
	for h := range e.held.all() {
		age := max(0, now-h.Taken)
		out = append(out, plan.Held{ID: h.ID, Route: h.Route, Age: uint32(age / time.Second), Place: h.Place, First: h.First, Nets: h.Nets})
	}
	return out
}

// uptime carries the last look's uptime forward to now.
func (e *Enforcer) uptime(now time.Time) time.Duration {
	if e.lookedAt.IsZero() {
		return e.facts.Uptime
	}
	return e.facts.Uptime + now.Sub(e.lookedAt)
}

// linkIDs names the interfaces of a route's legs as they are now.
func (e *Enforcer) linkIDs(r *plan.Route) []LinkID {
	var out []LinkID
	for hop := range r.Hops() {
		if l := e.link(hop.Link); l != nil {
			out = append(out, LinkID{Index: l.Index, Name: l.Name, HW: l.HW})
		}
	}
	return out
}

func (e *Enforcer) link(index uint32) *plan.Link {
	for i := range e.facts.Links {
		if e.facts.Links[i].Index == index {
			return &e.facts.Links[i]
		}
	}
	return nil
}

// dropStrangers forgets held routes whose interface is not the one it was. IPv6
// multipath routes lose the leg alone, as in the kernel.
func (e *Enforcer) dropStrangers(isStranger func(was LinkID, is *plan.Link) bool) {
	var ids []uint64
	var rests []Entry
	for h := range e.held.all() {
		if !slices.ContainsFunc(h.Links, func(id LinkID) bool { return isStranger(id, e.link(id.Index)) }) {
			continue
		}
		ids = append(ids, h.ID)
		if rest, ok := e.withoutStrangers(*h, isStranger); ok {
			rest.ID = e.lastID + uint64(len(rests)) + 1
			rests = append(rests, rest)
			continue
		}
		e.log.info("forget", "route", e.text(&h.Route), "reason", "its interface is another one now")
	}
	if len(rests) > 0 {
		if err := e.write(rests); err != nil {
			e.log.error("legs are lost with the one that went", "routes", len(rests), "err", err)
		}
	}
	e.forget(ids...)
}

// withoutStrangers reduces an IPv6 multipath route to the legs by interfaces that
// are those they were.
func (e *Enforcer) withoutStrangers(h Entry, isStranger func(was LinkID, is *plan.Link) bool) (Entry, bool) {
	if h.Route.Dst.Addr().Is4() || !h.Route.Multipath() || h.Route.NexthopID != 0 {
		return h, false
	}
	known := map[uint32]bool{}
	for _, id := range h.Links {
		known[id.Index] = !isStranger(id, e.link(id.Index))
	}
	var legs []plan.Hop
	for hop := range h.Route.Hops() {
		if known[hop.Link] {
			legs = append(legs, hop)
		}
	}
	h.Route = h.Route.WithHops(legs...)
	h.Links = slices.DeleteFunc(slices.Clone(h.Links), func(id LinkID) bool { return !known[id.Index] })
	return h, len(legs) > 0
}

// replaced tells an interface that took another's index while we watched. One
// that was merely renamed, or given another hardware address (as Wi-Fi does to
// hide), is still itself: to forget its routes would lose them.
func replaced(was LinkID, is *plan.Link) bool {
	return is != nil && (is.Name != was.Name && is.HW != was.HW || is.Type.Another(was.Type))
}
