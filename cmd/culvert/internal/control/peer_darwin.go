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
	uid, err := peerUser(unixConn)
	if err != nil {
		return fmt.Errorf("peer of the connection: %w", err)
	}
	return mayAsk(uid, os.Geteuid())
}

// peerUser says who is at the other end, as the kernel noted it when that end
// connected.
func peerUser(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Xucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	})
	if err == nil {
		err = credErr
	}
	if err != nil {
		return 0, err
	}
	return cred.Uid, nil
}
