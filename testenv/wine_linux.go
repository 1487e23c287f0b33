package testenv

import (
	"context"
	_ "embed"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Wine runs Windows programs in a prefix of its own. It is no requirement for
// anything: where it is not installed, tests go without.
type Wine struct {
	ctx    context.Context
	prefix string
	dir    string
}

//go:embed testdata/bcryptprimitives.c
var bcryptPrimitives string

const mingw = "x86_64-w64-mingw32-gcc"

// wineBound is how long all programs of one prefix may take.
const wineBound = 5 * time.Minute

// OpenWine makes a prefix that goes at the end of the test, or says what is
// missing: Wine and a mingw compiler, both for amd64.
func OpenWine(t TB) (w *Wine, missing string) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		return nil, "this is not amd64"
	}
	for _, tool := range []string{"wine", "wineserver", "go", mingw} {
		if _, err := lookWine(tool); err != nil {
			return nil, tool + " is not installed"
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), wineBound)
	t.Cleanup(cancel)
	dir := t.TempDir()
	w = &Wine{ctx: ctx, prefix: filepath.Join(dir, "prefix"), dir: dir}
	t.Cleanup(func() { _, _ = w.run("wineserver", "--kill", "--wait") })
	source := filepath.Join(dir, "bcryptprimitives.c")
	if err := os.WriteFile(source, []byte(bcryptPrimitives), 0o600); err != nil {
		t.Fatalf("wine: %v", err)
	}
	w.must(t, "wine", "wineboot", "--init")
	w.must(t, mingw, "-shared", "-O1", "-o", filepath.Join(w.prefix, "drive_c/windows/system32/bcryptprimitives.dll"), source, "-ladvapi32")
	return w, ""
}

// Build builds a Windows program by "go" and the arguments, which may be those
// of "build" or of "test -c", in the current folder; it returns its path.
func (w *Wine) Build(t TB, name string, args ...string) string {
	t.Helper()
	program := filepath.Join(w.dir, name)
	w.must(t, "go", append(args, "-o", program, ".")...)
	return program
}

// Run runs a program that Build made. The output is that of both streams; the
// error is nil when the exit code is 0.
func (w *Wine) Run(program string, args ...string) (string, error) {
	return w.run("wine", append([]string{program}, args...)...)
}

func (w *Wine) must(t TB, name string, args ...string) {
	t.Helper()
	if out, err := w.run(name, args...); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// lookWine finds a program; Debian keeps wineserver out of the path.
func lookWine(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil && name == "wineserver" {
		return exec.LookPath("/usr/lib/wine/wineserver64")
	}
	return path, err
}

func (w *Wine) run(name string, args ...string) (string, error) {
	path, err := lookWine(name)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(w.ctx, path, args...)
	cmd.Env = append(os.Environ(), "WINEPREFIX="+w.prefix, "WINEARCH=win64", "WINEDEBUG=-all",
		"WINEDLLOVERRIDES=mscoree,mshtml=", "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
	// To a file: a pipe would have to be waited for until Wine's services end.
	f, err := os.CreateTemp(w.dir, "out")
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // only read
	cmd.Stdout, cmd.Stderr = f, f
	failed := cmd.Run()
	out, err := os.ReadFile(f.Name())
	return string(out), errors.Join(failed, err)
}
