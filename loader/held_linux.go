package loader

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// hold keeps a new link of the whole namespace or machine in place of what a guard pinned by that name, which goes only
// now.
func (w *Witness) hold(name string, l link.Link) {
	h := &anchor{link: l}
	w.held[name] = h
	path := w.pins.named(name)
	former, err := link.LoadPinnedLink(path, nil)
	if err == nil && w.old {
		w.former = append(w.former, former) // its maps hold the policy still
		return
	}
	if w.status.Guarded != "" && !w.old {
		if err := h.pin(path); err != nil {
			w.noteUnpinned(fmt.Errorf("pin link %s: %w", name, err))
		}
	}
	if err == nil {
		w.logged("drop former "+name, former.Close())
	}
}

// The early hook's place in its chain: after address translation. Each place takes one BPF program, so a successor
// finds the next.
const (
	earlyPriority = 290
	earlyTries    = 8
)

// startEarly covers interfaces that do not exist yet, where the kernel can (6.4). Status says where not.
func (w *Witness) startEarly() {
	if w.opts.noEarly {
		w.status.Early = "not asked for"
		return
	}
	if err := w.attachEarly(); err != nil {
		w.status.Early = err.Error()
		w.log.Info("no early hook: new interfaces have a gap", "err", err)
	}
}

func (w *Witness) attachEarly() error {
	if err := features.HaveProgramType(ebpf.Netfilter); err != nil {
		return fmt.Errorf("netfilter programs (Linux 6.4): %w", err)
	}
	spec, err := loadEarly()
	if err != nil {
		return fmt.Errorf("read object early: %w", err)
	}
	if err := spec.Variables[earlyVarSampleBurst].Set(uint32(w.opts.Burst)); err != nil {
		return fmt.Errorf("set sample burst: %w", err)
	}
	var progs earlyPrograms
	if err := spec.LoadAndAssign(&progs, &ebpf.CollectionOptions{MapReplacements: w.maps()}); err != nil {
		return fmt.Errorf("load object early: %w", err)
	}
	defer progs.Close()
	return errors.Join(
		w.attachFamily("early4", link.NetfilterProtoIPv4, progs.Early),
		w.attachFamily("early6", link.NetfilterProtoIPv6, progs.Early))
}

func (w *Witness) attachFamily(name string, family link.NetfilterProtocolFamily, prog *ebpf.Program) error {
	var err error
	for i := range int32(earlyTries) {
		var l link.Link
		l, err = link.AttachNetfilter(link.NetfilterOptions{
			Program: prog, ProtocolFamily: family, Hook: link.NetfilterInetPostRouting, Priority: earlyPriority + i,
		})
		if err == nil {
			w.hold(name, l)
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	return fmt.Errorf("attach %s: %w", name, err)
}

// startSenders notes who owns sockets from now on, then those that are older. Status says what could not be had.
func (w *Witness) startSenders() {
	if w.opts.NoSenders {
		w.status.Senders = "not asked for"
		return
	}
	if err := errors.Join(w.attachSenders(), w.seed()); err != nil {
		w.status.Senders = privileged(err).Error()
		w.log.Info("senders known in part", "err", err)
	}
}

func (w *Witness) senderSpec() (*ebpf.CollectionSpec, error) {
	spec, err := loadSender()
	if err != nil {
		return nil, fmt.Errorf("read object sender: %w", err)
	}
	if err := spec.Variables[senderVarNetns].Set(w.ns.cookie); err != nil {
		return nil, fmt.Errorf("set namespace: %w", err)
	}
	return spec, nil
}

func (w *Witness) attachSenders() error {
	spec, err := w.senderSpec()
	if err != nil {
		return err
	}
	delete(spec.Programs, senderProgSenderSeed)
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: w.maps()})
	if err != nil {
		return fmt.Errorf("load cgroup hooks: %w", err)
	}
	defer coll.Close()
	root, err := openCgroup()
	if err != nil {
		return err
	}
	defer root.Close()
	for name, prog := range coll.Programs {
		l, err := link.AttachCgroup(link.CgroupOptions{
			Path: fmt.Sprintf("/proc/self/fd/%d", root.Fd()), Attach: spec.Programs[name].AttachType, Program: prog,
		})
		if err != nil {
			return fmt.Errorf("attach %s: %w", name, err)
		}
		w.hold(name, l)
	}
	return nil
}

// openCgroup opens the root of the cgroup2 hierarchy: where it is mounted, or by a mount of our own that has no place in
// the file system.
func openCgroup() (*os.File, error) {
	if path := mountedCgroup(); path != "" {
		if f, err := os.Open(path); err == nil {
			return f, nil
		}
	}
	return openCgroupUnmounted()
}

func openCgroupUnmounted() (*os.File, error) {
	fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("find cgroup2: none mounted, and own mount: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("find cgroup2: none mounted, and own mount: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("find cgroup2: none mounted, and own mount: %w", err)
	}
	return os.NewFile(uintptr(fd), "cgroup2"), nil
}

// mountedCgroup finds the root of cgroup2 among this process's mounts, "" when there is none.
func mountedCgroup() string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if path := cgroupMount(s.Text()); path != "" {
			return path
		}
	}
	return ""
}

// cgroupMount reads one line: id, parent, device, root, mount point, options… - type, source, options.
func cgroupMount(line string) string {
	before, after, ok := strings.Cut(line, " - ")
	f := strings.Fields(before)
	if !ok || len(f) < 5 || f[3] != "/" || !strings.HasPrefix(after, "cgroup2 ") {
		return ""
	}
	return f[4]
}

// seed notes the owners of the sockets that are older than the hooks (5.11). The walk itself does the noting.
func (w *Witness) seed() error {
	spec, err := w.senderSpec()
	if err != nil {
		return err
	}
	for name := range spec.Programs {
		if name != senderProgSenderSeed {
			delete(spec.Programs, name)
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: w.maps()})
	var refused *ebpf.VerifierError
	switch {
	case errors.As(err, &refused): // a helper that it does not know
		w.log.Debug("seed older sockets", "err", err)
		return errors.New("sockets older than the daemon are guessed at: needs Linux 5.11")
	case err != nil:
		return fmt.Errorf("note older sockets (Linux 5.11): %w", err)
	}
	defer coll.Close()
	begin := time.Now()
	if err := iterate(coll.Programs[senderProgSenderSeed]); err != nil {
		return fmt.Errorf("seed older sockets: %w", err)
	}
	w.status.Seeded = time.Since(begin)
	return nil
}

func iterate(prog *ebpf.Program) error {
	it, err := link.AttachIter(link.IterOptions{Program: prog})
	if err != nil {
		return err
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}
