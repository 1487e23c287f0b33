//go:build linux

// Vm runs culvert in a machine of its own, as people run it: Debian with systemd
// as process 1, the unit exactly as it is packed, and real VPN programs under
// their own units. QEMU emulates the machine without KVM, and it has no network
// but those that the cases make inside it.
//
// The cases are the Go tests of testenv/vm/guest. Each runs in a process of its
// own; one boot serves them all. To add one, write a test there. One that is
// quick and needs only the packages of quick-packages.txt may go into
// quick-cases.txt, which "make test" runs.
//
//	go run ./testenv/vm [-quick] [-run REGEXP] [-v]
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

//go:embed quick-cases.txt
var quickCases string

//go:embed start.sh
var start []byte

// Bounds of a run. An emulated processor on a busy machine is slow.
const (
	bootBound = 15 * time.Minute
	caseBound = 10 * time.Minute
)

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "vm: "+format+"\n", args...) }

type options struct {
	quick   bool
	pattern string
	verbose bool
}

func main() {
	var o options
	flag.BoolVar(&o.quick, "quick", false, "only the cases of quick-cases.txt, in a smaller machine")
	flag.StringVar(&o.pattern, "run", ".", "only cases whose names match")
	flag.BoolVar(&o.verbose, "v", false, "show what the machine reports as it comes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := runCases(ctx, o); err != nil {
		say("%v", err)
		os.Exit(1)
	}
}

// runCases makes one machine, boots it and reports.
func runCases(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "culvert-vm-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer os.RemoveAll(dir)
	cases, err := build(ctx, dir, o)
	if err != nil {
		return err
	}
	packages := allPackages
	if o.quick {
		packages = quickPackages
	}
	img, err := openImage(ctx, packages)
	if err != nil {
		return err
	}
	r := newReport(cases)
	begin := time.Now()
	m := machine{img: img, payload: filepath.Join(dir, "payload.img"), dir: dir,
		boot: bootBound, bound: bootBound + time.Duration(len(cases))*caseBound}
	err = m.run(ctx, func(text string) {
		if event, ok := strings.CutPrefix(text, "vm: "); ok || o.verbose {
			say("%4.0f s  %s", time.Since(begin).Seconds(), strings.TrimSpace(event))
		}
		r.line(text)
	})
	bad := r.write(os.Stdout)
	fmt.Println()
	r.measured(os.Stdout)
	fmt.Printf("%d of %d cases passed, %.0f s\n", len(cases)-bad, len(cases), time.Since(begin).Seconds())
	if bad > 0 || !r.ended {
		return errors.Join(err, fmt.Errorf("%d cases did not pass", bad))
	}
	return err
}

// build makes the second disk: the program, its units, the cases' binary and
// their list, which it returns.
func build(ctx context.Context, dir string, o options) ([]string, error) {
	root := filepath.Join(dir, "payload")
	if err := os.MkdirAll(filepath.Join(root, "units"), 0o755); err != nil {
		return nil, fmt.Errorf("make payload: %w", err)
	}
	guest := filepath.Join(root, "guest")
	if out, err := run(ctx, "env", "CGO_ENABLED=0", "go", "test", "-c", "-tags", "vm", "-ldflags", "-s -w", "-o", guest,
		"./testenv/vm/guest"); err != nil {
		return nil, fmt.Errorf("build the cases: %w\n%s", err, out)
	}
	cases, err := list(ctx, guest, o)
	if err != nil {
		return nil, err
	}
	files := map[string]string{"openvpn.conf": "cmd/culvert/packaging/openvpn/client.conf"}
	for _, pattern := range []string{"*.service", "*.mount"} {
		units, _ := filepath.Glob(filepath.Join("cmd/culvert/packaging", pattern))
		for _, u := range units {
			files["units/"+filepath.Base(u)] = u
		}
	}
	if err := copyFile(filepath.Join(root, "culvert"), programPath(), 0o755); err != nil {
		return nil, err
	}
	for name, from := range files {
		if err := copyFile(filepath.Join(root, name), from, 0o644); err != nil {
			return nil, err
		}
	}
	texts := map[string][]byte{"start.sh": start, "cases": []byte(strings.Join(cases, "\n") + "\n"),
		"bound": fmt.Appendf(nil, "%.0f\n", caseBound.Seconds())}
	for name, text := range texts {
		if err := os.WriteFile(filepath.Join(root, name), text, 0o644); err != nil {
			return nil, fmt.Errorf("make payload: %w", err)
		}
	}
	disk := filepath.Join(dir, "payload.img")
	if out, err := run(ctx, "mke2fs", "-q", "-t", "ext4", "-d", root, disk, "128M"); err != nil {
		return nil, fmt.Errorf("make payload: %w\n%s", err, out)
	}
	return cases, nil
}

// programPath is the program under test.
func programPath() string {
	if p := os.Getenv("CULVERT_BIN"); p != "" {
		return p
	}
	return "bin/culvert"
}

// list asks the cases' binary for their names.
func list(ctx context.Context, guest string, o options) ([]string, error) {
	out, err := run(ctx, guest, "-test.list", ".")
	if err != nil {
		return nil, fmt.Errorf("list the cases: %w\n%s", err, out)
	}
	cases := strings.Fields(out)
	if o.quick {
		quick := strings.Fields(quickCases)
		for _, name := range quick {
			if !slices.Contains(cases, name) {
				return nil, fmt.Errorf("quick-cases.txt names %s, which is no case", name)
			}
		}
		cases = quick
	}
	return choose(cases, o.pattern)
}

func copyFile(to, from string, mode os.FileMode) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("make payload: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return fmt.Errorf("make payload: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return fmt.Errorf("make payload: %w", err)
	}
	return nil
}
