package winroute

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestWine runs this package's tests, the conformance suite and the reading of
// a real table among them, as a Windows program under Wine, and prints what that
// covered. Where Wine or what it needs is missing it says so and passes: Wine
// is no requirement for working on this package.
func TestWine(t *testing.T) {
	w, missing := newWine(t)
	if missing != "" {
		fmt.Println("wine: nothing covered,", missing)
		return
	}
	out, err := w.run("wine", w.program, "-test.v", "-test.run", "TestReal|TestConform|Golden|TestScene")
	if err != nil || !strings.Contains(out, "--- PASS: TestReal") || !strings.Contains(out, "--- PASS: TestConform") {
		t.Fatalf("under wine: %v\n%s", err, out)
	}
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "covered ") || strings.HasPrefix(line, "lacking ") {
			fmt.Print("wine: ", line)
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if !strings.Contains(out, a.String()) {
			t.Errorf("the host's address %v was not read under wine:\n%s", a, out)
		}
	}
}

// wine is a prefix of its own with a Go program that can run there.
type wine struct {
	ctx     context.Context
	prefix  string
	program string
}

// newWine makes the prefix, or says what is missing.
func newWine(t *testing.T) (w wine, missing string) {
	t.Helper()
	if testing.Short() || runtime.GOARCH != "amd64" {
		return w, "short run or not amd64"
	}
	const compiler = "x86_64-w64-mingw32-gcc"
	for _, tool := range []string{"wine", "wineserver", "go", compiler} {
		if _, err := lookTool(tool); err != nil {
			return w, tool + " is not installed"
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	w = wine{ctx: ctx, prefix: filepath.Join(t.TempDir(), "prefix"), program: filepath.Join(t.TempDir(), "winroute.test.exe")}
	steps := [][]string{
		{"wine", "wineboot", "--init"},
		{compiler, "-shared", "-O1", "-o", filepath.Join(w.prefix, "drive_c/windows/system32/bcryptprimitives.dll"),
			filepath.Join("testdata", "bcryptprimitives.c"), "-ladvapi32"},
		{"go", "test", "-c", "-o", w.program, "."},
	}
	t.Cleanup(func() { _, _ = w.run("wineserver", "--kill", "--wait") })
	for _, s := range steps {
		if out, err := w.run(s[0], s[1:]...); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(s, " "), err, out)
		}
	}
	return w, ""
}

// lookTool finds a program; Debian keeps wineserver out of the path.
func lookTool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil && name == "wineserver" {
		return exec.LookPath("/usr/lib/wine/wineserver64")
	}
	return path, err
}

func (w *wine) run(name string, args ...string) (string, error) {
	path, err := lookTool(name)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(w.ctx, path, args...)
	cmd.Env = append(os.Environ(), "WINEPREFIX="+w.prefix, "WINEARCH=win64", "WINEDEBUG=-all",
		"WINEDLLOVERRIDES=mscoree,mshtml=", "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
	// To a file: a pipe would have to be waited for until Wine's services end.
	f, err := os.CreateTemp(filepath.Dir(w.program), "out")
	if err != nil {
		return "", err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	failed := cmd.Run()
	out, err := os.ReadFile(f.Name())
	return string(out), errors.Join(failed, err)
}
