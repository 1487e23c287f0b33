//go:build !linux && !darwin && !windows

package control

import (
	"errors"
	"fmt"
	"net"
)

func peerSupported() error {
	return fmt.Errorf("control socket: %w on this system", errors.ErrUnsupported)
}

func checkPeer(net.Conn) error { return errNoPeer }
