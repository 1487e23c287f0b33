package enforcetest

import (
	"maps"
	"slices"
	"sync"

	"github.com/culvert-project/culvert/enforce"
)

// Journal is an [enforce.Journal] in memory. It keeps what it was told until
// the end of the test, whatever becomes of the process. Set the exported
// fields before it is used.
type Journal struct {
	// Hook, when not nil, is called around every call. It may call Halt:
	// before a step the step does not happen, after it nothing else does.
	Hook func(Point)
	// Refuse, when not nil, may fail a call: "load", "hold", "mark" or "forget". A
	// disk that is full refuses "hold".
	Refuse func(op string) error

	mu      sync.Mutex // guards what follows
	entries []enforce.Entry
	marks   map[enforce.Mark]bool
	halted  bool
	steps   int
}

// Load implements [enforce.Journal].
func (j *Journal) Load() (out []enforce.Entry, err error) {
	err = j.step("load", func() { out = slices.Clone(j.entries) })
	return out, err
}

// Hold implements [enforce.Journal].
func (j *Journal) Hold(entries []enforce.Entry) error {
	return j.step("hold", func() {
		known := make(map[uint64]int, len(j.entries))
		for i := range j.entries {
			known[j.entries[i].ID] = i
		}
		for _, e := range entries {
			e.Links = slices.Clone(e.Links)
			if i, ok := known[e.ID]; ok {
				j.entries[i] = e
				continue
			}
			j.entries = append(j.entries, e)
		}
	})
}

// Forget implements [enforce.Journal].
func (j *Journal) Forget(ids []uint64) error {
	return j.step("forget", func() {
		gone := make(map[uint64]bool, len(ids))
		for _, id := range ids {
			gone[id] = true
		}
		j.entries = slices.DeleteFunc(j.entries, func(e enforce.Entry) bool { return gone[e.ID] })
	})
}

// LoadMarks implements [enforce.MarkStore].
func (j *Journal) LoadMarks() ([]enforce.Mark, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Collect(maps.Keys(j.marks)), true
}

// KeepMarks implements [enforce.MarkStore].
func (j *Journal) KeepMarks(c enforce.MarkChange) error {
	return j.step("mark", func() {
		if j.marks == nil {
			j.marks = map[enforce.Mark]bool{}
		}
		for _, k := range c.Add {
			j.marks[k] = true
		}
		for _, k := range c.Drop {
			delete(j.marks, k)
		}
	})
}

var (
	_ enforce.Journal   = (*Journal)(nil)
	_ enforce.MarkStore = (*Journal)(nil)
)

// step makes one call happen between its two hooks.
func (j *Journal) step(op string, do func()) error {
	j.mu.Lock()
	n := j.steps
	j.steps++
	j.mu.Unlock()
	if j.Hook == nil {
		return j.call(op, do)
	}
	j.Hook(Point{Op: op, N: n})
	err := j.call(op, do)
	j.Hook(Point{Op: op, After: true, N: n})
	return err
}

func (j *Journal) call(op string, do func()) error {
	if j.Refuse != nil {
		if err := j.Refuse(op); err != nil {
			return err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.halted {
		return ErrHalted
	}
	do()
	return nil
}

// Entries returns what is held now.
func (j *Journal) Entries() []enforce.Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.entries)
}

// Halt is the process dying: from now on its calls fail and change nothing.
func (j *Journal) Halt() { j.setHalted(true) }

// Resume lets the next process of the same machine use the Journal.
func (j *Journal) Resume() { j.setHalted(false) }

func (j *Journal) setHalted(to bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.halted = to
}
