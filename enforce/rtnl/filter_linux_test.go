package rtnl

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// TestOwnChangesDoNotWake: of the changes that are announced, those that the passed-over
// ports asked for are not heard, and every other is.
func TestOwnChangesDoNotWake(t *testing.T) {
	testenv.Require(t, testenv.Root)
	ns := testenv.Namespace(t, "filter")
	ns.IP(t, "link", "set", "lo", "up")
	var sockets [5]*socket
	ns.Run(t, func() {
		for i := range sockets {
			s, err := openSocket()
			if err != nil {
				t.Fatal(err)
			}
			sockets[i] = s
		}
	})
	hears, asks := sockets[0], sockets[1:]
	t.Cleanup(func() {
		for _, s := range sockets {
			_ = s.close()
		}
	})
	if err := passOver(hears, asks[1].port, asks[2].port); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(hears.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_IPV4_ROUTE); err != nil {
		t.Fatal(err)
	}
	for i, s := range asks {
		if err := addHost(s, hostOf(i), 1); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []uint32{asks[0].port, asks[3].port} {
		b, err := hears.read()
		if err != nil {
			t.Fatal(err)
		}
		if hdr, _, _, ok := nextMessage(b); !ok || hdr.Pid != want {
			t.Errorf("heard of a change by %d, want %d", hdr.Pid, want)
		}
	}
	if _, err := hears.receive(); err != unix.EAGAIN {
		t.Errorf("one more is heard: %v", err)
	}
}
