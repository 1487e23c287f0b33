package control

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

func peerSupported() error { return nil }

// checkPeer lets root ask, and whoever the daemon itself runs as.
func checkPeer(conn *net.UnixConn) error {
	cred, err := Peer(conn)
	if err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d may not use this socket; only root may", cred.Uid)
	}
	return nil
}

// Peer says who is at the other end of a connection, as the kernel noted it
// when that end connected or began to listen.
func Peer(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("peer of the connection: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err == nil {
		err = credErr
	}
	if err != nil {
		return nil, fmt.Errorf("peer of the connection: %w", err)
	}
	return cred, nil
}
