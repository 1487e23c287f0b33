package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// hook is our program on one interface.
type hook interface {
	mode() Mode
	alive() bool                // still on its interface
	update(*ebpf.Program) error // swaps the program; no packet passes between
	pin(path string) error      // outlives the process from now on
	unpin() error
	detach() error  // takes it off
	release() error // leaves it to its pin
	forget() error  // its interface is gone
}

// attach puts the program on d in the first mode that works, or takes over what a guard left there.
func (w *Witness) attach(d *device) (hook, error) {
	h, err := w.adopt(d)
	if h == nil && err == nil {
		h, err = w.attachNew(d)
	}
	if err != nil {
		return nil, err
	}
	if w.status.Guarded != "" {
		if err := h.pin(w.pins.link(d.index)); err != nil {
			w.noteUnpinned(fmt.Errorf("pin link of %s: %w", d.name, err))
		}
	}
	return h, nil
}

func (w *Witness) attachNew(d *device) (hook, error) {
	var errs []error
	for _, m := range w.opts.modes {
		h, err := attachers[m](d.index, w.program(d))
		if err == nil {
			return h, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", m, err))
	}
	return nil, fmt.Errorf("attach to %s: %w", d.name, errors.Join(errs...))
}

var attachers = map[Mode]func(int, *ebpf.Program) (hook, error){ModeTCX: attachTCX, ModeClsact: attachClsact}

// adopt takes over a pinned link of d, or a filter. Their program is swapped for ours, at once when our maps are theirs.
func (w *Witness) adopt(d *device) (hook, error) {
	if !w.status.Adopted {
		return nil, nil
	}
	h := pinnedTCX(w.pins.link(d.index), d.index)
	if h == nil {
		h = foundClsact(d.index)
	}
	if h == nil || w.old {
		return h, nil
	}
	if err := h.update(w.program(d)); err != nil {
		return nil, fmt.Errorf("update program on %s: %w", d.name, err)
	}
	return h, nil
}

// program is what watches d. There are two of each: one link cannot take another's place with the same.
func (w *Witness) program(d *device) *ebpf.Program {
	progs := &w.objs.leakPrograms
	if d.second {
		progs = &w.second
	}
	if d.ether {
		return progs.LeakEther
	}
	return progs.LeakBare
}

// tcx is a hook by link.
type tcx struct{ *anchor }

// attachTCX goes before all others, so that none of them can end the chain before us.
func attachTCX(ifindex int, prog *ebpf.Program) (hook, error) {
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: ifindex, Program: prog, Attach: ebpf.AttachTCXEgress, Anchor: link.Head(),
	})
	if err != nil {
		return nil, err
	}
	return tcx{&anchor{link: l}}, nil
}

// pinnedTCX returns nil when there is no pin, or when it is of a device that is gone, whose index was given again.
func pinnedTCX(path string, ifindex int) hook {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return nil
	}
	if linkIndex(l) == ifindex {
		return tcx{&anchor{link: l, path: path}}
	}
	dropLink(l)
	return nil
}

// linkIndex is the interface of a tcx link, 0 when it is gone.
func linkIndex(l link.Link) int {
	info, err := l.Info()
	if err != nil || info.TCX() == nil {
		return 0
	}
	return int(info.TCX().Ifindex)
}

func dropLink(l link.Link) error {
	return errors.Join(absent(l.Unpin()), l.Close())
}

func (tcx) mode() Mode                     { return ModeTCX }
func (t tcx) alive() bool                  { return linkIndex(t.link) != 0 }
func (t tcx) update(p *ebpf.Program) error { return t.link.Update(p) }
func (t tcx) detach() error                { return t.drop() }
func (t tcx) release() error               { return t.link.Close() }
func (t tcx) forget() error                { return t.drop() }

// gone is true of the answers to deleting what is not there.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)
}
