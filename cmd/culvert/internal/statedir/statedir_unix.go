//go:build unix

package statedir

import (
	"fmt"
	"os"
	"syscall"
)

// makeDir makes the folder for this user alone. Whoever can write to it
// decides which routes come back, so one that others may write to is refused.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case ok && st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return &ForeignError{Path: dir, Why: fmt.Sprintf("it belongs to user %d", st.Uid)}
	case fi.Mode().Perm()&0o022 != 0:
		return &ForeignError{Path: dir, Why: fmt.Sprintf("its mode is %#o", fi.Mode().Perm())}
	}
	return nil
}
