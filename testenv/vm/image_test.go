//go:build linux

package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestDebianMirror: a machine whose apt knows no Debian, as Ubuntu's, is no error.
func TestDebianMirror(t *testing.T) {
	for _, c := range []struct{ apt, env, want string }{
		{"", "", ""},
		{"http://mirror.example/debian", "", "http://mirror.example/debian"},
		{"http://mirror.example/debian", "http://other.example/debian", "http://other.example/debian"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "apt-get"), []byte("#!/bin/sh\necho "+c.apt+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir)
		t.Setenv("CULVERT_VM_MIRROR", c.env)
		if got := debianMirror(); got != c.want {
			t.Errorf("%+v: got %q", c, got)
		}
	}
}
