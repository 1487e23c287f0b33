//go:build darwin || windows

package main

import (
	"io"
	"path/filepath"

	"github.com/culvert-project/culvert/cmd/culvert/internal/config"
)

// acquireLock takes the place of this machine's one daemon until the result is
// closed or the process ends. The place does not depend on the state folder
// that a daemon is given: there is one table.
func acquireLock(h holder) (io.Closer, error) {
	return acquireFile(filepath.Join(config.Here.StateDir, "daemon.lock"), h)
}
