package loader

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// device is an interface and its hook.
type device struct {
	index    int
	name     string
	kind     string
	ether    bool
	loopback bool
	master   int // index of the device that it is a port of
	lower    int // index of the device that it sits on, in this namespace
	conduit  int // of a switch's port: index of the device that it sends by, in this namespace
	vlan     vlan
	peer     int    // other end of a veth, when that is in this namespace
	exempt   uint32 // groups
	known    leakDevice
	noted    bool // the programs have known
	hook     hook // nil when there is none
	err      error
	gap      time.Duration
	chain    chain
	second   bool // its program is of the second set
}

func newDevice(l netlink.Link) *device {
	a := l.Attrs()
	d := &device{
		index: a.Index, name: a.Name, kind: l.Type(), master: a.MasterIndex,
		ether: a.EncapType == "ether", loopback: a.Flags&net.FlagLoopback != 0 || l.Type() == kindDummy, peer: peerOf(l),
	}
	d.stack(l)
	return d
}

// subscribe begins to hear of links. What happened before is for recheck to find.
func (w *Witness) subscribe() error {
	events := make(chan netlink.LinkUpdate, 64)
	w.unwatch = make(chan struct{})
	err := netlink.LinkSubscribeWithOptions(events, w.unwatch, netlink.LinkSubscribeOptions{
		ErrorCallback:     func(err error) { w.log.Debug("link watch", "err", err) },
		ReceiveBufferSize: 1 << 20, ReceiveBufferForceSize: capable(unix.CAP_NET_ADMIN),
	})
	if err != nil {
		close(w.unwatch)
		w.unwatch = nil
		return fmt.Errorf("watch links: %w", err)
	}
	w.events = events
	return nil
}

// heard handles one notification. When the watch ended, events were lost: begin another, then look at everything.
func (w *Witness) heard(u netlink.LinkUpdate, ok bool) {
	if !ok {
		close(w.unwatch)
		w.unwatch, w.events = nil, nil
		w.logged("watch links again", w.subscribe())
		w.logged("check interfaces", w.recheck())
		return
	}
	if u.IfInfomsg.Family != unix.AF_UNSPEC {
		return // a bridge speaking of its port, not of a link
	}
	if u.Header.Type == unix.RTM_DELLINK {
		w.vanish(u.Attrs().Index)
		w.relate()
		return
	}
	w.appear(newDevice(u.Link), time.Now())
	w.relate()
}

// recheck compares what is attached with what should be. It is the truth that events only hint at.
func (w *Witness) recheck() error {
	if w.events == nil {
		w.logged("watch links again", w.subscribe())
	}
	links, err := w.links()
	if err != nil {
		return err
	}
	now, there := time.Now(), map[int]bool{}
	for _, l := range links {
		there[l.Attrs().Index] = true
		w.appear(newDevice(l), now)
	}
	for index, d := range w.devices {
		if !there[index] {
			w.vanish(index)
		} else if d.hook != nil && !d.hook.alive() {
			w.log.Warn("program was taken off", "interface", d.name)
			w.logged("detach", d.hook.detach())
			d.hook = nil
			w.cover(d, now)
		}
	}
	w.relate()
	w.lookUnseen(links)
	return w.syncSubnets()
}

