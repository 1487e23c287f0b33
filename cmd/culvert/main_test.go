package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"culvert": main})
}

// golden compares text with a file of testdata/golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", path, got, want)
	}
}

// TestHelp holds every help text: it is part of the interface.
func TestHelp(t *testing.T) {
	for _, command := range []string{"", "run", "up", "down", "status", "leaks", "watch", "plan", "explain", "recover", "release", "hook", "hook openvpn", "version"} {
		t.Run("culvert "+command, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := execute(append(strings.Fields(command), "--help"), &stdout, &stderr)
			if code != exitOK || stderr.Len() > 0 {
				t.Errorf("exit code %d, stderr %q", code, &stderr)
			}
			golden(t, "help"+strings.ReplaceAll(" "+command, " ", "-")+".txt", stdout.String())
		})
	}
}

// TestEveryCommandIsExplained: each has an example, and says its exit codes.
func TestEveryCommandIsExplained(t *testing.T) {
	for _, c := range newRoot().Commands() {
		if c.Example == "" || c.Long == "" {
			t.Errorf("%s has no example or no description", c.Name())
		}
		if !c.HasSubCommands() && c.Name() != "version" && !strings.Contains(c.Long, exitHelp) {
			t.Errorf("%s does not say its exit codes", c.Name())
		}
	}
}
