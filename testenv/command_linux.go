package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cmd is an exec.Cmd that starts inside a namespace. Set the embedded
// fields (Stdin, Env, …) and Sandbox before it is started. It runs in a
// process group of its own and is killed when the calling process dies.
// Once started it must be waited for.
type Cmd struct {
	*exec.Cmd
	// Sandbox hides parts of the file system from the command; nil hides nothing.
	Sandbox *Sandbox

	ns     *NS
	ended  chan struct{} // closed by Wait: the thread that forked may go
	waited bool          // ended is closed
}

// Sandbox is a private view of the file system and of the host's name, for
// programs that write where the host's own daemons do. What is written there
// is gone when the program and its children have ended.
type Sandbox struct {
	// Empty lists folders that appear empty and are writable. Folders that do
	// not exist are left out.
	Empty []string
	// Scratch lists folders whose content appears as it is and may be changed
	// without changing the host's.
	Scratch []string
	// OwnSys shows, read-only, the /sys of the command's network namespace
	// instead of the host's. systemd-networkd needs it to manage links where
	// no udev runs.
	OwnSys bool
}

// Command prepares a program to be run in the namespace, as exec.Command does.
func (n *NS) Command(name string, args ...string) *Cmd {
	return n.CommandContext(context.Background(), name, args...)
}

// CommandContext is [NS.Command] with a context that kills the program's
// whole process group when it is done.
func (n *NS) CommandContext(ctx context.Context, name string, args ...string) *Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second
	return &Cmd{Cmd: cmd, ns: n}
}

// Start starts the command and does not wait for it.
//
// The thread that forks is kept until Wait, because the kernel sends the
// parent-death signal when that thread ends, not when the process does.
func (c *Cmd) Start() error {
	if c.ended != nil {
		return fmt.Errorf("start %s: already started", c.Path)
	}
	ended, started := make(chan struct{}), make(chan error, 1)
	c.ended = ended
	spawn(func() {
		err := c.startHere()
		started <- err
		if err == nil {
			<-ended
		}
	})
	if err := <-started; err != nil {
		return fmt.Errorf("start %s in %s: %w", c.Path, c.ns, err)
	}
	return nil
}

func (c *Cmd) startHere() error {
	if err := c.ns.enter(); err != nil {
		return err
	}
	if c.Sandbox != nil {
		if err := c.Sandbox.enter(); err != nil {
			return fmt.Errorf("sandbox: %w", err)
		}
	}
	return c.Cmd.Start()
}

// Wait waits for the started command to end, as exec.Cmd.Wait does.
func (c *Cmd) Wait() error {
	err := c.Cmd.Wait()
	if c.ProcessState != nil && !c.waited {
		c.waited = true
		close(c.ended)
	}
	return err
}

// Run starts the command and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns its standard output.
func (c *Cmd) Output() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	err := c.Run()
	return out.Bytes(), err
}

// CombinedOutput runs the command and returns its standard output and error.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// IP runs iproute2's "ip" in the namespace and returns its standard output.
// The words of args are split at white space: ns.IP(t, "route add
// 10.0.0.0/8 dev eth0"). A failure stops the test and shows the output.
func (n *NS) IP(t TB, args ...string) string {
	t.Helper()
	words := strings.Fields(strings.Join(args, " "))
	var stdout, stderr bytes.Buffer
	cmd := n.Command("ip", words...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("in %s: ip %s: %v\n%s%s", n, strings.Join(words, " "), err, &stdout, &stderr)
	}
	return stdout.String()
}

// enter gives the calling thread, for good, a mount and host name space with
// the sandbox's view.
func (s *Sandbox) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	// Slave: unmounts on the host still arrive here, ours do not go there.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("detach from the host's mounts: %w", err)
	}
	if err := mountScratch(s.Scratch); err != nil {
		return err
	}
	for _, dir := range slices.DeleteFunc(slices.Clone(s.Empty), missingDir) {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("empty %s: %w", dir, err)
		}
	}
	if s.OwnSys {
		if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("own /sys: %w", err)
		}
	}
	return nil
}

func missingDir(dir string) bool {
	info, err := os.Stat(dir)
	return err != nil || !info.IsDir()
}

// mountScratch lays an overlay, whose changes live in memory, on each of dirs.
func mountScratch(dirs []string) (err error) {
	if len(dirs) == 0 {
		return nil
	}
	mem, err := os.MkdirTemp("", "testenv-scratch-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(mem)) }()
	if err := unix.Mount("tmpfs", mem, "tmpfs", 0, "mode=700"); err != nil {
		return fmt.Errorf("memory for scratch folders: %w", err)
	}
	// The overlays keep the memory; its name is needed only to make them.
	defer func() { err = errors.Join(err, unix.Unmount(mem, unix.MNT_DETACH)) }()
	for i, dir := range dirs {
		if err := mountOverlay(dir, filepath.Join(mem, fmt.Sprint(i))); err != nil {
			return fmt.Errorf("scratch %s: %w", dir, err)
		}
	}
	return nil
}

func mountOverlay(dir, mem string) error {
	upper, work := mem+"-upper", mem+"-work"
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)
	return unix.Mount("overlay", dir, "overlay", 0, options)
}
