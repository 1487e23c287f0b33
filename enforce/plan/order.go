package plan

import (
	"cmp"
	"slices"
)

// Within a slot the order of the list decides who wins, and Linux lets a route
// be put back at the list's ends only. So what is taken out of a slot is taken
// from its ends inward, and given back the other way round.

// candidate is a route that may have to go: whether it must, only the refined
// policy can tell.
type candidate struct {
	route   Route
	verdict Verdict // under the refined policy
	behind  bool    // a route of the slot that stays comes before it
	ahead   bool    // a route of the slot that stays comes after it
}

// consider takes in a candidate. A slot's routes come one after the other, so
// of those that stay the last is all there is to remember.
func (m *maker) consider(r *Route) {
	slot := r.Slot()
	m.bySlot[slot] = append(m.bySlot[slot], len(m.candidates))
	if r.OnLink() {
		m.onLink = append(m.onLink, len(m.candidates))
	}
	m.candidates = append(m.candidates, candidate{route: r.Clone(), behind: slot == m.stay})
}

// stays notes that a route stays, for the candidates of its slot.
func (m *maker) stays(r *Route) {
	m.stay = r.Slot()
	for _, i := range m.bySlot[m.stay] {
		m.candidates[i].ahead = true
	}
}

// judgeCandidates judges the candidates by the refined policy. Those that need
// not go are routes that stay, for the others of their slots.
func (m *maker) judgeCandidates() {
	slices.SortStableFunc(m.candidates, func(a, b candidate) int { return compareSlot(a.route.Slot(), b.route.Slot()) })
	var stay Slot
	for i := range m.candidates {
		c := &m.candidates[i]
		c.verdict = Judge(m.p, &c.route)
		if c.verdict.Decision != Conflict {
			stay = c.route.Slot()
		}
		c.behind = c.behind || c.route.Slot() == stay
	}
	stay = Slot{}
	for i := range slices.Backward(m.candidates) {
		c := &m.candidates[i]
		if c.verdict.Decision != Conflict {
			stay = c.route.Slot()
		}
		c.ahead = c.ahead || c.route.Slot() == stay
	}
}

// first reports whether the route goes back ahead of its slot. One between
// routes that stay does not: ahead of both, it would take traffic that it never
// had.
func (c *candidate) first() bool { return c.ahead && !c.behind }

// outsideIn orders removals so that those of a slot go from its ends inward:
// also when only some were carried out, restoring those puts each in its place.
func outsideIn(removals []Action) []Action {
	out := make([]Action, 0, len(removals))
	for i := range removals {
		if removals[i].First {
			out = append(out, removals[i])
		}
	}
	for i := range slices.Backward(removals) {
		if !removals[i].First {
			out = append(out, removals[i])
		}
	}
	slices.SortStableFunc(out, func(a, b Action) int { return compareSlot(a.Route.Slot(), b.Route.Slot()) })
	return out
}

// orderRestore puts slots whose routes need no gateway before those that do,
// for what holds a gateway must stand first. Within a slot the last removed
// comes back first.
func orderRestore(back []Action) {
	needs, free, subnet := map[Slot]bool{}, map[Slot]bool{}, map[Slot]bool{}
	for i := range back {
		r := &back[i].Route
		s := r.Slot()
		needs[s] = needs[s] || r.gated()
		free[s] = free[s] || !r.gated()
		subnet[s] = subnet[s] || r.Connected()
	}
	rank := func(s Slot) int {
		switch {
		case !needs[s]:
			return 0
		case subnet[s]: // other gateways are likely to wait for part of it
			return 1
		case free[s]: // or perhaps
			return 2
		}
		return 3
	}
	slices.SortFunc(back, func(a, b Action) int {
		x, y := a.Route.Slot(), b.Route.Slot()
		return cmp.Or(cmp.Compare(rank(x), rank(y)), compareSlot(x, y), cmp.Compare(b.Held, a.Held))
	})
}

func compareSlot(a, b Slot) int {
	return cmp.Or(
		ComparePrefix(a.Dst, b.Dst),
		ComparePrefix(a.Src, b.Src),
		cmp.Compare(a.TOS, b.TOS),
		cmp.Compare(a.Metric, b.Metric),
	)
}
