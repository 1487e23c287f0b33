//go:build !windows

package control

import (
	"errors"
	"fmt"
	"os"
)

// errNoPeer: the connection is none that names its other end.
var errNoPeer = errors.New("peer of the connection: not known")

// mayAsk lets root ask, and whoever the daemon itself runs as.
func mayAsk(uid uint32) error {
	if uid != 0 && int(uid) != os.Geteuid() {
		return fmt.Errorf("user %d may not use this socket; only root may", uid)
	}
	return nil
}
