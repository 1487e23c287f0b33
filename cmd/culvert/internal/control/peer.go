//go:build !windows

package control

import (
	"errors"
	"fmt"
)

// errNoPeer: the connection is none that names its other end.
var errNoPeer = errors.New("peer of the connection: not known")

// mayAsk lets root ask, and self, whoever the daemon runs as.
func mayAsk(uid uint32, self int) error {
	if uid != 0 && int(uid) != self {
		return fmt.Errorf("user %d may not use this socket; only root may", uid)
	}
	return nil
}
