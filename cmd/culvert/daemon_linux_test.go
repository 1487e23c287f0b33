package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/config"
	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
)

// fakeEngine enforces nothing. Run ends with the context, or when it is told.
type fakeEngine struct {
	ready chan struct{}
	end   chan error
	after error // what Run returns at the end of the context
}

func newFakeEngine() *fakeEngine {
	e := &fakeEngine{ready: make(chan struct{}), end: make(chan error, 1)}
	close(e.ready)
	return e
}

func (e *fakeEngine) Ready() <-chan struct{} { return e.ready }

func (e *fakeEngine) Run(ctx context.Context) error {
	select {
	case err := <-e.end:
		return err
	case <-ctx.Done():
		return e.after
	}
}

func (e *fakeEngine) Open(_ context.Context, s enforce.Session) (enforce.SessionStatus, error) {
	return enforce.SessionStatus{Tunnel: s.Tunnel, State: enforce.Enforcing}, nil
}

func (e *fakeEngine) Close(_ context.Context, tunnel string) (enforce.SessionStatus, error) {
	return enforce.SessionStatus{}, enforce.ErrNoSession
}

func (e *fakeEngine) Sessions(context.Context) ([]enforce.Session, error) { return nil, nil }

func (e *fakeEngine) Gateways() []netip.Prefix { return nil }

func (e *fakeEngine) Leave(ctx context.Context, tunnel string) (enforce.SessionStatus, error) {
	return e.Close(ctx, tunnel)
}

func (e *fakeEngine) Preview(context.Context, []enforce.Session) (enforce.Preview, error) {
	return enforce.Preview{Reported: []string{"one"}}, nil
}

func (e *fakeEngine) Reload(context.Context) (enforce.Reloaded, error) {
	return enforce.Reloaded{}, nil
}

func (e *fakeEngine) Status(context.Context) (report.Status, error) {
	return report.Status{Witness: report.Witness{Mode: report.Off, Reason: "a test"}}, nil
}

func (e *fakeEngine) Leaks(context.Context) (*report.Leaks, report.Witness, error) {
	return nil, report.Witness{Mode: report.Off, Reason: "a test"}, nil
}

func (e *fakeEngine) Watch(ctx context.Context, _ func(report.Event) error) error {
	<-ctx.Done()
	return nil
}

func (e *fakeEngine) Release(context.Context) (report.Released, error) {
	return report.Released{}, errNoGuard
}

// runDaemon runs one on a socket of its own and returns how to stop it.
func runDaemon(t *testing.T, e engine) (socket string, stop func() error, ended <-chan error) {
	t.Helper()
	s := config.Default()
	s.Socket = filepath.Join(t.TempDir(), "c.sock")
	l, err := control.Listen(s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	d := &daemon{settings: s, log: slog.New(slog.DiscardHandler), engine: e}
	done := make(chan error, 1)
	go func() { done <- d.run(ctx, l) }()
	return s.Socket, func() error { cancel(); return within(t, done) }, done
}

func within[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(10 * time.Second):
		t.Fatal("not in time")
	}
	return v
}

func TestDaemon(t *testing.T) {
	e := newFakeEngine()
	socket, stop, _ := runDaemon(t, e)
	resp, err := control.Ask(context.Background(), socket, control.Request{Op: control.Ping})
	if err != nil || resp.Daemon.PID != os.Getpid() {
		t.Errorf("ping: %v, %v", resp, err)
	}
	if err := stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stayed: %v", err)
	}
}

func TestDaemonEnds(t *testing.T) {
	t.Run("not everything restored", func(t *testing.T) {
		e := newFakeEngine()
		e.after = errors.New("2 routes could not be given back")
		_, stop, _ := runDaemon(t, e)
		if err := stop(); !errors.Is(err, e.after) || exitCode(err) != exitWrong {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the enforcer fails", func(t *testing.T) {
		e := newFakeEngine()
		_, _, ended := runDaemon(t, e)
		broken := errors.New("watch ended")
		e.end <- broken
		if err := within(t, ended); !errors.Is(err, broken) || exitCode(err) != exitWrong {
			t.Errorf("got %v", err)
		}
	})
	t.Run("bad session", func(t *testing.T) {
		e := newFakeEngine()
		_, _, ended := runDaemon(t, e)
		e.end <- &enforce.InputError{Input: "x", Text: "no such interface to exclude"}
		if err := within(t, ended); exitCode(err) != exitUsage {
			t.Errorf("got %v", err)
		}
	})
}

// TestNotify plays systemd: readiness, watchdog, end.
func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "60000")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	_, stop, _ := runDaemon(t, newFakeEngine())
	var got []string
	read := func(until string) {
		buf := make([]byte, 256)
		for {
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatalf("after %v: %v", got, err)
			}
			if got = append(got, string(buf[:n])); got[len(got)-1] == until {
				return
			}
		}
	}
	read("READY=1")
	read("WATCHDOG=1")
	read("WATCHDOG=1")
	if err := stop(); err != nil {
		t.Error(err)
	}
	read("STOPPING=1")
	if got[0] != "READY=1" {
		t.Errorf("got %v", got)
	}
}

// TestOwnFolders: a folder that others could take away, or hold a lock in, is no
// place for one.
func TestOwnFolders(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(parent, private string) error
		says string // "" is success
	}{
		{"nothing there", func(string, string) error { return nil }, ""},
		{"there already", ownFolders, ""},
		{"others may write", func(_, private string) error { return os.Chmod(private, 0o770) }, ""},
		{"others may open", func(_, private string) error { return os.Chmod(private, 0o711) }, ""},
		{"others may write above", func(parent, _ string) error { return os.Chmod(parent, 0o757) }, ""},
		{"another's", func(_, private string) error { return os.Chown(private, 65534, 0) }, "belongs to user 65534"},
		{"another's above", func(parent, _ string) error { return os.Chown(parent, 65534, 0) }, "belongs to user 65534"},
		{"a link", func(parent, private string) error {
			return errors.Join(os.Remove(private), os.Symlink(parent, private))
		}, "no folder"},
		{"no /run", func(parent, private string) error {
			return errors.Join(os.Remove(private), os.Remove(parent), os.Remove(filepath.Dir(parent)))
		}, "/run must be there"},
	} {
		parent := filepath.Join(t.TempDir(), "run", "culvert")
		private := filepath.Join(parent, "lock")
		if err := errors.Join(os.Mkdir(filepath.Dir(parent), 0o755), ownFolders(parent, private), tt.set(parent, private)); err != nil {
			if os.Geteuid() != 0 && errors.Is(err, fs.ErrPermission) {
				continue // only root gives things away
			}
			t.Fatal(err)
		}
		err := ownFolders(parent, private)
		if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if tt.says != "" {
			continue
		}
		for path, most := range map[string]fs.FileMode{parent: 0o755, private: 0o700} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm()&^most != 0 {
				t.Errorf("%s: %s has mode %v, %v", tt.name, path, info.Mode(), err)
			}
		}
	}
}

func TestCheckStateDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := checkStateDir(dir); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o770); err != nil {
		t.Fatal(err)
	}
	if err := checkStateDir(dir); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "--state-dir") {
		t.Errorf("others may write to it: %v", err)
	}
	if err := checkStateDir(filepath.Join(file, "c")); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "--state-dir") {
		t.Errorf("a file in the way: %v", err)
	}
}