// links lists all interfaces, again when they changed meanwhile.
func (w *Witness) links() ([]netlink.Link, error) {
	var links []netlink.Link
	var err error
	for range 5 {
		if links, err = w.handle.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return links, nil
}

// appear takes note of an interface, new or changed, and attaches to it at once if it should be watched.
func (w *Witness) appear(d *device, heard time.Time) {
	if have, ok := w.devices[d.index]; ok {
		changed := have.ether != d.ether
		if have.peer != d.peer {
			w.stale()
		}
		have.name, have.master, have.peer, have.ether = d.name, d.master, d.peer, d.ether
		have.lower, have.conduit, have.vlan = d.lower, d.conduit, d.vlan
		d = have
		if changed && d.hook != nil {
			w.reload(d)
		}
	} else {
		w.stale()
		w.logged("fold the sums of an earlier interface "+strconv.Itoa(d.index), w.foldEarlier(d.index))
		d.exempt = w.groups.of(d.index)
		w.devices[d.index] = d
	}
	if d.hook == nil {
		w.cover(d, heard)
	} else {
		w.precede(d, heard)
	}
}

// reload gives an interface that changed its kind, as a modem may, the program of the new one. The old one goes on until
// then, and looks at what the kernel says where it cannot read a frame.
func (w *Witness) reload(d *device) {
	if err := d.hook.update(w.program(d)); err != nil {
		d.ether = !d.ether // tried again at the next look
		d.err = fmt.Errorf("follow the kind of %s: %w", d.name, err)
		w.log.Warn("follow the kind of an interface", "interface", d.name, "err", err)
		return
	}
	w.log.Info("interface changed its kind", "interface", d.name, "ethernet", d.ether)
}

// vanish forgets an interface; the kernel has taken its program off already.
func (w *Witness) vanish(index int) {
	d, ok := w.devices[index]
	if !ok {
		return
	}
	delete(w.devices, index)
	w.stale()
	w.passed(index)
	if d.hook != nil {
		w.logged("forget "+d.name, d.hook.forget())
	}
	if err := w.objs.Devices.Delete(uint32(index)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		w.log.Warn("forget device", "interface", d.name, "err", err)
	}
}

// cover attaches to d if it should be watched, and only then tells the early hook that it need not mind d.
func (w *Witness) cover(d *device, heard time.Time) {
	if w.watched(d) {
		d.hook, d.err = w.attach(d)
		if d.err != nil {
			w.log.Warn("attach", "interface", d.name, "err", d.err)
		} else if w.opened {
			d.gap = time.Since(heard)
		}
	}
	w.logged("know "+d.name, w.know(d))
}

// watched says whether d needs a program.
func (w *Witness) watched(d *device) bool { return !d.loopback && !sole(w.cfg.Tunnels, d.index) }

// sole is true of the only tunnel: nothing that belongs elsewhere can be lost in it but what the table decides.
func sole(tunnels []int, index int) bool {
	return len(tunnels) > 0 && !slices.ContainsFunc(tunnels, func(t int) bool { return t != index })
}

// unknow forgets devices that went while no process looked, lest one that gets the same index is taken for them.
func (w *Witness) unknow() error {
	var gone []uint32
	var index uint32
	var known leakDevice
	it := w.objs.Devices.Iterate()
	for it.Next(&index, &known) {
		if w.devices[int(index)] == nil {
			gone = append(gone, index)
		}
	}
	errs := []error{it.Err()}
	for _, index := range gone {
		errs = append(errs, w.objs.Devices.Delete(index))
	}
	return errors.Join(append(errs, w.foldUnknown())...)
}

// widen covers, before a policy is swapped, what the new one wants watched and the old one did not.
func (w *Witness) widen() {
	for _, d := range w.devices {
		if d.hook == nil && w.watched(d) {
			w.cover(d, time.Now())
		}
	}
}

// narrow lets go, after a policy was swapped, of what no longer needs a program.
func (w *Witness) narrow() error {
	var errs []error
	for _, d := range w.devices {
		if d.hook != nil && !w.watched(d) {
			errs = append(errs, d.hook.detach())
			d.hook = nil
		}
	}
	return errors.Join(errs...)
}

func (w *Witness) interfaces() []Interface {
	list := make([]Interface, 0, len(w.devices))
	for _, d := range w.devices {
		list = append(list, Interface{
			Index: d.index, Name: d.name, Mode: w.mode(d), Upper: w.upper(d), Err: errors.Join(d.err, d.chain.err), Gap: d.gap,
			Displaced: d.chain.moves, Rival: d.chain.rival,
		})
	}
	slices.SortFunc(list, func(a, b Interface) int { return cmp.Compare(a.Index, b.Index) })
	return list
}

func (w *Witness) mode(d *device) Mode {
	switch {
	case d.hook != nil:
		return d.hook.mode()
	case d.loopback:
		return ModeLoopback
	case !w.watched(d):
		return ModeTunnel
	}
	return ModeNone
}
