//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine is what one boot needs. It has no network of its own: every network is
// made inside it.
type machine struct {
	img     image
	payload string // the second disk
	dir     string // console, report
	boot    time.Duration
	bound   time.Duration
}

// run boots the machine and hands over each line of its report. It returns when
// the machine is off, its time is up, or it has not come up in its time.
func (m machine) run(ctx context.Context, line func(string)) error {
	ctx, cancel := context.WithTimeout(ctx, m.bound)
	defer cancel()
	l, err := net.Listen("unix", filepath.Join(m.dir, "report.sock"))
	if err != nil {
		return fmt.Errorf("open the report: %w", err)
	}
	defer l.Close()
	cmd := m.command(ctx)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start qemu: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	up, heard := make(chan struct{}), make(chan error, 1)
	go func() { heard <- m.hear(l, up, line) }()
	select {
	case <-up:
	case err := <-ended:
		return fmt.Errorf("the machine ended before it was up: %w\n%s", orNil(err), m.console())
	case <-time.After(m.boot):
		cancel()
		<-ended
		return fmt.Errorf("the machine was not up after %v\n%s", m.boot, m.console())
	}
	err = <-ended
	<-heard // QEMU's end is the report's end
	if ctx.Err() != nil {
		return fmt.Errorf("the machine was stopped after %v\n%s", m.bound, m.console())
	}
	return err
}

func orNil(err error) error {
	if err == nil {
		return fmt.Errorf("exit code 0")
	}
	return err
}

func (m machine) command(ctx context.Context) *exec.Cmd {
	drive := func(path string) string {
		return "file=" + path + ",if=virtio,format=raw,snapshot=on,cache=unsafe"
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none",
		"-m", "1536", "-smp", "2", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-kernel", m.img.kernel(), "-initrd", m.img.initrd(), "-drive", drive(m.img.root()), "-drive", drive(m.payload),
		"-append", "root=/dev/vda rw console=ttyS0 panic=1 quiet net.ifnames=0 fsck.mode=skip systemd.show_status=no",
		"-serial", "file:"+filepath.Join(m.dir, "console"), "-serial", "unix:"+filepath.Join(m.dir, "report.sock"))
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.Env = append(os.Environ(), "TMPDIR="+m.dir) // what the machine writes goes there
	return cmd
}

// hear reads the report until QEMU ends.
func (m machine) hear(l net.Listener, up chan<- struct{}, line func(string)) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	s := bufio.NewScanner(conn)
	s.Buffer(nil, 1<<20)
	for first := true; s.Scan(); {
		text := strings.TrimRight(s.Text(), "\r")
		if first && strings.HasPrefix(text, "vm: up ") {
			first = false
			close(up)
		}
		line(text)
	}
	return s.Err()
}

// console is the end of what the machine's kernel and systemd said.
func (m machine) console() string {
	b, err := os.ReadFile(filepath.Join(m.dir, "console"))
	if err != nil {
		return err.Error()
	}
	return "the end of its console:\n" + tail(string(b), 25)
}
