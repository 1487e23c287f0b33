// Package lockfile is a place that one process of a machine can have: a file,
// locked exclusively, in which the one that has it says who it is.
//
// The lock belongs to the open file. The kernel frees it when the process ends,
// however that happens. The file goes with an orderly end; one that stays is
// nobody's, what it says counts for nothing while nobody has the lock, and Sweep
// takes it away.
package lockfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
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
	held := 0
	for range attempts {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock file: %w", err)
		}
		err = take(f, note)
		if err == nil && stands(f) {
			return place{f}, nil
		}
		_ = f.Close()
		var other *HeldError
		if errors.As(err, &other) && held < sweeps {
			held++
			time.Sleep(sweepTime)
			continue
		}
		if err != nil {
			return nil, err
		}
		// Its holder ended and removed it between the two: another may have made it anew.
	}
	return nil, fmt.Errorf("lock file %s: it is removed again and again", path)
}

// attempts is how often the file may be removed under our hands.
const attempts = 100

// A Sweep of another process locks each place that nobody has, for a moment. So Acquire
// reports a HeldError only after this many tries.
const (
	sweeps    = 5
	sweepTime = 20 * time.Millisecond
)

// Sweep removes the files that killed processes left in a folder, and returns how many.
// It locks each file before it removes it, so it takes no place from anybody. A file
// that cannot be opened or removed stays.
func Sweep(folder string) (removed int, err error) {
	paths, err := filepath.Glob(filepath.Join(folder, "*.lock"))
	if err != nil {
		return 0, fmt.Errorf("sweep lock files: %w", err)
	}
	for _, path := range paths {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			continue // gone meanwhile
		}
		if lock(f) == nil && stands(f) && os.Remove(path) == nil {
			removed++
		}
		_ = f.Close()
	}
	return removed, nil
}

// stands reports whether the path of a file leads to it still.
func stands(f *os.File) bool {
	open, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(f.Name())
	return err == nil && os.SameFile(open, named)
}

// place is a lock that is held.
type place struct{ file *os.File }

// Close gives the place up. The file goes first, while nobody else can have it;
// where an open file cannot be removed it stays, and is nobody's.
func (p place) Close() error {
	if stands(p.file) {
		_ = os.Remove(p.file.Name())
	}
	return p.file.Close()
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
