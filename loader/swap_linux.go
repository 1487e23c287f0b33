package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/cilium/ebpf"
)

// change is a step of a swap and its undo. An undo may also follow a step that failed, or was done in part.
type change struct{ do, undo func() error }

// inTurn makes all changes or none: after one that fails it undoes that one and those before it, the latest first.
func inTurn(list ...change) error {
	for i, c := range list {
		err := c.do()
		if err == nil {
			continue
		}
		for ; i >= 0; i-- {
			if undo := list[i].undo(); undo != nil {
				err = errors.Join(err, fmt.Errorf("take back: %w", undo))
			}
		}
		return err
	}
	return nil
}

// swap puts a policy in force. Until a family's trie is stored its packets are judged by the old policy, with one
// difference: an interface is exempt only where both policies say so.
func (w *Witness) swap(next rules, exempt groups) error {
	fresh := w.tries
	if !w.configured || !maps.Equal(next, w.rules) {
		var err error
		if fresh, err = w.buildBoth(next); err != nil {
			return err
		}
	}
	old := w.stored()
	changes, err := w.changes(old, fresh, exempt)
	if err == nil {
		err = inTurn(changes...)
	}
	if err != nil {
		if fresh != w.tries {
			fresh.close()
		}
		return fmt.Errorf("swap policy: %w", err)
	}
	if old != fresh {
		old.close()
	}
	w.tries, w.rules, w.groups = fresh, next, exempt
	return nil
}

func (w *Witness) changes(old, fresh tries, exempt groups) ([]change, error) {
	before, err := w.exemptions()
	if err != nil {
		return nil, err
	}
	deadlines, err := w.deadlines()
	if err != nil {
		return nil, err
	}
	status, configured := w.status.Until, w.configured
	both := func(d *device) uint32 { return before[d.index] & exempt.of(d.index) }
	list := []change{{
		func() error { w.configured = true; return w.exempt(both) },
		func() error {
			err := w.exempt(func(d *device) uint32 { return before[d.index] })
			w.configured = configured
			return err
		},
	}, {
		func() error { return w.setDeadlines(w.cfg.Heartbeat, w.cfg.Remaining) },
		func() error { w.status.Until = status; return w.putDeadlines(deadlines) },
	}}
	if old == fresh {
		return list, nil
	}
	store := func(m, to, from *ebpf.Map) change {
		return change{func() error { return w.put(m, uint32(0), to) }, func() error { return w.unput(m, from) }}
	}
	return append(list, store(w.objs.Policies4, fresh.v4, old.v4), store(w.objs.Policies6, fresh.v6, old.v6)), nil
}

// unput stores the previous trie again; nil is none.
func (w *Witness) unput(m, trie *ebpf.Map) error {
	if trie != nil {
		return w.put(m, uint32(0), trie)
	}
	if err := m.Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// exemptions are each device's exempt groups as the programs know them, an adopted guard's included.
func (w *Witness) exemptions() (map[int]uint32, error) {
	out := map[int]uint32{}
	for i, d := range w.devices {
		bits := d.exempt
		if !w.configured {
			var have leakDevice
			switch err := w.objs.Devices.Lookup(uint32(i), &have); {
			case err == nil:
				bits = have.Groups
			case !errors.Is(err, ebpf.ErrKeyNotExist):
				return nil, fmt.Errorf("read groups of %s: %w", d.name, err)
			}
		}
		out[i] = bits
	}
	return out, nil
}

// tries are a policy, built aside.
type tries struct{ v4, v6 *ebpf.Map }

func (w *Witness) buildBoth(all rules) (tries, error) {
	v4, err := w.build(w.trie4, all, netip.Addr.Is4)
	if err != nil {
		return tries{}, err
	}
	v6, err := w.build(w.trie6, all, netip.Addr.Is6)
	if err != nil {
		v4.Close()
		return tries{}, err
	}
	return tries{v4, v6}, nil
}

func (t tries) close() {
	t.v4.Close()
	t.v6.Close()
}

// stored are the tries in force. An adopted guard's are found by their ids, which needs CAP_SYS_ADMIN: without it they
// are none.
func (w *Witness) stored() tries {
	if w.tries != (tries{}) {
		return w.tries
	}
	var t tries
	if w.objs.Policies4.Lookup(uint32(0), &t.v4) != nil {
		t.v4 = nil
	}
	if w.objs.Policies6.Lookup(uint32(0), &t.v6) != nil {
		t.v6 = nil
	}
	return t
}

// build makes a trie of one family's rules, aside.
func (w *Witness) build(spec *ebpf.MapSpec, all rules, of func(netip.Addr) bool) (*ebpf.Map, error) {
	spec = spec.Copy()
	spec.MaxEntries = uint32(len(all) + 1)
	trie, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("make trie: %w", err)
	}
	for prefix, rule := range all {
		if !of(prefix.Addr()) {
			continue
		}
		if err := trie.Put(trieKey(prefix), rule); err != nil {
			trie.Close()
			return nil, fmt.Errorf("add %s to trie: %w", prefix, err)
		}
	}
	return trie, nil
}

func trieKey(p netip.Prefix) any {
	if a := p.Addr(); a.Is4() {
		b := a.As4()
		return leakPrefix4{Bits: uint32(p.Bits()), Addr: binary.NativeEndian.Uint32(b[:])}
	}
	return leakPrefix6{Bits: uint32(p.Bits()), Addr: words(p.Addr())}
}
