//go:build unix || windows

package statedir

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// tempDir is a folder that goes at the end. Wine cannot always remove one,
// which is no failure.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "statedir")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// TestMake: the folder is made, taken again with what is in it, and nothing is
// left behind.
func TestMake(t *testing.T) {
	dir := filepath.Join(tempDir(t), "a", "b")
	for range 2 {
		if err := Make(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "journal"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("there are %v, %v", entries, err)
	}
	var foreign *ForeignError
	if err := Make(filepath.Join(dir, "journal", "c")); err == nil || errors.As(err, &foreign) {
		t.Errorf("a file in the way: %v", err)
	}
}
