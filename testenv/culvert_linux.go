package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// CulvertBin is the program named by the environment variable CULVERT_BIN, as
// an absolute path.
func CulvertBin() (string, error) {
	name := os.Getenv("CULVERT_BIN")
	if name == "" {
		return "", errors.New("the program to test: CULVERT_BIN is not set")
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("CULVERT_BIN: %w", err)
	}
	return filepath.Abs(path)
}

// Program is culvert, known by its command line only, with a state folder
// and a control socket of its own. Copy it and change NS to run it elsewhere.
type Program struct {
	Bin      string // path of the binary
	NS       *NS    // where it runs
	StateDir string // given as --state-dir
	Socket   string // given as --socket
	// Timeout bounds Exec; 0 is thirty seconds.
	Timeout time.Duration
}

// NewProgram prepares culvert for a namespace. bin is the path of the
// binary; empty means [CulvertBin].
func NewProgram(t TB, n *NS, bin string) *Program {
	t.Helper()
	if bin == "" {
		var err error
		if bin, err = CulvertBin(); err != nil {
			t.Fatalf("%v", err)
		}
	}
	// The path of a socket must be short; a test's own folder may be long.
	dir, err := os.MkdirTemp("", "testenv-")
	if err != nil {
		t.Fatalf("state folder: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return &Program{Bin: bin, NS: n, StateDir: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "sock")}
}

// Result is what a finished command said.
type Result struct {
	Code           int // exit code; -1 when a signal ended it
	Stdout, Stderr string
}

// String is the whole of it, for messages.
func (r Result) String() string {
	return fmt.Sprintf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
}

// Command prepares a command line of the program as it is given, with nothing
// added.
func (p *Program) Command(args ...string) *Cmd { return p.NS.Command(p.Bin, args...) }

// Args adds to a command line, after its first word, the --socket and
// --state-dir flags that this subcommand takes: both for run and release, the
// socket for those that a daemon answers, the state folder for recover, none for
// others. Plan has none: without a daemon it shows what one would do.
func (p *Program) Args(args ...string) []string {
	if len(args) == 0 {
		return nil
	}
	at := 1
	var flags []string
	switch args[0] {
	case "run", "release":
		flags = []string{"--state-dir", p.StateDir, "--socket", p.Socket}
	case "hook": // its kind follows
		at = min(2, len(args))
		flags = []string{"--socket", p.Socket}
	case "up", "down", "status", "reload", "leaks", "watch", "explain":
		flags = []string{"--socket", p.Socket}
	case "recover":
		flags = []string{"--state-dir", p.StateDir}
	}
	return slices.Concat(args[:at], flags, args[at:])
}

// Run runs one command, with the flags of [Program.Args], to its end. The
// error is about running it; an exit code that is not zero is not an error.
func (p *Program) Run(args ...string) (Result, error) {
	timeout := p.Timeout
	if timeout == 0 {
		timeout = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	cmd := p.NS.CommandContext(ctx, p.Bin, p.Args(args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: -1}
	if cmd.ProcessState != nil {
		r.Code = cmd.ProcessState.ExitCode()
	}
	if ctx.Err() != nil {
		return r, fmt.Errorf("culvert %s: %w after %v: %s", args, ErrTimeout, timeout, r)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return r, fmt.Errorf("culvert %s: %w", args, err)
	}
	return r, nil
}

// Exec is [Program.Run] for tests.
func (p *Program) Exec(t TB, args ...string) Result {
	t.Helper()
	r, err := p.Run(args...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return r
}

// Must is [Program.Exec] that stops the test when the exit code is not zero,
// and returns standard output.
func (p *Program) Must(t TB, args ...string) string {
	t.Helper()
	r := p.Exec(t, args...)
	if r.Code != 0 {
		t.Fatalf("culvert %s: %s", args, r)
	}
	return r.Stdout
}

// Daemon starts "culvert run" with more arguments and the program's state
// folder and socket, and waits until it has the socket open. The returned
// process can be stopped ([Process.Stop]: restores and exits), killed like by
// "kill -9" ([Process.Kill]) and started anew on the same state by another
// call of Daemon.
func (p *Program) Daemon(t TB, args ...string) *Process {
	t.Helper()
	d := p.StartDaemon(t, args...)
	ready := Until(30*time.Second, func() bool { return p.Answers() || !d.Running() })
	if !ready || !d.Running() {
		t.Fatalf("culvert run %s: not ready:\n%s", args, d.Output())
	}
	return d
}

// StartDaemon is [Program.Daemon] without the waiting, for a daemon that is
// expected to refuse.
func (p *Program) StartDaemon(t TB, args ...string) *Process {
	t.Helper()
	return Start(t, p.Command(p.Args(append([]string{"run"}, args...)...)...))
}

// Answers reports whether something accepts connections on the socket.
func (p *Program) Answers() bool {
	conn, err := net.DialTimeout("unix", p.Socket, time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}
