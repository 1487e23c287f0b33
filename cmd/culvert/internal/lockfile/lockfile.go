// Package lockfile is a place that one process of a machine can have: a file,
// locked exclusively, in which the one that has it says who it is.
//
// The lock belongs to the open file. The kernel frees it when the process ends,
// however that happens; the file stays, and what it says counts for nothing
// while nobody has the lock.
package lockfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// maxNote is how much of a holder's note is read.
const maxNote = 4096

// HeldError: another process has the place. Note is what it wrote, which may
// be nothing yet.
type HeldError struct {
	Path string
	Note []byte
}

func (e *HeldError) Error() string { return e.Path + " is locked by another process" }

// errHeld: another process has the lock.
var errHeld = errors.New("locked")

// Acquire takes the place until the result is closed or the process ends, and
// writes the note there. The file and its folder are made for this user alone.
// The error is a *HeldError when another has the place.
func Acquire(path string, note []byte) (io.Closer, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("lock file: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock file: %w", err)
	}
	if err := take(f, note); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// take locks the file and writes the note, or reads the holder's.
func take(f *os.File, note []byte) error {
	err := lock(f)
	if errors.Is(err, errHeld) {
		text, _ := io.ReadAll(io.LimitReader(f, maxNote))
		return &HeldError{Path: f.Name(), Note: text}
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(note, 0)
	}
	if err != nil {
		return fmt.Errorf("lock file %s: %w", f.Name(), err)
	}
	return nil
}
