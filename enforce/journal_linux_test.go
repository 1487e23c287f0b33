package enforce_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// TestJournalIsPrivate: it names what a machine's networks look like.
func TestJournalIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	j := openJournal(t, dir, here)
	hold(t, j, 1)
	if err := j.Forget([]uint64{1}); err != nil { // written anew
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, j.Path(): 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}

// smallDisk mounts a file system that is soon full.
func smallDisk(t *testing.T) string {
	t.Helper()
	testenv.Require(t, testenv.Root)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=32k,mode=700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// stuff fills what is left of a disk and returns a way to free it.
func stuff(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "stuff")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestJournalOnAFullDisk: a write fails whole, what was written down stays, and
// it is read even if nothing more can be written.
func TestJournalOnAFullDisk(t *testing.T) {
	dir := smallDisk(t)
	j := openJournal(t, dir, here)
	hold(t, j, 1)
	hold(t, j, 2)
	free := stuff(t, dir)
	refused := uint64(0)
	for id := uint64(3); id < 100 && refused == 0; id++ {
		if err := j.Hold(entriesOf(id)); errors.Is(err, unix.ENOSPC) {
			refused = id
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if refused == 0 {
		t.Fatal("the disk was never full")
	}
	var written []uint64
	for id := uint64(1); id < refused; id++ {
		written = append(written, id)
	}
	keeps(t, j, written...)
	again := openJournal(t, dir, here)
	keeps(t, again, written...)
	if len(again.Notes()) == 0 {
		t.Error("nobody is told that the disk is full")
	}
	if err := again.Hold(entriesOf(refused)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("on the full disk: %v", err)
	}
	free()
	hold(t, again, refused)
	keeps(t, openJournal(t, dir, here), append(written, refused)...)
}

// TestJournalTornOnAFullDisk: a torn line that cannot be taken away is written
// over.
func TestJournalTornOnAFullDisk(t *testing.T) {
	dir := smallDisk(t)
	j := openJournal(t, dir, here)
	hold(t, j, 1)
	f, err := os.OpenFile(j.Path(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"hold":[{"id":7,` + string(make([]byte, 2000))); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	free := stuff(t, dir)
	torn := openJournal(t, dir, here)
	keeps(t, torn, 1)
	hold(t, torn, 2) // there is room where the torn line is
	keeps(t, openJournal(t, dir, here), 1, 2)
	free()
	keeps(t, openJournal(t, dir, here), 1, 2)
}
