package lockfile

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
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
