package enforce

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/culvert-project/culvert/enforce/plan"
)

// Mark is what is remembered of a route that we put, or may put: others may use our
// protocol number, and theirs must not be taken away as ours.
type Mark struct {
	Dst  netip.Prefix `json:"dst"`
	Link uint32       `json:"link,omitempty"` // 0 for a route that leads nowhere
}

// MarkStore remembers the marks beyond the process. A [Journal] that is one too
// tells our routes from others' that look like ours.
type MarkStore interface {
	// LoadMarks returns the marks. They are not known where the last process kept
	// none but may have left routes: then what looks like ours is ours, once.
	LoadMarks() (marks []Mark, known bool)
	// KeepMarks changes the marks. What is added is durable on return.
	KeepMarks(MarkChange) error
}

// MarkChange is what KeepMarks changes.
type MarkChange struct {
	Add  []Mark `json:"add,omitempty"`
	Drop []Mark `json:"drop,omitempty"`
	All  bool   `json:"all,omitempty"` // no route is ours but those marked
}

// marksOf returns the marks of a route, one for each interface.
func marksOf(r *plan.Route) (out []Mark) {
	if r.Type != plan.Unicast {
		return []Mark{{Dst: r.Dst}}
	}
	for hop := range r.Hops() {
		out = append(out, Mark{r.Dst, hop.Link})
	}
	return out
}

// marks are the routes that are ours. Without a store every route is that looks
// like it.
type marks struct {
	store    MarkStore
	set      map[Mark]bool // that are written down
	unsaved  map[Mark]bool // that could not be: only this process knows them
	known    bool
	standing map[Mark]bool // of the last reading: those that look like ours and are
}

func (m *marks) load(j Journal) {
	if m.store, _ = j.(MarkStore); m.store == nil {
		return
	}
	var list []Mark
	list, m.known = m.store.LoadMarks()
	m.set, m.unsaved = map[Mark]bool{}, map[Mark]bool{}
	for _, k := range list {
		m.set[k] = true
	}
}

// copied knows what m knows, and writes nothing down.
func (m *marks) copied() marks {
	if m.store == nil {
		return marks{}
	}
	return marks{store: noMarks{}, set: maps.Clone(m.set), unsaved: maps.Clone(m.unsaved), known: m.known}
}

type noMarks struct{}

func (noMarks) LoadMarks() ([]Mark, bool)  { return nil, true }
func (noMarks) KeepMarks(MarkChange) error { return nil }

// begin starts a reading of the table.
func (m *marks) begin() { m.standing = map[Mark]bool{} }

// judge makes a route another's that only looks like ours.
func (m *marks) judge(r *plan.Route) {
	if m.store == nil || r.Origin != plan.Own {
		return
	}
	mine := !m.known
	for _, k := range marksOf(r) {
		if mine = mine || m.set[k] || m.unsaved[k]; mine {
			m.standing[k] = true
		}
	}
	if !mine {
		r.Origin = plan.Foreign
	}
}

// keep writes down, before they are put, those that are not yet.
func (m *marks) keep(list []Mark) error {
	if m.store == nil {
		return nil
	}
	var fresh []Mark
	for _, k := range list {
		if !m.set[k] {
			fresh = append(fresh, k)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	err := m.store.KeepMarks(MarkChange{Add: fresh})
	for _, k := range fresh {
		if err != nil {
			m.unsaved[k] = true
		} else {
			m.set[k] = true
			delete(m.unsaved, k)
		}
	}
	return err
}

// end takes in a whole reading: what stands of ours is known from now on, and what
// neither stands nor may be put is crossed out.
func (m *marks) end(wanted []Mark) error {
	if m.store == nil {
		return nil
	}
	need := maps.Clone(m.standing)
	for _, k := range wanted {
		need[k] = true
	}
	var add, drop []Mark
	for k := range need {
		if !m.set[k] {
			add = append(add, k)
		}
	}
	for k := range m.set {
		if !need[k] {
			drop = append(drop, k)
		}
	}
	if m.known && len(add)+len(drop) == 0 {
		return nil
	}
	if err := m.store.KeepMarks(MarkChange{Add: add, Drop: drop, All: true}); err != nil {
		return err
	}
	m.set, m.known = need, true
	clear(m.unsaved)
	return nil
}

// markPolicy writes down what the edge path may put by a policy, before it has the
// policy: nothing is written there.
func (e *Enforcer) markPolicy(p *plan.Policy) {
	if !e.opt.Audit {
		e.tellMarks(e.marks.keep(policyMarks(p)))
	}
}

func policyMarks(p *plan.Policy) (out []Mark) {
	for en := range p.Entries() {
		if en.Class == plan.Protected && p.MayPut(en) {
			out = append(out, marksOf(&en.Route)...)
		}
	}
	return out
}

// markActions writes down what actions put: routes of our own, and those that stand
// for a moment in place of the way to a gateway.
func (e *Enforcer) markActions(actions []plan.Action) {
	seen := map[Mark]bool{}
	for i := range actions {
		switch a := &actions[i]; {
		case a.Kind == plan.Put:
			for _, k := range marksOf(&a.Route) {
				seen[k] = true
			}
		case a.Kind == plan.Restore:
			for hop := range a.Route.Hops() {
				if via := hop.Via; via.IsValid() && a.Route.NexthopID == 0 {
					seen[Mark{netip.PrefixFrom(via, via.BitLen()), hop.Link}] = true
				}
			}
		}
	}
	e.tellMarks(e.marks.keep(slices.Collect(maps.Keys(seen))))
}

// settleMarks is for a reading that found nothing left to do.
func (e *Enforcer) settleMarks() {
	if !e.opt.Audit {
		e.tellMarks(e.marks.end(policyMarks(e.policy())))
	}
}

// tellMarks tells of marks that could not be written. What protects is put all the
// same: after a crash it would be left as another's.
func (e *Enforcer) tellMarks(err error) {
	if unmarked := err != nil; unmarked != e.unmarked {
		if e.unmarked = unmarked; unmarked {
			e.log.error("routes of our own are not written down: a crash would leave them", "err", err)
		}
	}
}

func compareMarks(a, b Mark) int {
	return cmp.Or(plan.ComparePrefix(a.Dst, b.Dst), cmp.Compare(a.Link, b.Link))
}
