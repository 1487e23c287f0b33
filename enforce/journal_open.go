package enforce

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// openRegular opens a regular file of the state folder, and refuses anything else by its
// name: a link would lead elsewhere, and an open of a named pipe may wait for ever. Only
// root can write to the folder, so a person has to look at what is wrong there.
func openRegular(path string, flag int) (*os.File, error) {
	if found, err := os.Lstat(path); err == nil && !found.Mode().IsRegular() {
		return nil, notRegular(path, found.Mode())
	}
	f, err := os.OpenFile(path, flag|safeOpen, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat() // it may have been replaced since
	if err == nil && !info.Mode().IsRegular() {
		err = notRegular(path, info.Mode())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// notRegular is the error for path, which is no regular file, with the remedy.
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
	return fmt.Errorf("%s is %s: find out who made it, and remove it", path, what)
}
