package control

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

func peerSupported() error { return nil }

// checkPeer lets root ask, and whoever the daemon itself runs as.
func checkPeer(conn net.Conn) error {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return errNoPeer
	}
	cred, err := Peer(unixConn)
	if err != nil {
		return err
	}
	return mayAsk(cred.Uid, os.Geteuid())
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
