package loader

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Witness watches the network namespace that its Open was called in. Its state belongs to one goroutine, on a thread
// of that namespace; the methods may be called from any.
type Witness struct {
	opts Options
	log  *slog.Logger
	ops  chan func()
	quit chan struct{}
	done chan struct{}

	objs   leakObjects  // safe for use by many
	second leakPrograms // the same programs once more, empty until one is needed
	ring   *ringbuf.Reader
	trie4  *ebpf.MapSpec
	trie6  *ebpf.MapSpec
	past   past

	// The rest is the goroutine's own.
	put          func(m *ebpf.Map, key, value any) error // stores of a swap
	cfg          Config
	rules        rules
	tries        tries // in force, of this process's own
	groups       groups
	status       Status
	ns           namespace
	pins         pins
	handle       *netlink.Handle
	events       <-chan netlink.LinkUpdate
	unwatch      chan struct{}
	addrs        <-chan netlink.AddrUpdate
	unwatchAddrs chan struct{}
	settled      <-chan time.Time // when the networks are looked at
	subnets      subnets          // as the programs know them
	devices      map[int]*device
	vlans        map[leakVlanKey]uint32 // as the programs know them
	wrapping     wrapping
	held         map[string]*anchor // hooks that are not an interface's, by name
	former       []link.Link        // such of a guard with maps of another layout, until the first Set
	opened       bool               // interfaces from now on are new
	configured   bool               // Set was called: what a guard knew is superseded
	old          bool               // pinned maps of another layout still serve until the first Set
	closeErr     error
}

// Open attaches a witness to every interface of the calling thread's network namespace, and goes on doing so as others
// appear. A guard that an earlier process left behind is taken over: its policy stays in force until Set.
//
// It needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; CAP_SYS_ADMIN as well to guard where no BPF file system is mounted that
// it may write to, and when the calling thread is not in the process's own namespace.
func Open(opts Options) (*Witness, error) {
	if len(_LeakBytes) == 0 {
		return nil, fmt.Errorf("%w: its byte order is one that the eBPF programs are not built for", ErrUnsupported)
	}
	opts = opts.withDefaults()
	ns, err := openNamespace()
	if err != nil {
		return nil, err
	}
	w := &Witness{
		opts: opts, log: opts.Logger, ns: ns,
		ops: make(chan func()), quit: make(chan struct{}), done: make(chan struct{}),
		devices: map[int]*device{}, vlans: map[leakVlanKey]uint32{}, held: map[string]*anchor{}, subnets: subnets{},
		put: (*ebpf.Map).Put,
	}
	ready := make(chan error)
	go w.run(ready)
	if err := <-ready; err != nil {
		return nil, privileged(err)
	}
	return w, nil
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.modes == nil {
		o.modes = []Mode{ModeTCX, ModeClsact}
	}
	o.Burst = cmp.Or(o.Burst, 64)
	o.Recheck = cmp.Or(o.Recheck, 5*time.Second)
	return o
}

// run is the goroutine: start, loop, stop.
func (w *Witness) run(ready chan<- error) {
	defer close(w.done)
	defer w.ns.close()
	leave, err := w.ns.enter()
	if err != nil {
		ready <- err
		return
	}
	defer leave()
	if err := w.start(); err != nil {
		ready <- errors.Join(err, w.stop())
		return
	}
	ready <- nil
	w.loop()
	w.closeErr = w.stop()
}

// start attaches from the inside out: what is adopted is never down, what is new comes up with its maps in place.
func (w *Witness) start() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		w.log.Debug("memlock limit stays", "err", err)
	}
	w.pins = findPins(w.opts.PinDir, w.ns)
	if err := w.load(); err != nil {
		return err
	}
	ring, err := ringbuf.NewReader(w.objs.Samples)
	if err != nil {
		return fmt.Errorf("open ring samples: %w", err)
	}
	w.ring = ring
	if w.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink handle: %w", err)
	}
	if err := w.subscribe(); err != nil {
		return err
	}
	if err := w.subscribeAddresses(); err != nil {
		return err
	}
	w.startEarly()
	if err := w.recheck(); err != nil {
		return err
	}
	w.opened = true
	w.startSenders()
	w.collect()
	w.keepPins()
	return w.unknow()
}

// load makes the maps, or takes those that are pinned, and loads the programs on them.
func (w *Witness) load() error {
	spec, err := w.leakSpec()
	if err != nil {
		return err
	}
	w.pins.layout = layoutOf(spec)
	w.trie4, w.trie6 = spec.Maps[leakMapPolicies4].InnerMap, spec.Maps[leakMapPolicies6].InnerMap
	pinned, err := w.pins.maps(spec)
	w.old = errors.Is(err, ebpf.ErrMapIncompatible)
	if err != nil && !w.old {
		return err
	}
	if pinned != nil || w.old {
		w.status.Adopted, w.status.Guarded = true, w.pins.dir
	}
	err = spec.LoadAndAssign(&w.objs, &ebpf.CollectionOptions{MapReplacements: pinned})
	closeMaps(pinned)
	if err != nil {
		return fmt.Errorf("load object leak: %w", err)
	}
	return errors.Join(w.reserve(), w.readDeadline(), w.readSubnets(), w.readVlans())
}

