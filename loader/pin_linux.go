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
	"golang.org/x/sys/unix"
)

// Where pins are looked for and made: in the system's BPF file system, or else in one of our own.
const (
	systemBPF = "/sys/fs/bpf"
	ownBPF    = "/run/culvert/bpf"
)

const (
	mapPrefix  = "map_"
	linkPrefix = "link_"
)

// pins is the folder of one namespace's pins. It need not exist.
type pins struct {
	base   string // where a BPF file system is, or is to be mounted
	dir    string
	layout string // of the maps, part of their names: those of others are not ours to use
}

func findPins(base string, ns namespace) pins {
	if base == "" {
		base = ownBPF
		if isBPF(systemBPF) {
			base = filepath.Join(systemBPF, "culvert")
		}
	}
	return pins{base: base, dir: filepath.Join(base, ns.name())}
}

func isBPF(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.BPF_FS_MAGIC
}

func (p pins) link(ifindex int) string    { return p.named(strconv.Itoa(ifindex)) }
func (p pins) named(name string) string   { return filepath.Join(p.dir, linkPrefix+name) }
func (p pins) mapPath(name string) string { return filepath.Join(p.dir, mapPrefix+p.layout+"_"+name) }
func (p pins) list(prefix string) []string {
	m, _ := filepath.Glob(filepath.Join(p.dir, prefix+"*"))
	return m
}

// make makes the folder, and mounts a file system for it where there is none.
func (p pins) make() error {
	if err := os.MkdirAll(p.base, 0o700); err != nil {
		return fmt.Errorf("make pin folder: %w", err)
	}
	if !isBPF(p.base) {
		err := unix.Mount("bpf", p.base, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700")
		if err != nil {
			return fmt.Errorf("mount bpf file system on %s: %w", p.base, err)
		}
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return fmt.Errorf("make pin folder: %w", err)
	}
	return nil
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

// tidy removes the folders once they are empty, and the file system that we mounted for them.
func (p pins) tidy() error {
	if err := absent(os.Remove(p.dir)); err != nil {
		return fmt.Errorf("remove pin folder: %w", err)
	}
	if rest, _ := filepath.Glob(filepath.Join(p.base, "net-*")); len(rest) > 0 {
		return nil // of other namespaces
	}
	if p.mountPoint() {
		if err := unix.Unmount(p.base, 0); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("unmount %s: %w", p.base, err)
		}
	}
	os.Remove(p.base) // fails where it still serves
	return nil
}

// mountPoint tells a file system mounted on base from one that base is a folder of.
func (p pins) mountPoint() bool { return isBPF(p.base) && !isBPF(filepath.Dir(p.base)) }

// absent makes a success of what was not there.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// guardBefore pins everything before a policy that asks for it comes into force. A drop without a guard to be had is
// better than none.
func (w *Witness) guardBefore(cfg Config) error {
	if w.status.Guarded != "" || !guarded(cfg) {
		return nil
	}
	err := w.guard()
	if err != nil && !cfg.Guard {
		w.log.Warn("not guarded: drops end with this process", "err", err)
		return nil
	}
	return err
}

// guardAfter unpins once the policy no longer asks for it.
func (w *Witness) guardAfter(cfg Config) error {
	if guarded(cfg) || w.status.Guarded == "" && !w.status.Adopted {
		return nil
	}
	return w.unguard()
}

// guarded says whether cfg must outlive the process.
func guarded(cfg Config) bool {
	drop := cfg.Action == Drop
	for _, p := range cfg.Prefixes {
		drop = drop || p.Drop
	}
	return cfg.Guard || drop
}

// guard pins the maps, then the links. What a crash leaves in between is adopted or released like the whole.
func (w *Witness) guard() error {
	if err := w.pins.make(); err != nil {
		return err
	}
	if err := w.pinAll(); err != nil {
		return errors.Join(err, w.unguard())
	}
	w.status.Guarded = w.pins.dir
	return nil
}

func (w *Witness) pinAll() error {
	for name, m := range w.maps() {
		if err := pin(m, w.pins.mapPath(name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	for _, d := range w.devices {
		if d.hook == nil {
			continue
		}
		if err := d.hook.pin(w.pins.link(d.index)); err != nil {
			return fmt.Errorf("pin link of %s: %w", d.name, err)
		}
	}
	for name, h := range w.held {
		if err := h.link.Pin(w.pins.named(name)); err != nil {
			return fmt.Errorf("pin link %s: %w", name, err)
		}
	}
	return w.pins.forgetOthers()
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

// pin puts m in place of what is pinned there. A crash between leaves a guard that is not whole, which still holds: the
// links keep their maps.
func pin(m *ebpf.Map, path string) error {
	if err := absent(os.Remove(path)); err != nil {
		return err
	}
	m, err := m.Clone() // one that does not know where it was pinned before
	if err != nil {
		return err
	}
	defer m.Close()
	return m.Pin(path)
}

// unguard removes every pin; what this process holds stays attached as long as it lives.
func (w *Witness) unguard() error {
	var errs []error
	for _, d := range w.devices {
		if d.hook != nil {
			errs = append(errs, d.hook.unpin())
		}
	}
	for _, h := range w.held {
		errs = append(errs, absent(h.link.Unpin()))
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
	if guarded(w.cfg) {
		errs = append(errs, w.guard())
	}
	return errors.Join(errs...)
}

// collect removes pins of interfaces that are gone. A link whose interface is another namespace's by now has none here.
func (w *Witness) collect() {
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
		leakMapSettings: m.Settings,
	}
}
