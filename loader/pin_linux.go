package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

const (
	mapPrefix  = "map_"
	linkPrefix = "link_"
	freshEnd   = "_new" // of a pin that is about to take another's place
)

func (p pins) link(ifindex int) string    { return p.named(strconv.Itoa(ifindex)) }
func (p pins) named(name string) string   { return filepath.Join(p.dir, linkPrefix+name) }
func (p pins) mapPath(name string) string { return filepath.Join(p.dir, mapPrefix+p.layout+"_"+name) }
func (p pins) list(prefix string) []string {
	m, _ := filepath.Glob(filepath.Join(p.dir, prefix+"*"))
	return m
}

// maps loads what is pinned of spec's maps: nil when nothing is, and ebpf.ErrMapIncompatible when it is of another layout
// or not whole, as a crash while pinning leaves it.
func (p pins) maps(spec *ebpf.CollectionSpec) (map[string]*ebpf.Map, error) {
	if len(p.list("")) == 0 {
		return nil, nil
	}
	found := map[string]*ebpf.Map{}
	for name, ms := range spec.Maps {
		if own(name) {
			continue
		}
		m, err := ebpf.LoadPinnedMap(p.mapPath(name), nil)
		if err == nil {
			found[name] = m
			err = ms.Compatible(m)
		}
		if err != nil {
			closeMaps(found)
			return nil, misfit(name, err)
		}
	}
	return found, nil
}

func misfit(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ebpf.ErrMapIncompatible, err)
	}
	return fmt.Errorf("pinned map %s: %w", name, err)
}

// release removes all pins, links first: a link without its maps would still decide by them.
func (p pins) release() error {
	var errs []error
	for _, path := range p.list(linkPrefix) {
		l, err := link.LoadPinnedLink(path, nil)
		if err == nil {
			err = dropLink(l)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("release %s: %w", filepath.Base(path), err), absent(os.Remove(path)))
		}
	}
	for _, path := range p.list(mapPrefix) {
		errs = append(errs, absent(os.Remove(path)))
	}
	return errors.Join(append(errs, p.tidy())...)
}

// absent makes a success of what was not there.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// guardBefore pins everything before a policy that asks for it comes into force. What cannot be pinned does not keep the
// policy out: dropping as long as this process lives is better than not dropping. Status says so.
func (w *Witness) guardBefore(cfg Config) {
	if guarded(cfg) && w.status.Guarded == "" {
		w.noteUnpinned(w.guard())
	}
}

// keepPins looks at every pin, and makes again what is missing or another's.
func (w *Witness) keepPins() {
	if !w.old && (guarded(w.cfg) || w.status.Guarded != "") {
		w.noteUnpinned(w.guard())
	}
}

// noteUnpinned keeps for Status why what should outlive the process does not, and logs it when it is news.
func (w *Witness) noteUnpinned(err error) {
	var text string
	if err = privileged(err); err != nil {
		text = err.Error()
	}
	switch {
	case text == w.status.Unpinned:
	case text == "":
		w.log.Info("pinned again: drops outlive this process", "folder", w.pins.dir)
	default:
		w.log.Warn("not pinned as it should be: drops end with this process", "err", err)
	}
	w.status.Unpinned = text
}

// guardAfter unpins once the policy no longer asks for it.
func (w *Witness) guardAfter(cfg Config) error {
	if guarded(cfg) {
		return nil
	}
	w.status.Unpinned = ""
	if w.status.Guarded == "" && !w.status.Adopted {
		return nil
	}
	return w.unguard()
}

// guarded says whether cfg must outlive the process.
func guarded(cfg Config) bool {
	return cfg.Guard || cfg.Drops()
}

// guard pins the maps, then the links, as far as they are not pinned yet. What a crash leaves in between is adopted or
// released like the whole. What can be pinned stays so, whatever cannot.
func (w *Witness) guard() error {
	if err := w.place(); err != nil {
		w.status.Guarded = ""
		return err
	}
	w.status.Guarded = w.pins.dir
	return errors.Join(w.pinMaps(), w.pinLinks(), w.pins.forgetOthers(), w.pins.lasting())
}

