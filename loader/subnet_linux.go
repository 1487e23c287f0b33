package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// subnets are what the programs know of each device's addresses: the networks on its link, and what leads back into this
// namespace.
type subnets map[leakSubnetKey]leakSubnet

// add notes a network of a device.
func (s subnets) add(index int, p netip.Prefix, place leakPlace) {
	key := leakSubnetKey{Bits: uint32(64 + p.Bits()), Ifindex: uint32(index), Family: 4}
	value := leakSubnet{Place: uint32(place)}
	if a := p.Masked().Addr(); a.Is4() {
		b := a.As4()
		key.Addr[0] = binary.NativeEndian.Uint32(b[:])
		value.Hosts = hostBits(p.Bits())
	} else {
		key.Family, key.Addr = 6, words(a)
	}
	if _, ok := s[key]; !ok || place != leakPlacePLACE_LINK {
		s[key] = value
	}
}

// hostBits are those that are all ones in the broadcast address of an IPv4 network; 0 of one so small that it has none.
func hostBits(bits int) uint32 {
	if bits > 30 {
		return 0
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], ^uint32(0)>>bits)
	return binary.NativeEndian.Uint32(b[:])
}

// ofNone is where this host's own addresses are: they are no device's, lest each device that leads back in repeats them.
const ofNone = 0

// wanted is what the programs should know, by the addresses that this namespace has.
func (w *Witness) wanted(addrs []netlink.Addr) subnets {
	all := subnets{}
	for _, a := range addrs {
		if p, ok := onLink(&a); ok {
			all.add(a.LinkIndex, p, leakPlacePLACE_LINK)
		}
	}
	back := false
	for _, d := range w.devices {
		switch {
		case d.kind == kindIFB:
			all.add(d.index, netip.PrefixFrom(netip.IPv4Unspecified(), 0), leakPlacePLACE_INWARD)
			all.add(d.index, netip.PrefixFrom(netip.IPv6Unspecified(), 0), leakPlacePLACE_INWARD)
		case w.loops(d):
			all[leakSubnetKey{Bits: 64, Ifindex: uint32(d.index)}] = leakSubnet{Place: uint32(leakPlacePLACE_OWN)}
			back = true
		}
	}
	for _, a := range addrs {
		if own, ok := ownAddress(&a); ok && back {
			all.add(ofNone, own, leakPlacePLACE_OWN)
		}
	}
	return all
}

// onLink is the network that an address says is on its link: the peer's, where it has one.
func onLink(a *netlink.Addr) (netip.Prefix, bool) {
	if a.Peer != nil && len(a.Peer.IP) > 0 {
		return prefixOf(a.Peer)
	}
	return prefixOf(a.IPNet)
}

func ownAddress(a *netlink.Addr) (netip.Prefix, bool) {
	p, ok := prefixOf(a.IPNet)
	return netip.PrefixFrom(p.Addr(), p.Addr().BitLen()), ok
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	p := netip.PrefixFrom(a.Unmap(), ones)
	return p, ok && p.IsValid()
}

// subscribeAddresses begins to hear of addresses. What is lost is for recheck to find.
func (w *Witness) subscribeAddresses() error {
	events := make(chan netlink.AddrUpdate, 64)
	w.unwatchAddrs = make(chan struct{})
	err := netlink.AddrSubscribeWithOptions(events, w.unwatchAddrs, netlink.AddrSubscribeOptions{
		ErrorCallback: func(err error) { w.log.Debug("address watch", "err", err) },
	})
	if err != nil {
		close(w.unwatchAddrs)
		w.unwatchAddrs = nil
		return fmt.Errorf("watch addresses: %w", err)
	}
	w.addrs = events
	return nil
}

// settling is how long changes of addresses are gathered: a flood of them costs one look.
const settling = 10 * time.Millisecond

// heardAddress sees to it that the addresses are looked at soon.
func (w *Witness) heardAddress(ok bool) {
	if !ok {
		close(w.unwatchAddrs)
		w.unwatchAddrs, w.addrs = nil, nil
	}
	w.stale()
}

// stale has the networks looked at soon.
func (w *Witness) stale() {
	if w.settled == nil {
		w.settled = time.After(settling)
	}
}

// syncSubnets brings what the programs know up to the addresses that are there.
func (w *Witness) syncSubnets() error {
	w.settled = nil
	if w.addrs == nil {
		w.logged("watch addresses again", w.subscribeAddresses())
	}
	addrs, err := w.handle.AddrList(nil, netlink.FAMILY_ALL)
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		w.stale()
		return nil
	}
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	return w.putSubnets(w.wanted(addrs))
}

// putSubnets changes what differs. What is new comes first: for a moment too much is known rather than too little.
func (w *Witness) putSubnets(want subnets) error {
	var errs []error
	for key, value := range want {
		if have, ok := w.subnets[key]; ok && have == value {
			continue
		}
		if err := w.objs.Subnets.Put(key, value); err != nil {
			errs = append(errs, fmt.Errorf("note network: %w", err))
			continue
		}
		w.subnets[key] = value
	}
	for key := range w.subnets {
		if _, ok := want[key]; ok {
			continue
		}
		if err := w.objs.Subnets.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("forget network: %w", err))
			continue
		}
		delete(w.subnets, key)
	}
	return errors.Join(errs...)
}

// readSubnets learns what an adopted guard knows.
func (w *Witness) readSubnets() error {
	var key leakSubnetKey
	var value leakSubnet
	it := w.objs.Subnets.Iterate()
	for it.Next(&key, &value) {
		w.subnets[key] = value
	}
	return wrap("read networks", it.Err())
}

// The kinds of devices that lead back into the namespace.
const (
	kindIFB   = "ifb"
	kindVeth  = "veth"
	kindDummy = "dummy"
)

// loops is true of a device whose other end is in this namespace too.
func (w *Witness) loops(d *device) bool {
	_, here := w.devices[d.peer]
	return d.kind == kindVeth && here
}

// peerOf is the other end of a veth, 0 when it is in another namespace.
func peerOf(l netlink.Link) int {
	if a := l.Attrs(); l.Type() == kindVeth && a.NetNsID < 0 {
		return a.ParentIndex
	}
	return 0
}
