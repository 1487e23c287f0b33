package loader

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
)

// past are the interfaces that are gone. Each keeps its sums until these have been read once more, so that the reader knows
// whose they were. Then they are folded: added to one sum for all interfaces that are gone, which makes room.
type past struct {
	mu   sync.Mutex // guards gone
	gone map[int]bool

	walk sync.Mutex // held while the counters are walked or folded: each walk sees every packet once
}

// pastKept is how many interfaces wait for a reader before they are folded without one.
const pastKept = 512

// ofGone is the index under which the sums of interfaces that are gone are kept.
const ofGone = 0

// Counters returns every sum that is not zero, by interface, prefix and reason.
func (w *Witness) Counters() ([]Counter, error) {
	w.past.walk.Lock()
	defer w.past.walk.Unlock()
	gone := w.past.list()
	sums, err := w.walkCounters()
	if err != nil {
		return nil, err
	}
	var list []Counter
	for key, c := range sums {
		if c.Packets > 0 {
			list = append(list, Counter{
				Interface: int(key.Ifindex), Prefix: key.Prefix, Reason: Reason(key.Reason), Upper: key.Upper != 0,
				Packets: c.Packets, Bytes: c.Bytes, Dropped: c.Dropped,
			})
		}
	}
	slices.SortFunc(list, func(a, b Counter) int {
		return cmp.Or(cmp.Compare(a.Interface, b.Interface), cmp.Compare(a.Prefix, b.Prefix), cmp.Compare(a.Reason, b.Reason),
			compareBool(a.Upper, b.Upper))
	})
	w.logged("fold the sums of interfaces that are gone", w.fold(sums, gone))
	return list, nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// walkCounters sums the counters over the CPUs.
func (w *Witness) walkCounters() (map[leakCounterKey]leakCounter, error) {
	all := map[leakCounterKey]leakCounter{}
	var key leakCounterKey
	var cpus []leakCounter
	it := w.objs.Counters.Iterate()
	for it.Next(&key, &cpus) {
		all[key] = sum(cpus)
	}
	return all, wrap("read counters", it.Err())
}

func sum(cpus []leakCounter) (c leakCounter) {
	for _, v := range cpus {
		c = plus(c, v)
	}
	return c
}

func plus(a, b leakCounter) leakCounter {
	return leakCounter{Packets: a.Packets + b.Packets, Bytes: a.Bytes + b.Bytes, Dropped: a.Dropped + b.Dropped}
}

// passed notes that an interface is gone. When too many wait for a reader it folds them itself.
func (w *Witness) passed(index int) {
	if w.past.add(index) < pastKept || !w.past.walk.TryLock() {
		return // a reader that walks now will see to it
	}
	defer w.past.walk.Unlock()
	w.logged("fold the sums of interfaces that are gone", w.foldAll(w.past.list()))
}

// foldEarlier makes room for an interface that got the index of one that is gone: their sums must not mix.
func (w *Witness) foldEarlier(index int) error {
	if !w.past.has(index) {
		return nil
	}
	w.past.walk.Lock()
	defer w.past.walk.Unlock()
	return w.foldAll([]int{index})
}

// foldUnknown folds the sums of interfaces that went while no process looked.
func (w *Witness) foldUnknown() error {
	w.past.walk.Lock()
	defer w.past.walk.Unlock()
	sums, err := w.walkCounters()
	if err != nil {
		return err
	}
	var gone []int
	for key := range sums {
		if index := int(key.Ifindex); index != ofGone && w.devices[index] == nil {
			gone = append(gone, index)
		}
	}
	w.past.add(gone...)
	return w.fold(sums, gone)
}

func (w *Witness) foldAll(gone []int) error {
	sums, err := w.walkCounters()
	if err != nil {
		return err
	}
	return w.fold(sums, gone)
}

// fold adds the sums of interfaces that are gone to the one for all of them, and then deletes them. No packet is counted
// there any more; an index that another interface has by now is left alone. A process that dies in between leaves a sum
// that is counted twice: one leak too many is better than one too few.
func (w *Witness) fold(sums map[leakCounterKey]leakCounter, gone []int) error {
	there := map[int]bool{}
	for _, index := range gone {
		there[index] = w.past.has(index)
	}
	var errs []error
	for key, c := range sums {
		if there[int(key.Ifindex)] {
			errs = append(errs, w.foldOne(key, c))
		}
	}
	w.past.remove(gone)
	return errors.Join(errs...)
}

func (w *Witness) foldOne(key leakCounterKey, c leakCounter) error {
	to := key
	to.Ifindex = ofGone
	err := w.addTo(to, c)
	if err == nil {
		return wrap("delete counter", absentKey(w.objs.Counters.Delete(key)))
	}
	// There may have been no room for one more.
	if err := w.objs.Counters.Delete(key); err != nil {
		return fmt.Errorf("delete counter: %w", err)
	}
	return wrap("add to the sum of interfaces that are gone", w.addTo(to, c))
}

// addTo adds to a counter that no program writes to.
func (w *Witness) addTo(key leakCounterKey, c leakCounter) error {
	cpus := make([]leakCounter, ebpf.MustPossibleCPU())
	if err := w.objs.Counters.Lookup(key, &cpus); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	cpus[0] = plus(cpus[0], c)
	return w.objs.Counters.Put(key, cpus)
}

func absentKey(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

func (p *past) list() (gone []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for index := range p.gone {
		gone = append(gone, index)
	}
	return gone
}

func (p *past) has(index int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gone[index]
}

// add returns how many wait by then.
func (p *past) add(gone ...int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone == nil {
		p.gone = map[int]bool{}
	}
	for _, index := range gone {
		p.gone[index] = true
	}
	return len(p.gone)
}

func (p *past) remove(gone []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, index := range gone {
		delete(p.gone, index)
	}
}
