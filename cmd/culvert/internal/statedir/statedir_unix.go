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
	link, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if uid, foreign := owner(link); foreign && link.Mode().Type() == os.ModeSymlink {
		return &ForeignError{Path: dir, Why: fmt.Sprintf("it is a symbolic link of user %d", uid)}
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	uid, foreign := owner(fi)
	switch {
	case foreign:
		return &ForeignError{Path: dir, Why: fmt.Sprintf("it belongs to user %d", uid)}
	case fi.Mode().Perm()&0o022 != 0:
		return &ForeignError{Path: dir, Why: fmt.Sprintf("its mode is %#o", fi.Mode().Perm())}
	}
	return nil
}

// owner returns whose a file is, and whether that is neither root nor this user.
func owner(fi os.FileInfo) (uid uint32, foreign bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return st.Uid, st.Uid != 0 && int(st.Uid) != os.Geteuid()
}
