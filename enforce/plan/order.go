package plan

import (
	"cmp"
	"slices"
)

// Within a slot the order of the list decides who wins, and Linux lets a route
// be put back at the list's ends only. So what is taken out of a slot is taken
// from its ends inward, and given back the other way round.
//
// Of IPv4's slots as much as possible is taken from the front. A delete takes the first
// route that fits, so a delete of the first route takes no other. And a route that comes
// back at the front stands before all that came meanwhile, as it would without culvert.

// candidate is a route that may have to go: whether it must, only the refined
// policy can tell.
type candidate struct {
	route   Route
	verdict Verdict // under the refined policy
	behind  bool    // a route of the slot that stays comes before it
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
func (m *maker) stays(r *Route) { m.stay = r.Slot() }

// judgeCandidates judges the candidates by the refined policy. Those that need
// not go are routes that stay, for the others of their slots.
func (m *maker) judgeCandidates() {
	m.candidates = inOrder(m.candidates, func(a, b *candidate) int { return compareSlot(a.route.Slot(), b.route.Slot()) })
	var stay Slot
	for i := range m.candidates {
		c := &m.candidates[i]
		c.verdict = Judge(m.p, &c.route)
		if c.verdict.Decision != Conflict {
			stay = c.route.Slot()
		}
		c.behind = c.behind || c.route.Slot() == stay
	}
}

// first reports whether the route goes back ahead of its slot. A route behind one that
// stays does not: ahead of it, it would take traffic that it never had. Nor does an IPv6
// route: IPv6 cannot add at the front.
func (c *candidate) first() bool { return c.route.Dst.Addr().Is4() && !c.behind }

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
	return inOrder(out, func(a, b *Action) int { return compareSlot(a.Route.Slot(), b.Route.Slot()) })
}

// inOrder returns the list in order, equals as they were. Its elements are large and
// many: they are moved once, not at each step of the sort.
func inOrder[T any](list []T, compare func(a, b *T) int) []T {
	turns, sorted := turnsOf(list, compare)
	if sorted {
		return list
	}
	out := make([]T, len(list))
	for i, from := range turns {
		out[i] = list[from]
	}
	return out
}

// turnsOf returns the places of the elements in the order that they come in, and
// whether that is the one that they have.
func turnsOf[T any](list []T, compare func(a, b *T) int) (turns []int, sorted bool) {
	turns, sorted = make([]int, len(list)), true
	for i := range turns {
		turns[i] = i
		sorted = sorted && (i == 0 || compare(&list[i-1], &list[i]) <= 0)
	}
	if !sorted {
		slices.SortFunc(turns, func(a, b int) int { return cmp.Or(compare(&list[a], &list[b]), cmp.Compare(a, b)) })
	}
	return turns, sorted
}

// orderRestore puts slots whose routes need no gateway before those that do,
// for what holds a gateway must stand first. Within a slot the last removed
// comes back first. What replaced another held route has that one's place, and what came
// behind others that one's of the last of them.
func orderRestore(back []Action) []Action {
	turns, _ := turnsOf(back, func(a, b *Action) int {
		return cmp.Or(compareSlot(a.Route.Slot(), b.Route.Slot()), cmp.Compare(b.Place, a.Place), cmp.Compare(a.Held, b.Held))
	})
	var ranks [4][]int // of whole slots, each in order
	for len(turns) > 0 {
		n, rank := firstSlot(back, turns)
		ranks[rank] = append(ranks[rank], turns[:n]...)
		turns = turns[n:]
	}
	out := make([]Action, 0, len(back))
	for _, turn := range slices.Concat(ranks[:]...) {
		out = append(out, back[turn])
	}
	return out
}

// firstSlot returns how many of the turns are of the first one's slot, and when it is
// that slot's turn.
func firstSlot(back []Action, turns []int) (n, rank int) {
	var needs, free, subnet bool
	slot := back[turns[0]].Route.Slot()
	for ; n < len(turns) && back[turns[n]].Route.Slot() == slot; n++ {
		r := &back[turns[n]].Route
		gated := r.gated()
		needs, free, subnet = needs || gated, free || !gated, subnet || r.Connected()
	}
	switch {
	case !needs:
		return n, 0
	case subnet: // other gateways are likely to wait for part of it
		return n, 1
	case free: // or perhaps
		return n, 2
	}
	return n, 3
}

// readHeldTwin notes a held route that stands all the same, if others of its slot are held.
func (m *maker) readHeldTwin(r *Route) {
	if len(m.crowded) == 0 {
		return
	}
	for _, h := range m.crowded[r.Slot()] {
		if h.Route.Same(*r) {
			m.standing[h.ID] = r.Clone()
		}
	}
}

// lift returns the deletes of held routes of back that stand already, although others of
// their slot that belong before them are still to come back. A process that was killed
// while it deleted leaves such. Each of them then comes back in its turn.
func (m *maker) lift(back []Action) (out []Action) {
	var slot Slot
	missing := false // one of the slot that comes back before
	for i := range back {
		a := &back[i]
		if a.Route.Slot() != slot {
			slot, missing = a.Route.Slot(), false
		}
		stands, ok := m.standing[a.Held]
		if missing && ok {
			out = append(out, Action{Kind: Lift, Route: stands, Held: a.Held, Why: "stands before its place"})
		}
		missing = missing || !ok
	}
	return out
}

func compareSlot(a, b Slot) int {
	return cmp.Or(
		ComparePrefix(a.Dst, b.Dst),
		ComparePrefix(a.Src, b.Src),
		cmp.Compare(a.TOS, b.TOS),
		cmp.Compare(a.Metric, b.Metric),
	)
}
