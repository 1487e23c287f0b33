//go:build linux

package testenv

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain also sees to it that the tests leave nothing behind, and that
// examples, which cannot skip themselves, are left out where they cannot run.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv("TESTENV_VICTIM") != "":
		victim()
	case os.Getenv("TESTENV_DAEMON") != "":
		daemon(os.Args[1:])
	}
	flag.Parse()
	if os.Geteuid() != 0 && os.Getenv("CI") != "true" && os.Getenv("CULVERT_NO_SKIP") != "1" {
		_ = flag.Set("test.skip", "^Example")
	}
	code := m.Run()
	if left := leftovers(); code == 0 && left != "" {
		fmt.Println("left behind: " + left)
		code = 1
	}
	os.Exit(code)
}

// leftovers names what of this process is still there.
func leftovers() string {
	names, _ := filepath.Glob(fmt.Sprintf("%s/%s%d-*", netnsDir, namePrefix, os.Getpid()))
	children, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, "testenv-scratch") || strings.Contains(line, fmt.Sprintf("%s%d-", namePrefix, os.Getpid())) {
			names = append(names, line)
		}
	}
	return strings.Join(append(names, strings.Fields(string(children))...), ", ")
}

// victim is a process that will be killed in the middle of a test.
func victim() {
	_ = Script("victim", nil, func(t TB) {
		p := Start(t, Namespace(t, "victim").Command("sleep", "600"))
		fmt.Println(p.Pid())
		<-p.Done()
	})
	os.Exit(0)
}

// daemon behaves like "culvert run" towards its starter.
func daemon(args []string) {
	fmt.Println("args:", args)
	at := slices.Index(args, "--socket")
	l, err := net.Listen("unix", args[at+1])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	<-end
	_ = l.Close()
	os.Exit(0)
}

func TestProgramDaemon(t *testing.T) {
	t.Parallel()
	Require(t, Root)
	bin := writeScript(t, "culvert", `TESTENV_DAEMON=1 exec `+os.Args[0]+` "$@"`)
	p := NewProgram(t, Namespace(t, "daemon"), bin)
	d := p.Daemon(t, "--audit")
	if want := fmt.Sprintf("args: [run --state-dir %s --socket %s --audit]\n", p.StateDir, p.Socket); d.Output() != want {
		t.Errorf("got %q, want %q", d.Output(), want)
	}
	if !p.Answers() {
		t.Error("does not answer")
	}
	d.Kill()
	if code, err := d.Wait(0); code != -1 || err != nil || p.Answers() {
		t.Errorf("after kill -9: %d, %v", code, err)
	}
	if err := os.Remove(p.Socket); err != nil {
		t.Error(err)
	}
	if code := p.Daemon(t).Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestKilledTestLeavesNothing(t *testing.T) {
	t.Parallel()
	Require(t, Root)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TESTENV_VICTIM=1", "TMPDIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var line [32]byte
	size, _ := out.Read(line[:])
	child, err := strconv.Atoi(strings.TrimSpace(string(line[:size])))
	if err != nil {
		t.Errorf("the victim's process: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if child > 0 && !Until(5*time.Second, func() bool { return errors.Is(unix.Kill(child, 0), unix.ESRCH) }) {
		t.Errorf("process %d outlives the test", child)
		_ = syscall.Kill(child, syscall.SIGKILL)
	}
	if _, err := Sweep(); err != nil {
		t.Error(err)
	}
	if names, _ := filepath.Glob(fmt.Sprintf("%s/%s%d-*", netnsDir, namePrefix, cmd.Process.Pid)); len(names) > 0 {
		t.Errorf("still there: %v", names)
	}
}

// fakeTB records how it was stopped.
type fakeTB struct {
	testing.TB
	how string
}

func (f *fakeTB) Helper() {}
func (f *fakeTB) Fatalf(format string, args ...any) {
	f.how = "fatal: " + fmt.Sprintf(format, args...)
}
func (f *fakeTB) Skipf(format string, args ...any) {
	f.how = "skip: " + fmt.Sprintf(format, args...)
}

func TestRequire(t *testing.T) {
	t.Setenv("CI", "")
	t.Setenv("CULVERT_NO_SKIP", "")
	t.Setenv("CULVERT_BIN", "")
	got := func(tool Tool) string {
		f := &fakeTB{}
		Require(f, tool)
		return f.how
	}
	if how := got("sh"); how != "" {
		t.Errorf("sh: %s", how)
	}
	if how := got("no-such-program"); !strings.HasPrefix(how, "skip: ") || !strings.Contains(how, "dnsmasq-base") {
		t.Errorf("missing program: %s", how)
	}
	if how := got(Culvert); !strings.HasPrefix(how, "skip: ") {
		t.Errorf("no binary: %s", how)
	}
	t.Setenv("CULVERT_NO_SKIP", "1")
	if how := got("no-such-program"); !strings.HasPrefix(how, "fatal: ") {
		t.Errorf("no skipping: %s", how)
	}
	t.Setenv("CULVERT_BIN", "/bin/sh")
	if bin, err := CulvertBin(); err != nil || bin != "/bin/sh" {
		t.Errorf("%s, %v", bin, err)
	}
}
