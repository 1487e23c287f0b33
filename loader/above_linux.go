package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// The programs are told how devices stand on each other: whose port a device is, whether what leaves by it leaves once
// more by another, and which device a VLAN's frames come from. By this they decide which device's domain a packet is in.

// The kinds whose frames the witness can read at the device below. Other kinds write before the IP header what it does not
// know (a switch's tag, HSR, batman-adv): their packets are judged and counted at the device itself alone.
var (
	stacked  = []string{"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"} // on one device
	carriers = []string{"bridge", "bond", "team"}                         // on ports, by which nothing else leaves
	gatherer = append([]string{"vrf"}, carriers...)                       // on ports
)

const (
	kindSwitchPort = "dsa"
	kindOVS        = "openvswitch" // an internal port; other ports have kinds of their own
)

// vlan is the tag of a device's frames; id is 0 if the device is no VLAN.
type vlan struct{ proto, id uint16 }

// stack notes what the device sits on.
func (d *device) stack(l netlink.Link) {
	a := l.Attrs()
	if a.NetNsID >= 0 {
		return
	}
	switch {
	case slices.Contains(stacked, d.kind):
		d.lower = a.ParentIndex
	case d.kind == kindSwitchPort:
		d.conduit = a.ParentIndex
	}
	if v, ok := l.(*netlink.Vlan); ok {
		d.vlan = vlan{uint16(v.VlanProtocol), uint16(v.VlanId)}
	}
}

// know writes what the programs should know of d: nothing while d should have a program and has none.
func (w *Witness) know(d *device) error {
	if d.hook == nil && w.watched(d) {
		d.noted = false
		if err := w.objs.Devices.Delete(uint32(d.index)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget device %s: %w", d.name, err)
		}
		return nil
	}
	want := leakDevice{Groups: d.exempt, Master: w.domain(d), Flags: w.flags(d)}
	if !w.configured {
		var have leakDevice
		if err := w.objs.Devices.Lookup(uint32(d.index), &have); err == nil {
			want.Groups = have.Groups // what a guard knows of them holds until the first Set
		}
	}
	if d.noted && d.known == want {
		return nil
	}
	if err := w.objs.Devices.Put(uint32(d.index), want); err != nil {
		return fmt.Errorf("note device %s: %w", d.name, err)
	}
	d.known, d.noted = want, true
	return nil
}

// relate tells the programs what changed in how devices stand on each other.
func (w *Witness) relate() {
	for _, d := range w.devices {
		if d.noted {
			w.logged("know "+d.name, w.know(d))
		}
	}
	w.logged("note VLANs", w.syncVlans())
}

// domain is the index of d's master if all that leaves by d is the master's, else 0: a port of a VRF, of a switch or of a
// mesh may send packets of its own.
func (w *Witness) domain(d *device) uint32 {
	if m := w.devices[d.master]; m != nil && slices.Contains(carriers, m.kind) {
		return uint32(d.master)
	}
	return 0
}

func (w *Witness) flags(d *device) (flags uint32) {
	if w.upper(d) {
		flags |= deviceUpper
	}
	for _, port := range w.devices {
		if port.conduit == d.index {
			flags |= deviceConduit
		}
	}
	return flags
}

// As the programs have them (DEVICE_UPPER, DEVICE_CONDUIT).
const (
	deviceUpper   = 1
	deviceConduit = 2
)

// upper is true of a device whose packets leave again by another one of this namespace, where they are seen.
func (w *Witness) upper(d *device) bool {
	if below := w.devices[d.lower]; below != nil && below.hook != nil || d.kind == kindIFB || w.loops(d) {
		return true
	}
	switch master := w.devices[d.master]; {
	case slices.Contains(gatherer, d.kind):
		return w.anyPort(d.index, func(*device) bool { return true })
	case d.kind == kindOVS && master != nil && master.kind == kindOVS:
		return w.anyPort(d.master, func(port *device) bool { return port.kind != kindOVS })
	}
	return false
}

// anyPort reports whether a master has a port that is watched and fits.
func (w *Witness) anyPort(master int, fits func(*device) bool) bool {
	for _, port := range w.devices {
		if port.master == master && port.hook != nil && fits(port) {
			return true
		}
	}
	return false
}

// syncVlans makes the programs' table of VLANs that of the devices that are there.
func (w *Witness) syncVlans() error {
	want := map[leakVlanKey]uint32{}
	for _, d := range w.devices {
		if d.vlan.id != 0 && d.lower != 0 {
			want[leakVlanKey{Ifindex: uint32(d.lower), Proto: bigEndian(d.vlan.proto), Vid: d.vlan.id}] = uint32(d.index)
		}
	}
	if maps.Equal(want, w.vlans) {
		return nil
	}
	var errs []error
	for key := range w.vlans {
		if _, ok := want[key]; ok {
			continue
		}
		if err := w.objs.Vlans.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
			continue
		}
		delete(w.vlans, key)
	}
	for key, index := range want {
		if w.vlans[key] == index {
			continue
		}
		if err := w.objs.Vlans.Put(key, index); err != nil {
			errs = append(errs, err)
			continue
		}
		w.vlans[key] = index
	}
	return errors.Join(errs...)
}

// readVlans learns what an adopted guard knows.
func (w *Witness) readVlans() error {
	var key leakVlanKey
	var index uint32
	it := w.objs.Vlans.Iterate()
	for it.Next(&key, &index) {
		w.vlans[key] = index
	}
	return wrap("read VLANs", it.Err())
}

func bigEndian(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
