package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestAcquireFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.lock")
	l, err := acquireFile(path, holder{PID: 7, What: "run", Socket: "/c.sock"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the test ends
	want := "this " + here.Place + ` is served already: "culvert run", process 7, control socket /c.sock`
	if _, err := acquireFile(path, holder{PID: 8}); err == nil || err.Error() != want || exitCode(err) != exitUsage {
		t.Errorf("got %v, exit code %d", err, exitCode(err))
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want = "this " + here.Place + " is served already: by a process that did not say which it is"
	if _, err := acquireFile(path, holder{PID: 8}); err == nil || err.Error() != want {
		t.Errorf("a holder that says nothing: %v", err)
	}
	if _, err := acquireFile(filepath.Dir(path), holder{}); err == nil || exitCode(err) != exitWrong {
		t.Errorf("a folder in the place: %v", err)
	}
}
