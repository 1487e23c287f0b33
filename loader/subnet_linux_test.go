package loader

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestSubnetsOfManyVeths: what is noted grows with the interfaces and the addresses, not with their product. The map has
// room for the sum.
func TestSubnetsOfManyVeths(t *testing.T) {
	const n = 2000
	w := &Witness{devices: map[int]*device{}}
	var addrs []netlink.Addr
	for i := 1; i <= n; i++ {
		w.devices[i] = &device{index: i, kind: kindVeth, peer: (i - 1) ^ 1 + 1}
		ip := &net.IPNet{IP: net.IPv4(10, 1, byte(i>>8), byte(i)), Mask: net.CIDRMask(24, 32)}
		addrs = append(addrs, netlink.Addr{LinkIndex: i, IPNet: ip})
	}
	if got := len(w.wanted(addrs)); got > 3*n {
		t.Errorf("%d networks noted of %d interfaces with an address each", got, n)
	}
	for _, d := range w.devices {
		d.peer = 0
	}
	if got := len(w.wanted(addrs)); got != n {
		t.Errorf("%d networks noted of %d interfaces that lead nowhere back", got, n)
	}
}
