//go:build !linux

package control

import (
	"errors"
	"fmt"
	"net"
)

func peerSupported() error {
	return fmt.Errorf("control socket: %w on this system yet", errors.ErrUnsupported)
}

func checkPeer(*net.UnixConn) error { return peerSupported() }
