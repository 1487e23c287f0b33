// Package statedir makes the folder that the daemon's journal is kept in.
//
// The journal says which routes a privileged process puts back. So whoever can
// write to its folder can have any route made; the folder must be nobody else's.
package statedir

import (
	"errors"
	"os"
)

// ForeignError: another user may write to the folder, or made what is in it.
type ForeignError struct {
	Path string
	Why  string // continues "it is foreign: "
}

func (e *ForeignError) Error() string {
	return e.Path + ": " + e.Why + "; whoever can write there decides which routes come back"
}

// Make makes the folder for this user alone (on Windows for administrators), or
// takes it as it is when it is theirs, and tries to write there. The error wraps
// [fs.ErrPermission] when that is not allowed, and is a *[ForeignError] when it
// is allowed to others.
func Make(dir string) error {
	if err := makeDir(dir); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".writable-*")
	if err != nil {
		return err
	}
	_, err = f.Write([]byte("x"))
	return errors.Join(err, f.Close(), os.Remove(f.Name()))
}
