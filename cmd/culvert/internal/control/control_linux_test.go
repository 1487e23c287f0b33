package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
)

// fakeEngine knows one session, tun0.
type fakeEngine struct {
	opened, watching atomic.Int64
	crowded          atomic.Bool
}

func (f *fakeEngine) Open(ctx context.Context, s enforce.Session) (enforce.SessionStatus, error) {
	f.opened.Add(1)
	switch s.Tunnel {
	case "bad":
		return enforce.SessionStatus{}, fmt.Errorf("open: %w", &enforce.InputError{Input: "bad", Text: "no such interface"})
	case "slow":
		<-ctx.Done()
		return enforce.SessionStatus{}, ctx.Err()
	}
	return enforce.SessionStatus{Tunnel: s.Tunnel, State: enforce.Enforcing, Protected: s.Protect}, nil
}

func (f *fakeEngine) Close(_ context.Context, tunnel string) (enforce.SessionStatus, error) {
	if tunnel != "tun0" {
		return enforce.SessionStatus{}, fmt.Errorf("%s: %w", tunnel, enforce.ErrNoSession)
	}
	return enforce.SessionStatus{Tunnel: tunnel, State: enforce.Restored}, nil
}

func (f *fakeEngine) Sessions(context.Context) ([]enforce.Session, error) {
	return []enforce.Session{{Tunnel: "tun0"}}, nil
}

func (f *fakeEngine) Status(context.Context) (report.Status, error) {
	return report.Status{
		Sessions: []report.Session{{SessionStatus: enforce.SessionStatus{Tunnel: "tun0", State: enforce.Enforcing}}},
		Witness:  report.Witness{Mode: report.Off, Reason: "a test"},
	}, nil
}

func (f *fakeEngine) Leaks(context.Context) (*report.Leaks, report.Witness, error) {
	return &report.Leaks{Totals: report.Totals{Packets: 3}}, report.Witness{Mode: report.Drop}, nil
}

// Watch tells of three incidents, then of nothing.
func (f *fakeEngine) Watch(ctx context.Context, tell func(report.Event) error) error {
	if f.crowded.Load() {
		return errors.New("too many")
	}
	for i := range 3 {
		in := report.Incident{Incident: enforce.Incident{ID: uint64(i)}}
		if err := tell(report.Event{Kind: "incident", Incident: &in}); err != nil {
			return err
		}
	}
	f.watching.Add(1)
	<-ctx.Done()
	f.watching.Add(-1)
	return nil
}

func (f *fakeEngine) Release(context.Context) (report.Released, error) {
	return report.Released{Tunnels: []string{"tun0"}, Routes: 2}, nil
}

// serve starts a server and returns its socket; it ends with the test.
func serve(t *testing.T, e Engine) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "c.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := Server{Engine: e, Daemon: Daemon{PID: 7, Program: "test"}}
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket stayed: %v", err)
		}
	})
	return path
}

func TestAsk(t *testing.T) {
	path := serve(t, &fakeEngine{})
	tests := []struct {
		name string
		req  Request
		want string // the response, or the error's code and message
	}{
		{"ping", Request{Op: Ping}, `{"version":1,"daemon":{"pid":7,"program":"test"}}`},
		{"open", Request{Op: Open, Session: &enforce.Session{Tunnel: "tun0", Protect: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}},
			`{"version":1,"session":{"tunnel":"tun0","state":"enforcing","protected":["10.0.0.0/8"],"excluded":null,"removed":0,"readded":0,"restored":0,"held":null,"contested":null,"unenforceable":null}}`},
		{"bad input", Request{Op: Open, Session: &enforce.Session{Tunnel: "bad"}}, "input: open: bad: no such interface"},
		{"close", Request{Op: Close, Tunnel: "tun0"}, `{"version":1,"session":{"tunnel":"tun0","state":"restored","protected":null,"excluded":null,"removed":0,"readded":0,"restored":0,"held":null,"contested":null,"unenforceable":null}}`},
		{"no session", Request{Op: Close, Tunnel: "tun9"}, "no_session: tun9: no session"},
		{"status", Request{Op: Status}, `{"version":1,"daemon":{"pid":7,"program":"test"},"status":{"sessions":[{"tunnel":"tun0","state":"enforcing","protected":null,"excluded":null,"removed":0,"readded":0,"restored":0,"held":null,"contested":null,"unenforceable":null}],"incidents":null,"witness":{"mode":"off","reason":"a test","suppressed":0,"lost":0,"interfaces":null}}}`},
		{"leaks", Request{Op: Leaks}, `{"version":1,"leaks":{"packets":3,"bytes":0,"dropped":0,"by":null},"witness":{"mode":"drop","suppressed":0,"lost":0,"interfaces":null}}`},
		{"release", Request{Op: Release}, `{"version":1,"released":{"tunnels":["tun0"],"routes":2}}`},
		{"unknown", Request{Op: "dance"}, `protocol: request: operation "dance" is unknown`},
		{"open nothing", Request{Op: Open}, "protocol: request: open has too much or too little beside it"},
		{"too much", Request{Op: Status, Tunnel: "tun0"}, "protocol: request: status has too much or too little beside it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, err := Ask(context.Background(), path, tt.req)
			got := fmt.Sprint(err)
			var remote *Error
			if errors.As(err, &remote) {
				got = string(remote.Code) + ": " + remote.Message
			} else if err == nil {
				b, _ := json.Marshal(resp)
				got = string(b)
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
	if _, err := Ask(context.Background(), path, Request{Op: Close, Tunnel: "tun9"}); !errors.Is(err, enforce.ErrNoSession) {
		t.Errorf("%v is not ErrNoSession", err)
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
	const n = 3 * maxConns
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
	l.unix.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
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
