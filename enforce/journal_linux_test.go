package enforce_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/enforce"
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

// TestJournalIsAFile: whatever else has the journal's name, or that of a file beside
// it, is neither waited for nor followed, but named with the remedy. What a link leads
// to stays as it is.
func TestJournalIsAFile(t *testing.T) {
	for name, c := range map[string]struct {
		make func(path string) error
		want string
	}{
		"a named pipe": {func(path string) error { return unix.Mkfifo(path, 0o600) }, "named pipe"},
		"a link":       {func(path string) error { return os.Symlink(filepath.Join(filepath.Dir(path), "other"), path) }, "symbolic link"},
		"a link to a pipe": {func(path string) error {
			other := filepath.Join(filepath.Dir(path), "pipe")
			return errors.Join(unix.Mkfifo(other, 0o600), os.Symlink(other, path))
		}, "symbolic link"},
		"a folder": {func(path string) error { return os.Mkdir(path, 0o700) }, "folder"},
	} {
		for _, suffix := range []string{"", ".new", ".damaged"} {
			t.Run(name+" for journal"+suffix, func(t *testing.T) {
				dir := t.TempDir()
				other := filepath.Join(dir, "other")
				if err := os.WriteFile(other, []byte("precious"), 0o600); err != nil {
					t.Fatal(err)
				}
				path := openJournal(t, dir, here).Path()
				if suffix == "" {
					_ = os.Remove(path)
				} else if err := os.WriteFile(path, []byte("00000000 {}\nx\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := c.make(path + suffix); err != nil {
					t.Fatal(err)
				}
				said := ""
				if j, err := enforce.OpenJournal(dir, here, nil); err != nil {
					said = err.Error()
				} else {
					said = strings.Join(j.Notes(), "\n") // what is written down can still be read
					_ = j.Close()
				}
				if !strings.Contains(said, path+suffix) || !strings.Contains(said, c.want) || !strings.Contains(said, "remove it") {
					t.Errorf("said: %q", said)
				}
				if kept, err := os.ReadFile(other); err != nil || string(kept) != "precious" {
					t.Errorf("what the link leads to is %q, %v", kept, err)
				}
			})
		}
	}
}
