package config

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
)

// fails is the error of a text, "" where there is none.
func fails(text string) string {
	s := Default()
	if err := s.Parse("c.yaml", []byte(text)); err != nil {
		return err.Error()
	}
	if err := s.Check(); err != nil {
		return err.Error()
	}
	return ""
}

// TestFileBounds: a file may be as long as it may, and what cannot be read is told.
func TestFileBounds(t *testing.T) {
	dir := t.TempDir()
	for size, text := range map[int]string{maxFile: "", maxFile + 1: "is longer than"} {
		file := filepath.Join(dir, "c.yaml")
		if err := os.WriteFile(file, append(bytes.Repeat([]byte("#"), size-1), '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
		s := Default()
		if err := s.ReadFile(file); (err != nil) != (text != "") || err != nil && !strings.Contains(err.Error(), text) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	for _, file := range []string{dir, filepath.Join(dir, "none")} {
		s := Default()
		if err := s.ReadFile(file); err == nil || !strings.Contains(err.Error(), "--config: cannot be read") {
			t.Errorf("%s: %v", file, err)
		}
	}
	file := filepath.Join(dir, "c.yaml")
	if err := os.WriteFile(file, []byte("audit: maybe\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := Default()
	if err := s.ReadFile(file); err == nil || !strings.Contains(err.Error(), "c.yaml:1: audit: maybe") {
		t.Errorf("a wrong word in a file: %v", err)
	}
}

// TestWrongWords: each key is named with its line.
func TestWrongWords(t *testing.T) {
	const head = "sessions:\n- tunnel: tun0\n  protect: [10.0.0.0/8]\n"
	for text, want := range map[string]string{
		"socket: here\n":                                 "c.yaml:1: socket: here is not an absolute path",
		"\nkeep_unreachable: maybe\n":                    "c.yaml:2: keep_unreachable: maybe is neither true nor false",
		"log_level: loud\n":                              "c.yaml:1: log_level: loud is unknown; write info or debug",
		"log_format: xml\n":                              "c.yaml:1: log_format: xml is unknown; write text or json",
		"on_leak: stop\n":                                "c.yaml:1: on_leak: stop is unknown; write count or drop",
		"guard_for: 999ms\non_leak: drop\n":              "c.yaml:1: guard_for: 999ms is too short",
		"guard_for: 1s\n":                                "--guard-for bounds a guard, but none is asked for",
		"guard_for: 1s\non_leak: drop\n":                 "",
		"guard_for: 1s\naudit: true\n":                   "",
		"guard_for: 0\n":                                 "",
		"witness: off\non_loss: guard\n":                 "leaks cannot be stopped without the witness",
		"witness: off\non_loss: guard\naudit: true\n":    "",
		head + "  exclude:\n  - 10.1.0.0/16\n  - x\n":    "c.yaml:6: exclude: x is not a prefix",
		head + "  servers:\n  - x\n":                     "c.yaml:5: servers: x names no protocol",
		head + "  exclude_interfaces: ['br-[']\n":        "c.yaml:4: exclude_interfaces: br-[ is neither",
		head + "  other_table:\n  - 10.9.0.0/33\n":       "c.yaml:5: other_table: 10.9.0.0/33 is not a prefix",
		head + "  other_family: some\n":                  "c.yaml:4: other_family: some is unknown",
		head + "- tunnel: tun1\n  protect: [10.0.0.0/8]": "c.yaml: session 2: 10.0.0.0/8 is protected by two sessions",
	} {
		if got := fails(text); !strings.HasPrefix(got, want) || (want == "") != (got == "") {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// TestGuardFor: no end is the default, and can be written.
func TestGuardFor(t *testing.T) {
	s := Default()
	if err := s.Parse("c.yaml", []byte("guard_for: 10m\n")); err != nil || s.GuardFor != 10*time.Minute {
		t.Errorf("%v, %v", s.GuardFor, err)
	}
	if err := s.Set("--guard-for", "guard_for", "0"); err != nil || s.GuardFor != 0 {
		t.Errorf("%v, %v", s.GuardFor, err)
	}
	if err := s.Set("--nothing", "nothing", "0"); err == nil {
		t.Error("a setting that there is none of was set")
	}
	if s.OnLoss != enforce.LossRestore {
		t.Errorf("on loss %v", s.OnLoss)
	}
}
