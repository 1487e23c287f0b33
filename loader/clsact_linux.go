package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// clsact is a hook by filter. The kernel holds it without a pin.
type clsact struct{ filter *netlink.BpfFilter }

// A filter's name says whether its qdisc was made for it (filterName) and is removed with it, or was there before.
const (
	filterName   = "culvert"
	filterBeside = "culvert beside others"
	filterHandle = 0xc01e
	filterTries  = 16
)

// qdiscHandle is the handle that clsact and ingress share: a device has one of them or neither.
var qdiscHandle = netlink.MakeHandle(0xffff, 0)

const (
	kindClsact  = "clsact"
	kindIngress = "ingress"
)

// errIngress says that a device has an ingress qdisc where clsact is needed. An ingress qdisc takes an egress filter
// without an error, but runs it on ingress.
var errIngress = errors.New("an ingress qdisc is there, which has no egress: put clsact in its place, " +
	"which keeps all that ingress does (tc qdisc del dev NAME ingress; tc qdisc add dev NAME clsact; and its filters again)")

// attachClsact adds the qdisc if there is none, and a filter of our own handle at the first priority that takes it.
func attachClsact(ifindex int, prog *ebpf.Program) (hook, error) {
	name, err := addQdisc(ifindex)
	if err != nil {
		return nil, err
	}
	for prio := uint16(1); prio <= filterTries; prio++ {
		c := clsact{&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_EGRESS, Handle: filterHandle,
				Protocol: unix.ETH_P_ALL, Priority: prio,
			},
			Name: name, DirectAction: true,
		}}
		if err = c.update(prog); err != nil {
			continue
		}
		if err = c.proved(); err != nil {
			return nil, err
		}
		return c, nil
	}
	return nil, err
}

// addQdisc makes sure of clsact, and returns the name for a filter in it.
func addQdisc(ifindex int) (name string, err error) {
	err = netlink.QdiscAdd(newClsact(ifindex))
	if err == nil {
		return filterName, nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return "", fmt.Errorf("add qdisc: %w", err)
	}
	return filterBeside, wantClsact(ifindex)
}

func newClsact(ifindex int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: qdiscHandle, Parent: netlink.HANDLE_CLSACT}}
}

// wantClsact fails where the qdisc is of another kind.
func wantClsact(ifindex int) error {
	kind, err := qdiscKind(ifindex)
	switch {
	case err != nil:
		return err
	case kind == kindIngress:
		return errIngress
	case kind != kindClsact:
		return fmt.Errorf("no clsact qdisc is there, but %q", kind)
	}
	return nil
}

// qdiscKind is the kind of the qdisc that holds filters for the way in or out, "" when there is none.
func qdiscKind(ifindex int) (string, error) {
	list, err := netlink.QdiscList(byIndex(ifindex))
	if err != nil {
		return "", fmt.Errorf("list qdiscs: %w", err)
	}
	for _, q := range list {
		if a := q.Attrs(); a.LinkIndex == ifindex && a.Handle == qdiscHandle {
			return q.Type(), nil
		}
	}
	return "", nil
}

// proved checks what was attached by what the kernel lists: our filter must be on egress and not on ingress, where an
// ingress qdisc that came in between would have put it. A filter in the wrong place is removed.
func (c clsact) proved() error {
	if err := wantClsact(c.filter.LinkIndex); err != nil {
		return errors.Join(err, c.remove())
	}
	in, err := ownFilter(c.filter.LinkIndex, netlink.HANDLE_MIN_INGRESS)
	if err == nil && in != nil {
		err = errors.New("the filter is on ingress")
	}
	out, outErr := ownFilter(c.filter.LinkIndex, netlink.HANDLE_MIN_EGRESS)
	if outErr == nil && out == nil {
		outErr = errors.New("the filter is not on egress")
	}
	if err = errors.Join(err, outErr); err != nil {
		return errors.Join(err, c.remove())
	}
	return nil
}

// ownFilter returns our filter below a parent, nil when there is none.
func ownFilter(ifindex int, parent uint32) (*netlink.BpfFilter, error) {
	filters, err := netlink.FilterList(byIndex(ifindex), parent)
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	for _, f := range filters {
		b, ok := f.(*netlink.BpfFilter)
		if ok && b.Handle == filterHandle && (b.Name == filterName || b.Name == filterBeside) {
			b.DirectAction = true
			return b, nil
		}
	}
	return nil, nil
}

// foundClsact returns our egress filter of an interface, nil when there is none. A filter that an earlier version left in an
// ingress qdisc, where it judges what comes in, is removed.
func foundClsact(ifindex int) hook {
	b, err := ownFilter(ifindex, netlink.HANDLE_MIN_EGRESS)
	if err != nil || b == nil {
		return nil
	}
	c := clsact{b}
	if in, err := ownFilter(ifindex, netlink.HANDLE_MIN_INGRESS); err == nil && in != nil {
		_ = c.remove()
		return nil
	}
	return c
}

func byIndex(ifindex int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
}

func (clsact) mode() Mode { return ModeClsact }

func (c clsact) alive() bool {
	b, err := ownFilter(c.filter.LinkIndex, netlink.HANDLE_MIN_EGRESS)
	return err == nil && b != nil
}

func (c clsact) update(prog *ebpf.Program) error {
	c.filter.Fd = prog.FD()
	if err := netlink.FilterReplace(c.filter); err != nil {
		return fmt.Errorf("replace filter: %w", err)
	}
	return nil
}

func (clsact) pin(string) error { return nil }
func (clsact) unpin() error     { return nil }

func (c clsact) remove() error {
	if err := netlink.FilterDel(c.filter); err != nil && !gone(err) {
		return fmt.Errorf("delete filter: %w", err)
	}
	return nil
}

// detach removes the filter, and the qdisc when it was made for it and nothing else is in it.
func (c clsact) detach() error {
	if err := c.remove(); err != nil {
		return err
	}
	if c.filter.Name != filterName || wantClsact(c.filter.LinkIndex) != nil {
		return nil
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_EGRESS, netlink.HANDLE_MIN_INGRESS} {
		rest, err := netlink.FilterList(byIndex(c.filter.LinkIndex), parent)
		if err != nil || len(rest) > 0 {
			return nil
		}
	}
	if err := netlink.QdiscDel(newClsact(c.filter.LinkIndex)); err != nil && !gone(err) {
		return fmt.Errorf("delete qdisc: %w", err)
	}
	return nil
}

func (clsact) release() error { return nil }
func (clsact) forget() error  { return nil }

// removeFilters takes our filter off every interface of this namespace.
func removeFilters() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		if h := foundClsact(l.Attrs().Index); h != nil {
			errs = append(errs, h.detach())
		}
	}
	return errors.Join(errs...)
}
