package enforce

import (
	"cmp"
	"iter"
	"slices"

	"github.com/culvert-project/culvert/enforce/plan"
)

// heldRoutes are the held routes in the order of removal, found by number and by
// place in time that does not grow with their number. The zero value is empty.
type heldRoutes struct {
	list   []heldRoute // a crossed-out one has the number 0 until room is made
	count  int
	at     map[uint64]int // where in the list, by number
	bySlot map[plan.Slot][]uint64
	looks  int // how often an entry was looked at: the work, which must not grow faster than it has to
}

type heldRoute struct {
	Entry
	of *tally // of the session for which it was removed; nil where that is not known
}

func (h *heldRoutes) add(entries ...Entry) {
	if len(h.at) == 0 {
		h.at, h.bySlot = make(map[uint64]int, len(entries)), make(map[plan.Slot][]uint64, len(entries))
	}
	h.list = slices.Grow(h.list, len(entries))
	for i := range entries {
		e := &entries[i]
		h.looks++
		h.at[e.ID] = len(h.list)
		h.bySlot[e.Route.Slot()] = append(h.bySlot[e.Route.Slot()], e.ID)
		h.list = append(h.list, heldRoute{Entry: *e})
	}
	h.count += len(entries)
}

// get returns the entry with a number, or nil. It is valid until the next change.
func (h *heldRoutes) get(id uint64) *Entry {
	h.looks++
	if i, ok := h.at[id]; ok {
		return &h.list[i].Entry
	}
	return nil
}

// owe notes for which session an entry's route was removed.
func (h *heldRoutes) owe(id uint64, of *tally) {
	if i, ok := h.at[id]; ok {
		h.list[i].of = of
	}
}

// tally returns what owe noted of an entry, or nil.
func (h *heldRoutes) tally(id uint64) *tally {
	if i, ok := h.at[id]; ok {
		return h.list[i].of
	}
	return nil
}

func (h *heldRoutes) len() int { return h.count }

// first returns the one that was removed first, or nil.
func (h *heldRoutes) first() *Entry {
	for e := range h.all() {
		return e
	}
	return nil
}

// all yields the entries in the order of removal. They may be removed meanwhile.
func (h *heldRoutes) all() iter.Seq[*Entry] {
	list := h.list
	return func(yield func(*Entry) bool) {
		for i := range list {
			if h.looks++; list[i].ID != 0 && !yield(&list[i].Entry) {
				return
			}
		}
	}
}

func (h *heldRoutes) remove(ids ...uint64) {
	for _, id := range ids {
		h.looks++
		i, ok := h.at[id]
		if !ok {
			continue
		}
		slot := h.list[i].Route.Slot()
		if left := slices.DeleteFunc(h.bySlot[slot], func(o uint64) bool { return o == id }); len(left) > 0 {
			h.bySlot[slot] = left
		} else {
			delete(h.bySlot, slot)
		}
		delete(h.at, id)
		h.list[i] = heldRoute{}
		h.count--
	}
	if len(h.list) > 2*h.count {
		h.compact()
	}
}

// compact makes room once most of the list is crossed out.
func (h *heldRoutes) compact() {
	kept := make([]heldRoute, 0, h.count)
	for i := range h.list {
		h.looks++
		if e := &h.list[i]; e.ID != 0 {
			h.at[e.ID] = len(kept)
			kept = append(kept, *e)
		}
	}
	h.list = kept
}

// superseded returns the number of the entry that r is a newer copy of, or 0.
func (h *heldRoutes) superseded(r *plan.Route) uint64 {
	return plan.Superseded(func(yield func(uint64, *plan.Route) bool) {
		for _, id := range h.bySlot[r.Slot()] {
			if !yield(id, &h.get(id).Route) {
				return
			}
		}
	}, r)
}

// demote lets those of a restored route's slot that stood behind it, and stay held while it
// comes back, come back behind others. It returns what changed.
func (h *heldRoutes) demote(back *plan.Action, comes func(id uint64) bool) (out []Entry) {
	var left []*Entry
	for _, id := range h.bySlot[back.Route.Slot()] {
		o := h.get(id)
		if o.First && o.place() > back.Place && !comes(id) {
			left = append(left, o)
		}
	}
	if len(left) == 0 {
		return nil
	}
	slices.SortFunc(left, func(a, b *Entry) int { return cmp.Compare(a.place(), b.place()) })
	places := make([]uint64, len(left))
	for i, o := range left { // of those that come back behind, the first has the highest
		places[len(left)-1-i] = o.place()
	}
	for i, o := range left {
		o.First, o.Place = false, places[i]
		out = append(out, *o)
	}
	return out
}

// lastPlace returns the place of the last route of a slot that comes back behind others,
// or 0 when none does. A route that came behind all of these shares that place.
func (h *heldRoutes) lastPlace(s plan.Slot) (last uint64) {
	for _, id := range h.bySlot[s] {
		if o := h.get(id); !o.First && (last == 0 || o.place() < last) {
			last = o.place()
		}
	}
	return last
}

// place is the entry's place among those of its slot: see plan.Held.
func (e *Entry) place() uint64 { return cmp.Or(e.Place, e.ID) }