func (w *Witness) leakSpec() (*ebpf.CollectionSpec, error) {
	spec, err := loadLeak()
	if err != nil {
		return nil, fmt.Errorf("read object leak: %w", err)
	}
	if err := spec.Variables[leakVarSampleBurst].Set(uint32(w.opts.Burst)); err != nil {
		return nil, fmt.Errorf("set sample burst: %w", err)
	}
	return spec, nil
}

// reserve makes the counters that take what finds no room.
func (w *Witness) reserve() error {
	for _, why := range []leakReason{leakReasonREASON_OVERFLOW, leakReasonREASON_EXEMPT} {
		key := leakCounterKey{Reason: uint32(why)}
		err := w.objs.Counters.Update(key, make([]leakCounter, ebpf.MustPossibleCPU()), ebpf.UpdateNoExist)
		if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("make counter %d: %w", why, err)
		}
	}
	return nil
}

// loop handles one event at a time until Close.
func (w *Witness) loop() {
	tick := time.NewTicker(w.opts.Recheck)
	defer tick.Stop()
	for {
		select {
		case <-w.quit:
			return
		case op := <-w.ops:
			op()
		case u, ok := <-w.events:
			w.heard(u, ok)
		case _, ok := <-w.addrs:
			w.heardAddress(ok)
		case <-w.settled:
			w.logged("look at networks", w.syncSubnets())
		case <-tick.C:
			w.logged("check interfaces", w.recheck())
			w.keepPins()
		}
	}
}

// do runs f on the witness's goroutine and returns its error.
func (w *Witness) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case w.ops <- func() { result <- f() }:
		return <-result
	case <-w.done:
		return ErrClosed
	}
}

func (w *Witness) logged(op string, err error) {
	if err != nil {
		w.log.Warn(op, "err", err)
	}
}

// Close detaches everything, unless it is guarded: then the kernel goes on without this process.
func (w *Witness) Close() error {
	err := w.do(func() error {
		close(w.quit)
		return nil
	})
	<-w.done
	if err != nil {
		return nil // was closed already
	}
	return w.closeErr
}

// stop undoes start.
func (w *Witness) stop() error {
	var errs []error
	if w.unwatch != nil {
		close(w.unwatch)
	}
	if w.unwatchAddrs != nil {
		close(w.unwatchAddrs)
	}
	for _, d := range w.devices {
		errs = append(errs, w.leave(d))
	}
	for _, h := range w.held {
		errs = append(errs, h.link.Close())
	}
	for _, l := range w.former {
		errs = append(errs, l.Close())
	}
	if w.handle != nil {
		w.handle.Close()
	}
	if w.ring != nil {
		errs = append(errs, w.ring.Close())
	}
	if w.second != (leakPrograms{}) {
		errs = append(errs, w.second.Close())
	}
	w.tries.close()
	return errors.Join(append(errs, w.objs.Close())...)
}

// leave lets go of a device's hook: a guarded one stays.
func (w *Witness) leave(d *device) error {
	if d.hook == nil {
		return nil
	}
	if w.status.Guarded != "" {
		return d.hook.release()
	}
	return d.hook.detach()
}

// Status returns what is attached where, and what could not be had.
func (w *Witness) Status() (Status, error) {
	var s Status
	err := w.do(func() error {
		s = w.status
		s.Interfaces = w.interfaces()
		return w.meters(&s)
	})
	return s, err
}

func (w *Witness) meters(s *Status) error {
	var cpus []leakMeter
	if err := w.objs.Meters.Lookup(uint32(0), &cpus); err != nil {
		return fmt.Errorf("read meters: %w", err)
	}
	for _, m := range cpus {
		s.Suppressed += m.Suppressed
		s.Lost += m.Lost
	}
	return nil
}

func closeMaps(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		m.Close()
	}
}

// Release takes down what a guard left in the calling thread's network namespace: links, filters, maps and, where it was
// made for them, the BPF file system. Nothing there is a success. A witness that is open goes on without its pins.
func Release(opts Options) error {
	ns, err := openNamespace()
	if err != nil {
		return err
	}
	defer ns.close()
	leave, err := ns.enter()
	if err != nil {
		return err
	}
	defer leave()
	var errs []error
	for _, p := range places(opts.PinDir, ns) {
		errs = append(errs, p.release())
	}
	return privileged(errors.Join(append(errs, removeFilters())...))
}

// OtherGuards lists the folders of the guards of all network namespaces but the calling thread's, as far as PinDir holds
// them.
func OtherGuards(opts Options) ([]string, error) {
	ns, err := openNamespace()
	if err != nil {
		return nil, err
	}
	defer ns.close()
	var list []string
	for _, own := range places(opts.PinDir, ns) {
		here, err := filepath.Glob(filepath.Join(own.base, "net-*"))
		if err != nil {
			return nil, fmt.Errorf("list guards: %w", err)
		}
		list = append(list, slices.DeleteFunc(here, func(folder string) bool { return folder == own.dir })...)
	}
	return list, nil
}

// ReleaseGuard takes down what is pinned in a folder that OtherGuards lists. It is for namespaces that cannot be entered: a
// guard keeps one alive, with its interfaces, when it has no name and no process any more. A clsact filter is no pin: it
// goes with its interface, or by Release within.
func ReleaseGuard(opts Options, folder string) error {
	others, err := OtherGuards(opts)
	if err != nil {
		return err
	}
	folder = filepath.Clean(folder)
	if !slices.Contains(others, folder) {
		return fmt.Errorf("%s: %w", folder, ErrNoGuard)
	}
	return privileged(pins{base: filepath.Dir(folder), dir: folder}.release())
}