func (w *Witness) pinMaps() error {
	var errs []error
	for name, m := range w.maps() {
		if err := pinMap(m, w.pins.mapPath(name)); err != nil {
			errs = append(errs, fmt.Errorf("pin map %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (w *Witness) pinLinks() error {
	var errs []error
	for _, d := range w.devices {
		if d.hook == nil {
			continue
		}
		if err := d.hook.pin(w.pins.link(d.index)); err != nil {
			errs = append(errs, fmt.Errorf("pin link of %s: %w", d.name, err))
		}
	}
	for name, h := range w.held {
		if err := h.pin(w.pins.named(name)); err != nil {
			errs = append(errs, fmt.Errorf("pin link %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// forgetOthers unpins maps of other layouts, which nothing uses any more.
func (p pins) forgetOthers() error {
	var errs []error
	for _, path := range p.list(mapPrefix) {
		if !strings.HasPrefix(path, p.mapPath("")) {
			errs = append(errs, absent(os.Remove(path)))
		}
	}
	return errors.Join(errs...)
}

// pinMap pins m, unless it is what is pinned there.
func pinMap(m *ebpf.Map, path string) error {
	if p, err := ebpf.LoadPinnedMap(path, nil); err == nil {
		same := mapID(p) == mapID(m)
		p.Close()
		if same {
			return nil
		}
	}
	m, err := m.Clone() // one that does not know where it was pinned before
	if err != nil {
		return err
	}
	defer m.Close()
	return put(path, m.Pin)
}

// mapID is 0 where it cannot be had, which no map has.
func mapID(m *ebpf.Map) ebpf.MapID {
	info, err := m.Info()
	if err != nil {
		return 0
	}
	id, _ := info.ID()
	return id
}

// put pins an object in the place of what is pinned there, in one step: a crash leaves the one or the other.
func put(path string, pin func(string) error) error {
	fresh := path + freshEnd
	if err := absent(os.Remove(fresh)); err != nil {
		return err
	}
	if err := pin(fresh); err != nil {
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		return errors.Join(err, absent(os.Remove(fresh)))
	}
	return nil
}

// anchor is a link and where it is pinned, "" where it is not. The reference keeps the link: the garbage collector would
// close it.
type anchor struct {
	link link.Link
	path string
}

// linkID is 0 where it cannot be had, which no link has.
func linkID(l link.Link) link.ID {
	info, err := l.Info()
	if err != nil {
		return 0
	}
	return info.ID
}

// pin pins the link, unless it is what is pinned there.
func (a *anchor) pin(path string) error {
	if p, err := link.LoadPinnedLink(path, nil); err == nil {
		same := linkID(p) == linkID(a.link)
		p.Close()
		if same {
			a.path = path
			return nil
		}
	}
	if err := absent(a.link.Unpin()); err != nil { // else the library would move what is at its former place
		return err
	}
	if err := put(path, a.link.Pin); err != nil {
		return err
	}
	a.path = path
	return nil
}

// unpin leaves the link to this process.
func (a *anchor) unpin() error {
	path := a.path
	a.path = ""
	if path == "" {
		return nil
	}
	return errors.Join(absent(a.link.Unpin()), absent(os.Remove(path)))
}

// drop unpins the link and lets it go.
func (a *anchor) drop() error { return errors.Join(a.unpin(), a.link.Close()) }

// unguard removes every pin; what this process holds stays attached as long as it lives.
func (w *Witness) unguard() error {
	var errs []error
	for _, d := range w.devices {
		if d.hook != nil {
			errs = append(errs, d.hook.unpin())
		}
	}
	for _, h := range w.held {
		errs = append(errs, h.unpin())
	}
	w.status.Guarded = ""
	return errors.Join(append(errs, w.pins.release())...)
}

// renew brings in our programs and maps where others' of another layout served until now.
func (w *Witness) renew() error {
	if !w.old {
		return nil
	}
	w.old = false
	var errs []error
	for _, d := range w.devices {
		if d.hook != nil {
			errs = append(errs, d.hook.update(w.program(d)))
		}
	}
	for _, l := range w.former {
		errs = append(errs, dropLink(l))
	}
	w.former = nil
	w.keepPins()
	return errors.Join(errs...)
}

// collect removes the pins of interfaces that are gone from this namespace, and the half-made pins that a crash left.
func (w *Witness) collect() {
	for _, path := range w.pins.list("") {
		if strings.HasSuffix(path, freshEnd) {
			w.logged("collect "+filepath.Base(path), absent(os.Remove(path)))
		}
	}
	for _, path := range w.pins.list(linkPrefix) {
		index, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(path), linkPrefix))
		if err != nil || w.devices[index] != nil {
			continue
		}
		if l, err := link.LoadPinnedLink(path, nil); err == nil {
			w.logged("collect "+filepath.Base(path), dropLink(l))
		}
	}
}

// maps are those that a guard keeps, by the names of their definitions.
func (w *Witness) maps() map[string]*ebpf.Map {
	m := w.objs.leakMaps
	return map[string]*ebpf.Map{
		leakMapCounters: m.Counters, leakMapDevices: m.Devices, leakMapFragments: m.Fragments,
		leakMapMeters: m.Meters, leakMapOwners: m.Owners, leakMapPolicies4: m.Policies4,
		leakMapPolicies6: m.Policies6, leakMapSamples: m.Samples, leakMapSenders: m.Senders,
		leakMapSettings: m.Settings, leakMapSubnets: m.Subnets, leakMapPaces: m.Paces,
		leakMapVlans: m.Vlans, leakMapTrains: m.Trains, leakMapForwarded: m.Forwarded,
	}
}
