package main

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// TestWine runs the Windows program where Wine is installed, and prints what
// that covered. Wine 8 cannot read interface metrics, so no table is judged.
func TestWine(t *testing.T) {
	w, missing := testenv.OpenWine(t)
	if missing != "" {
		fmt.Println("wine: nothing covered,", missing)
		return
	}
	program := w.Build(t, "culvert.exe", "build", "-ldflags", "-X main.tag=v-wine")
	for _, tt := range []struct {
		args string
		code int
		want string // in what it prints, or the golden file that it prints
	}{
		{"version", exitOK, "culvert v-wine go"},
		{"--help", exitOK, "culvert-.txt"},
		{"run --help", exitOK, "culvert-run.txt"},
		{"hook openvpn --help", exitOK, "culvert-hook-openvpn.txt"},
		{"leaks", exitUsage, "this system has no witness of packets"},
		{"run --on-leak drop", exitUsage, "this system has no witness of packets"},
		{"up --tunnel x --protect 10.0.0.0/33", exitUsage, "10.0.0.0/33 is not a prefix"},
		{"run --state-dir state", exitUsage, `write one that begins with C:\`},
		{"status", exitAway, "no daemon answers"},
	} {
		out, err := w.Run(program, strings.Fields(tt.args)...)
		out = strings.ReplaceAll(out, "\r\n", "\n")
		if code := codeOf(err); code != tt.code {
			t.Errorf("%s: exit code %d, %v: %s", tt.args, code, err, out)
		}
		if strings.HasSuffix(tt.want, ".txt") {
			golden(t, filepath.Join("help-windows", tt.want), out)
		} else if !strings.Contains(out, tt.want) {
			t.Errorf("%s: %s", tt.args, out)
		}
		fmt.Println("wine: covered culvert", tt.args)
	}
}

// codeOf is the exit code that an error tells of; -1 when it tells of another.
func codeOf(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}
