package enforce

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// openRegular opens a file of the state folder, and nothing else that has its name: a
// link would lead elsewhere, and a named pipe is waited for without end. The folder is
// root's alone; what is amiss there is a person's to look at.
func openRegular(path string, flag int) (*os.File, error) {
	if found, err := os.Lstat(path); err == nil && !found.Mode().IsRegular() {
		return nil, notRegular(path, found.Mode())
	}
	f, err := os.OpenFile(path, flag|safeOpen, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat() // it may have come in between
	if err == nil && !info.Mode().IsRegular() {
		err = notRegular(path, info.Mode())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// notRegular says what has a file's name, and what to do about it.
func notRegular(path string, mode fs.FileMode) error {
	what := "not a regular file"
	switch {
	case mode&fs.ModeSymlink != 0:
		what = "a symbolic link, which is not followed"
	case mode&fs.ModeNamedPipe != 0:
		what = "a named pipe"
	case mode.IsDir():
		what = "a folder"
	}
	return fmt.Errorf("%s is %s: look who made it, and take it away", path, what)
}
