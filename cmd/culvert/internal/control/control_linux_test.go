package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/testenv"
)

// endpoint is a socket that is not there yet.
func endpoint(t *testing.T) string { return filepath.Join(t.TempDir(), "run", "c.sock") }

// warm is for Windows.
func warm(*testing.T, string) {}

// left looks whether a server took its socket away.
func left(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stayed: %v", err)
	}
}

// TestWine runs the tests of the named pipe as a Windows program, where Wine is
// installed, and prints what that covered.
func TestWine(t *testing.T) {
	w, missing := testenv.OpenWine(t)
	if missing != "" {
		fmt.Println("wine: nothing covered,", missing)
		return
	}
	out, err := w.Run(w.Build(t, "control.test.exe", "test", "-c"), "-test.v")
	for _, name := range []string{"TestAsk", "TestPipeAway"} {
		if err != nil || !strings.Contains(out, "--- PASS: "+name) {
			t.Fatalf("under wine: %s: %v\n%s", name, err, out)
		}
		fmt.Println("wine: covered", name)
	}
}

// TestFollow: events come until the asker leaves, the daemon ends, or it has no
// place for more.
func TestFollow(t *testing.T) {
	e := &fakeEngine{}
	path := serve(t, e)
	ctx, cancel := context.WithCancel(context.Background())
	var got []uint64
	err := Follow(ctx, path, func(ev report.Event) error {
		if got = append(got, ev.Incident.ID); len(got) == 3 {
			cancel()
		}
		return nil
	})
	if err != nil || fmt.Sprint(got) != "[0 1 2]" {
		t.Errorf("got %v, %v", got, err)
	}
	for range 1000 {
		if e.watching.Load() == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if n := e.watching.Load(); n != 0 {
		t.Errorf("%d are still watching after the asker left", n)
	}
	full := errors.New("disk full")
	if err := Follow(context.Background(), path, func(report.Event) error { return full }); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
	e.crowded.Store(true)
	var remote *Error
	if err := Follow(context.Background(), path, func(report.Event) error { return nil }); !errors.As(err, &remote) {
		t.Errorf("got %v", err)
	}
}

// raw sends bytes as they are and returns the answer line.
func raw(t *testing.T, path, text string) string {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, text)
	_ = conn.(*net.UnixConn).CloseWrite()
	b, _ := io.ReadAll(conn)
	return string(b)
}

func TestWire(t *testing.T) {
	path := serve(t, &fakeEngine{})
	tests := []struct{ name, send, want string }{
		{"ping", `{"version":1,"op":"ping"}` + "\n", `{"version":1,"daemon":{"pid":7,"program":"test"}}` + "\n"},
		{"another version", `{"version":2,"op":"ping"}` + "\n", `"code":"protocol","message":"request: version 2 is not spoken here, only 1;`},
		{"unknown field", `{"version":1,"op":"ping","x":1}` + "\n", `"code":"protocol"`},
		{"cut off", `{"version":1`, `"message":"request: ends early: unexpected EOF"`},
		{"nothing", "", `"message":"request: ends early: unexpected EOF"`},
		{"two values", `{"version":1,"op":"ping"} {}` + "\n", `more than one value on the line`},
		{"too long", `"` + strings.Repeat("x", maxRequest), fmt.Sprintf("longer than %d bytes", maxRequest)},
		{"bad prefix", `{"version":1,"op":"open","session":{"tunnel":"t","protect":["10.0.0.0/99"]}}` + "\n", `"code":"protocol"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := raw(t, path, tt.send); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q in it", got, tt.want)
			}
		})
	}
}

func TestAskBounded(t *testing.T) {
	path := serve(t, &fakeEngine{})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := Ask(ctx, path, Request{Op: Open, Session: &enforce.Session{Tunnel: "slow"}})
	if !errors.Is(err, ErrAway) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestAskAway(t *testing.T) {
	dir := t.TempDir()
	if _, err := Ask(context.Background(), filepath.Join(dir, "none"), Request{Op: Ping}); !errors.Is(err, ErrAway) {
		t.Errorf("no socket: %v", err)
	}
	// One that accepts and says nothing.
	path := filepath.Join(dir, "mute")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_ = conn.Close()
		}
	}()
	if _, err := Ask(context.Background(), path, Request{Op: Ping}); !errors.Is(err, ErrAway) {
		t.Errorf("mute daemon: %v", err)
	}
}

// TestServeBounded: more connections than are served at once all get answers.
func TestServeBounded(t *testing.T) {
	e := &fakeEngine{}
	path := serve(t, e)
	const n = 3 * maxWorking
	errs := make(chan error, n)
	for range n {
		go func() {
			_, err := Ask(context.Background(), path, Request{Op: Open, Session: &enforce.Session{Tunnel: "tun0"}})
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got := e.opened.Load(); got != n {
		t.Errorf("%d of %d were served", got, n)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "new", "c.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket: %v, %v", info.Mode(), err)
	}
	if _, err := Listen(path); !errors.Is(err, ErrTaken) {
		t.Errorf("a living daemon's socket: %v", err)
	}
	// A dead daemon's socket stays behind, and is replaced.
	if err := l.unix.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = Listen(path); err != nil {
		t.Fatalf("a dead daemon's socket: %v", err)
	}
	_ = l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); !errors.Is(err, ErrTaken) {
		t.Errorf("a file: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "mine" {
		t.Errorf("the file was touched: %q, %v", b, err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(link); !errors.Is(err, ErrTaken) {
		t.Errorf("a symbolic link: %v", err)
	}
}

// FuzzReadRequest: what is accepted is complete, and can be said again.
func FuzzReadRequest(f *testing.F) {
	for _, line := range []string{
		`{"version":1,"op":"ping"}`, `{"version":1,"op":"status"}`, `{"version":1,"op":"close","tunnel":"tun0"}`,
		`{"version":1,"op":"open","session":{"tunnel":"tun0","protect":["10.0.0.0/8"],"servers":[{"addr":"1.2.3.4:5","proto":"udp"}]}}`,
		`{"version":1,"op":"open","session":null}`, `{}`, `[]`, `{"version":1e99}`, strings.Repeat("[", 20000),
	} {
		f.Add(line + "\n")
	}
	f.Fuzz(func(t *testing.T, line string) {
		req, err := readRequest(strings.NewReader(line))
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Code != CodeProtocol {
				t.Errorf("an error of another kind: %v", err)
			}
			return
		}
		var b strings.Builder
		if err := writeLine(&b, req); err != nil {
			return // prefixes that are no prefixes do not marshal; the engine refuses them
		}
		if again, err := readRequest(strings.NewReader(b.String())); err != nil || again.Op != req.Op || again.Tunnel != req.Tunnel {
			t.Errorf("%q became %v, %v", b.String(), again, err)
		}
	})
}
