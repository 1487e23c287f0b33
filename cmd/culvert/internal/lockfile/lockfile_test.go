package lockfile

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestAcquire(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "daemon.lock")
	first, err := Acquire(path, []byte("a longer note"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Acquire(path, []byte("second"))
	var held *HeldError
	if !errors.As(err, &held) || string(held.Note) != "a longer note" || held.Path != path {
		t.Fatalf("a second one got %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	third, err := Acquire(path, []byte("third"))
	if err != nil {
		t.Fatalf("a place that is free again: %v", err)
	}
	defer third.Close() //nolint:errcheck // the test ends
	if got, err := os.ReadFile(path); err != nil || string(got) != "third" {
		t.Errorf("the note is %q, %v", got, err)
	}
}

// TestAcquireRemoved: a place is the file of that name. One that was removed and
// made anew is free, and who held the first one does not take the second along.
func TestAcquireRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.lock")
	first, err := Acquire(path, []byte("first"))
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		if runtime.GOOS == "windows" {
			t.Skip("an open file cannot be removed here")
		}
		t.Fatal(err)
	}
	second, err := Acquire(path, []byte("second"))
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	var held *HeldError
	if _, err := Acquire(path, nil); !errors.As(err, &held) || string(held.Note) != "second" {
		t.Errorf("after the end of the first: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the file stayed")
	}
}

// TestAcquireContest: of many that come and go only one has the place at a time,
// though each removes the file at its end.
func TestAcquireContest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.lock")
	var inside, had atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 200 {
				l, err := Acquire(path, nil)
				if err != nil {
					continue // held
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d have the place", n)
				}
				had.Add(1)
				inside.Add(-1)
				_ = l.Close()
			}
		})
	}
	all.Wait()
	if had.Load() == 0 {
		t.Error("nobody had the place")
	}
}

func TestAcquireImpossible(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(file, "lock")} {
		var held *HeldError
		if _, err := Acquire(path, nil); err == nil || errors.As(err, &held) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestKilledHolder: the place is free when its process was killed.
func TestKilledHolder(t *testing.T) {
	if path := os.Getenv("LOCKFILE_HOLD"); path != "" {
		if _, err := Acquire(path, []byte("child")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
	}
	path := filepath.Join(t.TempDir(), "lock")
	child := exec.Command(os.Args[0], "-test.run", "^TestKilledHolder$")
	child.Env = append(os.Environ(), "LOCKFILE_HOLD="+path)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Process.Kill() //nolint:errcheck // it may be gone
	awaitNote(t, path, "child")
	var held *HeldError
	if _, err := Acquire(path, nil); !errors.As(err, &held) || string(held.Note) != "child" {
		t.Fatalf("while it lives: %v", err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	l, err := Acquire(path, nil)
	if err != nil {
		t.Fatalf("after it was killed: %v", err)
	}
	_ = l.Close()
}

func awaitNote(t *testing.T, path, want string) {
	t.Helper()
	for range 500 {
		if b, _ := os.ReadFile(path); string(b) == want {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the other process took no place")
}

// TestSweep: the files that nobody holds go, those of others and what is no place stay.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	held, err := Acquire(filepath.Join(dir, "held.lock"), []byte("mine"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"left.lock", "left2.lock", "note.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("of one that was killed"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wants := func(when string, want ...string) {
		t.Helper()
		list, err := filepath.Glob(filepath.Join(dir, "*"))
		for i := range list {
			list[i] = filepath.Base(list[i])
		}
		if err != nil || !slices.Equal(list, want) {
			t.Errorf("%s: %v, %v", when, list, err)
		}
	}
	if n, err := Sweep(dir); runtime.GOOS != "windows" && (n != 2 || err != nil) {
		t.Errorf("swept %d, %v", n, err)
	}
	if runtime.GOOS == "windows" {
		t.Skip("an open file cannot be removed here")
	}
	wants("swept", "held.lock", "note.txt")
	if _, err := Acquire(filepath.Join(dir, "held.lock"), nil); err == nil {
		t.Error("the place is free")
	}
	if err := held.Close(); err != nil {
		t.Error(err)
	}
}

// TestSweepTakesNoPlace: who wants a place that is nobody's gets it, however many sweep.
func TestSweepTakesNoPlace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "place.lock")
	var stop atomic.Bool
	var sweepers sync.WaitGroup
	for range 4 {
		sweepers.Go(func() {
			for !stop.Load() {
				_, _ = Sweep(dir)
				time.Sleep(time.Millisecond)
			}
		})
	}
	for range 200 {
		if err := os.WriteFile(path, []byte("of one that was killed"), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Acquire(path, []byte("mine"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Fatal("the place was swept away under its holder")
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	sweepers.Wait()
}
