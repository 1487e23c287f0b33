package loader

import (
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// chain is what is known of the TCX programs of a device, of which ours must be the first: one before it may end the
// chain, or take packets out of it, and nobody tells when one comes.
type chain struct {
	moves  uint64 // how often ours was put first again
	rival  string // who stood there, the last time
	recent []time.Time
	err    error // why a packet may pass unseen
}

// The bounds of a contest for the first place. Ours is put there again as often as it is looked at, which is when the
// device changes and at each recheck, but not more than once in chainPause.
const (
	chainPause   = time.Second
	contestMoves = 3 // within contestFor, are one
	contestFor   = time.Minute
)

// precede puts our program first where another came to stand before it. The new link is there before the old one goes.
func (w *Witness) precede(d *device, now time.Time) {
	t, ok := d.hook.(tcx)
	if !ok || w.old { // programs of another layout serve until the first Set: ours knows no policy yet
		return
	}
	rival, err := before(t, d.index)
	c := &d.chain
	c.forget(now)
	switch {
	case err != nil:
		c.err = fmt.Errorf("ask for the programs of %s: %w", d.name, err)
	case rival == 0:
		c.err = c.contested()
	case len(c.recent) > 0 && now.Sub(c.recent[len(c.recent)-1]) < chainPause:
		// The next recheck will find it.
	default:
		c.displaced(programName(rival), now)
		if err := w.moveFirst(d, t); err != nil {
			c.err = fmt.Errorf("%s stands before culvert's program on %s, so packets may pass unseen: %w", c.rival, d.name, err)
		} else {
			c.err = c.contested()
		}
		w.tellDisplaced(d)
	}
}

// before returns the program that stands first in the chain of t's device, 0 when it is t's own or t is not in it.
func before(t tcx, ifindex int) (ebpf.ProgramID, error) {
	q, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: ebpf.AttachTCXEgress})
	if err != nil || len(q.Programs) == 0 {
		return 0, err
	}
	first := q.Programs[0]
	if id, ok := first.LinkID(); ok && id == linkID(t.link) {
		return 0, nil
	}
	if linkIndex(t.link) != ifindex {
		return 0, nil // taken off: the recheck attaches it again
	}
	return first.ID, nil
}

// programName names a program, as far as the process may look at it.
func programName(id ebpf.ProgramID) string {
	if p, err := ebpf.NewProgramFromID(id); err == nil {
		defer p.Close()
		if info, err := p.Info(); err == nil && info.Name != "" {
			return fmt.Sprintf("program %d (%s)", id, info.Name)
		}
	}
	return fmt.Sprintf("program %d", id)
}

// moveFirst attaches anew at the head. The pin follows; one that does not is for keepPins to find.
func (w *Witness) moveFirst(d *device, old tcx) error {
	if err := w.loadSecond(); err != nil {
		return err
	}
	d.second = !d.second
	h, err := attachTCX(d.index, w.program(d))
	if err != nil {
		d.second = !d.second
		return fmt.Errorf("attach to %s: %w", d.name, err)
	}
	d.hook = h
	if old.path == "" {
		return old.drop()
	}
	if err := h.pin(old.path); err != nil {
		w.noteUnpinned(fmt.Errorf("pin link of %s: %w", d.name, err))
		return old.drop()
	}
	return old.link.Close() // its pin is the new one's by now
}

// loadSecond loads the programs once more, on the same maps.
func (w *Witness) loadSecond() error {
	if w.second != (leakPrograms{}) {
		return nil
	}
	spec, err := w.leakSpec()
	if err != nil {
		return err
	}
	if err := spec.LoadAndAssign(&w.second, &ebpf.CollectionOptions{MapReplacements: w.maps()}); err != nil {
		return fmt.Errorf("load object leak again: %w", err)
	}
	return nil
}

func (c *chain) displaced(rival string, now time.Time) {
	c.moves++
	c.rival = rival
	c.recent = append(c.recent, now)
}

// forget lets go of moves that are too old to be part of a contest.
func (c *chain) forget(now time.Time) {
	c.recent = slices.DeleteFunc(c.recent, func(at time.Time) bool { return now.Sub(at) > contestFor })
}

// contested is an error while another insists on the first place: between two looks it has it.
func (c *chain) contested() error {
	if len(c.recent) < contestMoves {
		return nil
	}
	return fmt.Errorf("%s is put before culvert's again and again: packets may pass unseen in between; end one of the two", c.rival)
}

// tellDisplaced logs the first time, and then less and less often.
func (w *Witness) tellDisplaced(d *device) {
	if n := d.chain.moves; bits.OnesCount64(n) == 1 {
		w.log.Warn("another program stood before ours: attached anew before it", "interface", d.name, "other", d.chain.rival, "times", n,
			"err", d.chain.err)
	}
}
