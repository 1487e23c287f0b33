package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// Process is a program running in the background of a test. Its methods may
// be called by several goroutines at once.
type Process struct {
	cmd  *Cmd
	name string
	log  string        // path of the file that holds its output
	done chan struct{} // closed after err is set
	err  error
}

// Start starts cmd in the background. Standard output and error go to one
// log, which is shown if the test fails. At the end of the test, and when the
// program ends by itself, its whole process group is killed.
func Start(t TB, cmd *Cmd) *Process {
	t.Helper()
	p := &Process{cmd: cmd, name: filepath.Base(cmd.Path), done: make(chan struct{})}
	p.log = filepath.Join(t.TempDir(), p.name+".log")
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatalf("log of %s: %v", p.name, err)
	}
	defer func() { _ = out.Close() }() // the child has its own
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v", err)
	}
	go p.wait()
	t.Cleanup(func() { p.cleanup(t) })
	return p
}

func (p *Process) wait() {
	p.err = p.cmd.Wait()
	p.killGroup() // scripts that it left behind
	close(p.done)
}

func (p *Process) cleanup(t TB) {
	p.Kill()
	if t.Failed() {
		t.Logf("output of %s in %s:\n%s", p.name, p.cmd.ns, p.Output())
	}
}

// Pid is the program's process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Output is what the program has written so far.
func (p *Process) Output() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return fmt.Sprintf("(no output: %v)", err)
	}
	return string(b)
}

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the program has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal to the program, not to its children. A program that
// has ended gives os.ErrProcessDone.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("send %v to %s: %w", sig, p.name, err)
	}
	return nil
}

// ErrTimeout is wrapped by the errors of waits that took too long.
var ErrTimeout = errors.New("timed out")

// Wait waits for the program to end and returns its exit code, or -1 when a
// signal ended it. The error is about the waiting, never about the code.
func (p *Process) Wait(timeout time.Duration) (int, error) {
	if !Until(timeout, func() bool { return !p.Running() }) {
		return -1, fmt.Errorf("wait for %s to end: %w after %v", p.name, ErrTimeout, timeout)
	}
	var exit interface{ ExitCode() int }
	if p.err != nil && !errors.As(p.err, &exit) {
		return -1, fmt.Errorf("wait for %s: %w", p.name, p.err)
	}
	return p.cmd.ProcessState.ExitCode(), nil
}

// Stop asks the program to end with SIGTERM, waits for it and returns its
// exit code. It stops the test when that takes longer than ten seconds.
func (p *Process) Stop(t TB) int {
	t.Helper()
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("stop: %v", err)
	}
	code, err := p.Wait(10 * time.Second)
	if err != nil {
		t.Fatalf("stop: %v", err)
	}
	return code
}

// Kill ends the program and its children with SIGKILL and waits until the
// program is gone. Killing what has ended is a success.
func (p *Process) Kill() {
	if p.Running() {
		p.killGroup()
	}
	<-p.done
}

// killGroup is called only before the program's end was reported, when its
// process group cannot be another's yet.
func (p *Process) killGroup() { _ = syscall.Kill(-p.Pid(), syscall.SIGKILL) }

// WaitOutput waits until the output matches the regular expression pattern at
// least n times. It stops the test when that takes longer than timeout, or
// when the program ends first.
func (p *Process) WaitOutput(t TB, pattern string, n int, timeout time.Duration) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	found := func() bool { return len(re.FindAllStringIndex(p.Output(), n)) >= n }
	Until(timeout, func() bool { return found() || !p.Running() })
	if found() {
		return
	}
	state := "still running"
	if !p.Running() {
		state = fmt.Sprintf("ended: %v", p.cmd.ProcessState)
	}
	t.Fatalf("%s (%s) has not said %q %d times within %v:\n%s", p.name, state, pattern, n, timeout, indent(p.Output()))
}

func indent(s string) string { return "\t" + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n\t") }
