package rtnl

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// portOffset is where the port of who asked for a change stands in its announcement
// (nlmsg_pid of struct nlmsghdr in linux/netlink.h).
const portOffset = 12

// passOver keeps announcements of changes that were asked for by the ports from
// reaching the socket. The kernel runs it where the change is made, so that 200,000
// routes that come back cost neither room in the socket nor a wake-up each.
func passOver(s *socket, ports ...uint32) error {
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: portOffset}}
	for i, p := range ports {
		skip := uint8(len(ports) - i) //nolint:gosec // a handful
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: skip, K: loaded(p)})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET, K: ^uint32(0)}, unix.SockFilter{Code: unix.BPF_RET, K: 0})
	return unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}) //nolint:gosec // a handful
}

// loaded is how a filter sees a number of the kernel's: it reads in network order.
func loaded(n uint32) uint32 {
	var b [4]byte
	native.PutUint32(b[:], n)
	return binary.BigEndian.Uint32(b[:])
}
