package testenv

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End describes one end of a veth pair.
type End struct {
	NS     *NS              // where the end lives
	Name   string           // its name there, at most 15 bytes
	Addrs  []netip.Prefix   // its addresses with their networks' lengths; none is allowed
	MAC    net.HardwareAddr // nil lets the kernel choose
	Bridge string           // a bridge in NS to be a port of; empty for none
	Down   bool             // leave the link down
}

// Prefixes parses addresses with lengths ("10.0.0.1/24"), for [End] and its
// like. It panics on anything else.
func Prefixes(s ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(s))
	for i := range s {
		out[i] = netip.MustParsePrefix(s[i])
	}
	return out
}

// linkWait is how long a link's own settling may take.
const linkWait = 2 * time.Second

// Veth joins two namespaces (which may be one) by a pair of Ethernet
// interfaces, and waits until both are usable unless one is to stay down.
// It exists until one end is deleted or one namespace is gone.
func Veth(t TB, a, b End) {
	t.Helper()
	if err := a.NS.Do(func() error { return addVeth(a, b) }); err != nil {
		t.Fatalf("veth %s@%s and %s@%s: %v", a.Name, a.NS, b.Name, b.NS, err)
	}
	for _, end := range []End{a, b} {
		if err := end.NS.Do(end.configure); err != nil {
			t.Fatalf("veth %s@%s: %v", end.Name, end.NS, err)
		}
	}
	if a.Down || b.Down {
		return
	}
	for _, end := range []End{a, b} {
		Eventually(t, linkWait, end.Name+" ready in "+end.NS.Name(), end.ready)
	}
}

// ready reports whether the end has carrier and, if it has an IPv6 address,
// whether the kernel has begun to use it.
func (e End) ready() bool {
	return e.NS.Do(func() error {
		link, err := netlink.LinkByName(e.Name)
		if err != nil {
			return err
		}
		if link.Attrs().OperState != netlink.OperUp {
			return errNotReady
		}
		if !slices.ContainsFunc(e.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
			return nil
		}
		return ready6(link)
	}) == nil
}

var errNotReady = errors.New("not ready")

// ready6 looks for a usable link-local address, which the kernel makes after
// all others are in use.
func ready6(link netlink.Link) error {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
			return nil
		}
	}
	return errNotReady
}

func addVeth(a, b End) error {
	link := &netlink.Veth{
		LinkAttrs:        netlink.NewLinkAttrs(),
		PeerName:         b.Name,
		PeerHardwareAddr: b.MAC,
		PeerNamespace:    netlink.NsFd(b.NS.Fd()),
	}
	link.Name, link.HardwareAddr = a.Name, a.MAC
	return netlink.LinkAdd(link)
}

// configure acts in the calling thread's namespace.
func (e End) configure() error {
	link, err := netlink.LinkByName(e.Name)
	if err != nil {
		return err
	}
	if e.Bridge != "" {
		if err := enslave(link, e.Bridge); err != nil {
			return err
		}
	}
	for _, addr := range e.Addrs {
		if err := addAddr(link, addr); err != nil {
			return err
		}
	}
	if e.Down {
		return nil
	}
	return linkUp(e.Name)
}

func enslave(link netlink.Link, bridge string) error {
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	return netlink.LinkSetMaster(link, master)
}

func addAddr(link netlink.Link, addr netip.Prefix) error {
	a := &netlink.Addr{IPNet: &net.IPNet{
		IP:   addr.Addr().AsSlice(),
		Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen()),
	}}
	if err := netlink.AddrAdd(link, a); err != nil {
		return fmt.Errorf("add address %s: %w", addr, err)
	}
	return nil
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// withLink runs change on a link of the namespace and stops the test when it
// does not succeed.
func (n *NS) withLink(t TB, name, what string, change func(netlink.Link) error) {
	t.Helper()
	err := n.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return change(link)
	})
	if err != nil {
		t.Fatalf("%s %s in %s: %v", what, name, n, err)
	}
}

// Bridge makes a bridge in the namespace, up, without spanning tree, with
// the given addresses of its own.
func (n *NS) Bridge(t TB, name string, addrs ...netip.Prefix) {
	t.Helper()
	err := n.Do(func() error {
		link := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
		link.Name = name
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		return End{NS: n, Name: name, Addrs: addrs}.configure()
	})
	if err != nil {
		t.Fatalf("bridge %s in %s: %v", name, n, err)
	}
}

// LinkUp sets a link up.
func (n *NS) LinkUp(t TB, name string) {
	t.Helper()
	n.withLink(t, name, "set up", netlink.LinkSetUp)
}

// LinkDown sets a link down. The kernel drops its routes.
func (n *NS) LinkDown(t TB, name string) {
	t.Helper()
	n.withLink(t, name, "set down", netlink.LinkSetDown)
}

// LinkDel deletes a link; of a veth pair, both ends.
func (n *NS) LinkDel(t TB, name string) {
	t.Helper()
	n.withLink(t, name, "delete", netlink.LinkDel)
}

// HasLink reports whether a link of that name exists.
func (n *NS) HasLink(name string) bool {
	return n.Do(func() error {
		_, err := netlink.LinkByName(name)
		return err
	}) == nil
}

// AddAddr adds addresses to a link.
func (n *NS) AddAddr(t TB, name string, addrs ...netip.Prefix) {
	t.Helper()
	n.withLink(t, name, "add addresses to", func(link netlink.Link) error {
		for _, addr := range addrs {
			if err := addAddr(link, addr); err != nil {
				return err
			}
		}
		return nil
	})
}

// Addrs lists a link's addresses with their lengths, as the kernel lists
// them, link-local ones included. A link that is not there has none.
func (n *NS) Addrs(name string) []netip.Prefix {
	var out []netip.Prefix
	_ = n.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		for _, a := range addrs {
			out = append(out, prefixOf(a.IPNet))
		}
		return err
	})
	return out
}

func prefixOf(n *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if bits == 32 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, ones)
}

// LinkLocal is a link's IPv6 link-local address, which it has once it is up
// and its peer is too. It stops the test when there is none within two seconds.
func (n *NS) LinkLocal(t TB, name string) netip.Addr {
	t.Helper()
	var found netip.Addr
	Eventually(t, linkWait, "link-local address on "+name, func() bool {
		for _, p := range n.Addrs(name) {
			if p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
				found = p.Addr()
				return true
			}
		}
		return false
	})
	return found
}

// Forward makes the namespace a router for both families. A router ignores
// router advertisements unless told otherwise ([NS.AcceptRA]).
func (n *NS) Forward(t TB) {
	t.Helper()
	n.Sysctl(t, "net.ipv4.ip_forward", "1")
	n.Sysctl(t, "net.ipv6.conf.all.forwarding", "1")
}

// sysctlName is an interface's name as part of a sysctl key.
func sysctlName(device string) string { return strings.ReplaceAll(device, ".", "/") }

// ReversePath sets the reverse-path filter of all links, present and future:
// 0 none, 1 strict, 2 loose.
func (n *NS) ReversePath(t TB, mode int) {
	t.Helper()
	names := []string{"all", "default"}
	if err := n.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			names = append(names, l.Attrs().Name)
		}
		return err
	}); err != nil {
		t.Fatalf("list links of %s: %v", n, err)
	}
	for _, name := range names {
		n.Sysctl(t, "net.ipv4.conf."+sysctlName(name)+".rp_filter", fmt.Sprint(mode))
	}
}
