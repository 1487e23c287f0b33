package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/config"
	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
	"github.com/culvert-project/culvert/enforce"
	"golang.org/x/sys/unix"
)

// TestReloadIsToldToSystemd: reloading, with the time that it is matched by, and
// ready again, whether the file was taken or not.
func TestReloadIsToldToSystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	broken := &enforce.InputError{Input: "10.0.0.1/8", Text: "has host bits set"}
	for _, want := range []error{nil, broken} {
		r := reloader{log: slog.New(slog.DiscardHandler), now: config.Default(),
			source: source{file: "c.yaml", level: new(slog.LevelVar), read: func() (config.Settings, error) {
				s := config.Default()
				s.LogDebug = true
				return s, nil
			}},
			replace: func(context.Context, []enforce.Session) (enforce.Reloaded, error) { return enforce.Reloaded{}, want },
		}
		_, err := r.reload(t.Context())
		if (err == nil) != (want == nil) || (r.level.Level() == slog.LevelDebug) != (want == nil) {
			t.Errorf("%v: %v, level %v", want, err, r.level.Level())
		}
		var input *control.Error
		if want != nil && (!errors.As(err, &input) || input.Code != control.CodeInput || !strings.Contains(input.Message, "c.yaml: 10.0.0.1/8")) {
			t.Errorf("%v", err)
		}
		for _, state := range []string{`^RELOADING=1\nMONOTONIC_USEC=[0-9]+\n?$`, `^READY=1$`} {
			buf := make([]byte, 256)
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			n, err := conn.Read(buf)
			if err != nil || !regexp.MustCompile(state).Match(buf[:n]) {
				t.Errorf("%q, %v; want %s", buf[:n], err, state)
			}
		}
	}
}

// TestReloadOfNoFile: what has taken the file's place is not waited for.
func TestReloadOfNoFile(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "c.yaml")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{fifo, filepath.Dir(fifo)} {
		r := reloader{log: slog.New(slog.DiscardHandler), now: config.Default(),
			source: source{file: file, level: new(slog.LevelVar), read: func() (config.Settings, error) {
				t.Errorf("%s was opened", file)
				return config.Default(), nil
			}},
			replace: func(context.Context, []enforce.Session) (enforce.Reloaded, error) { return enforce.Reloaded{}, nil },
		}
		var input *control.Error
		if _, err := r.reload(t.Context()); !errors.As(err, &input) || input.Code != control.CodeInput || !strings.Contains(input.Message, "is not a regular file") {
			t.Errorf("%s: %v", file, err)
		}
	}
}
