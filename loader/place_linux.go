package loader

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Where pins are looked for and made: in the system's BPF file system, or else in one of our own.
const (
	systemBPF = "/sys/fs/bpf"
	ownBPF    = "/run/culvert/bpf"
)

// pins is the folder of one namespace's pins. It need not exist.
type pins struct {
	base   string // where a BPF file system is, or is to be mounted
	dir    string
	layout string // of the maps, part of their names: those of others are not ours to use
}

// bases are where pins may be, the best first: base alone, when it is given.
func bases(base string) []string {
	switch {
	case base != "":
		return []string{base}
	case isBPF(systemBPF):
		return []string{filepath.Join(systemBPF, "culvert"), ownBPF}
	}
	return []string{ownBPF}
}

// places are where a namespace's pins may be. One that holds some is first: a guard is looked for where it is, whatever
// was mounted or unmounted since.
func places(base string, ns namespace) (list []pins) {
	for _, b := range bases(base) {
		p := pins{base: b, dir: filepath.Join(b, ns.name())}
		if len(p.list("")) > 0 {
			list = append([]pins{p}, list...)
		} else {
			list = append(list, p)
		}
	}
	return list
}

func findPins(base string, ns namespace) pins { return places(base, ns)[0] }

// place makes the folder of pins in the first place that takes one.
func (w *Witness) place() error {
	var errs []error
	for _, p := range places(w.opts.PinDir, w.ns) {
		if err := p.make(); err != nil {
			errs = append(errs, err)
			continue
		}
		p.layout = w.pins.layout
		w.pins = p
		return nil
	}
	return errors.Join(errs...)
}

func isBPF(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.BPF_FS_MAGIC
}

// make makes the folder, and mounts a file system for it where there is none.
func (p pins) make() error {
	if info, err := os.Stat(p.dir); err == nil && info.IsDir() && isBPF(p.dir) {
		return nil // while it is there nobody unmounts
	}
	if err := os.MkdirAll(filepath.Dir(p.base), 0o755); err != nil {
		return fmt.Errorf("make pin folder: %w", err)
	}
	if unlock, err := p.lock(); err == nil { // else another holds it and is stopped: pins matter more
		defer unlock()
	}
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

// lasting is nil when process 1 has the pins' file system mounted too. One that only a private mount namespace has goes
// with the last process in there, and no other process finds its pins.
func (p pins) lasting() error {
	var st unix.Stat_t
	if err := unix.Stat(p.dir, &st); err != nil {
		return fmt.Errorf("look at %s: %w", p.dir, err)
	}
	device := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	lasts, err := mounted("/proc/1/mountinfo", device, func([]string) bool { return true })
	if err != nil { // process 1 is hidden: a mount that came from elsewhere, or goes there, has a mark
		lasts, err = mounted("/proc/self/mountinfo", device, propagates)
	}
	switch {
	case err != nil:
		return fmt.Errorf("find the mount of %s: %w", p.dir, err)
	case !lasts:
		return fmt.Errorf("%s is mounted in this process's private mount namespace only, and ends with it: "+
			"start the daemon in that of process 1 (nsenter --net in place of ip netns exec)", p.dir)
	}
	return nil
}

// mounted reports whether a list of mounts has one of a device (major:minor) whose optional fields fit.
func mounted(list, device string, fit func(optional []string) bool) (bool, error) {
	f, err := os.Open(list)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return mountedIn(f, device, fit)
}

// mountedIn reads lines of id, parent, device, root, mount point, options, optional fields - type, source, options.
func mountedIn(list io.Reader, device string, fit func(optional []string) bool) (bool, error) {
	s := bufio.NewScanner(list)
	for s.Scan() {
		before, _, _ := strings.Cut(s.Text(), " - ")
		if f := strings.Fields(before); len(f) >= 6 && f[2] == device && fit(f[6:]) {
			return true, nil
		}
	}
	return false, s.Err()
}

func propagates(optional []string) bool {
	for _, o := range optional {
		if strings.HasPrefix(o, "shared:") || strings.HasPrefix(o, "master:") {
			return true
		}
	}
	return false
}

// tidy removes the folders once they are empty, and the file system that we mounted for them.
func (p pins) tidy() error {
	if err := absent(os.Remove(p.dir)); err != nil {
		return fmt.Errorf("remove pin folder: %w", err)
	}
	if !p.mountPoint() {
		os.Remove(p.base) // fails where it still serves
		return nil
	}
	// Nothing may be pinned between the look and the unmounting: it would be lost, and a guard's drops with it.
	unlock, err := p.lock()
	if err != nil {
		return nil //nolint:nilerr // the file system stays: that does no harm
	}
	defer unlock()
	if !p.empty() {
		return nil // of other namespaces
	}
	if err := unix.Unmount(p.base, 0); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("unmount %s: %w", p.base, err)
	}
	os.Remove(p.base)
	return nil
}

// empty is true where no namespace has a folder of pins, and that is certain. What the kernel itself shows in such a file
// system (maps.debug, progs.debug) is nobody's pin.
func (p pins) empty() bool {
	list, err := os.ReadDir(p.base)
	return err == nil && !slices.ContainsFunc(list, fs.DirEntry.IsDir)
}

// lock keeps the processes apart that mount, make folders and unmount. Who holds it does so for an instant; one that was
// stopped then is not waited for.
func (p pins) lock() (unlock func(), err error) {
	f, err := os.Open(filepath.Dir(p.base))
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(10 * time.Millisecond) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

const lockPatience = 2 * time.Second

// mountPoint tells a file system mounted on base from one that base is a folder of.
func (p pins) mountPoint() bool { return isBPF(p.base) && !isBPF(filepath.Dir(p.base)) }
