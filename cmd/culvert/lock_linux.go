package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/culvert-project/culvert/cmd/culvert/internal/lockfile"
	"github.com/culvert-project/culvert/loader"
)

// lockParent and lockFolder hold the places of the daemons, one file for each
// network namespace. Nobody but root can make, open or remove one.
const (
	lockParent = "/run/culvert"
	lockFolder = lockParent + "/lock"
)

// acquireLock takes the place of this network namespace's one daemon until the
// result is closed or the process ends, and tells whoever else wants it who has
// it. Processes that see different folders in /run do not see each other.
func acquireLock(h holder) (io.Closer, error) {
	name, err := loader.NamespaceName()
	if err == nil {
		err = ownFolders(lockParent, lockFolder)
	}
	if err != nil {
		return nil, fmt.Errorf("place of the daemon: %w", err)
	}
	l, err := acquireFile(filepath.Join(lockFolder, name+".lock"), h)
	if err == nil {
		_, _ = lockfile.Sweep(lockFolder) // what killed ones left: most of namespaces that are gone
	}
	return l, err
}

// ownFolders makes a folder that everybody may look into, and in it one that
// nobody else may.
func ownFolders(parent, private string) error {
	if err := ownFolder(parent, 0o755, 0o022); err != nil {
		return err
	}
	return ownFolder(private, 0o700, 0o077)
}

// closeFolder takes from others what they must not do in a folder of this user's:
// a file system that was mounted there lets everybody write, as /tmp does.
func closeFolder(path string, info fs.FileInfo, forbidden fs.FileMode) error {
	if info.Mode().Perm()&forbidden == 0 {
		return nil
	}
	return os.Chmod(path, info.Mode().Perm()&^forbidden)
}

// ownFolder makes a folder, or sees to it that one that is there belongs to root
// or to this user, and that others may do nothing there that is forbidden.
func ownFolder(path string, mode, forbidden fs.FileMode) error {
	if err := os.Mkdir(path, mode); err == nil {
		return os.Chmod(path, mode) // whatever the umask is
	} else if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w; /run must be there, and writable for the daemon", err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	switch {
	case !info.IsDir():
		return fmt.Errorf("%s is no folder; remove it", path)
	case owner != 0 && int(owner) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, who could keep any daemon from starting; remove it", path, owner)
	}
	return closeFolder(path, info, forbidden)
}
