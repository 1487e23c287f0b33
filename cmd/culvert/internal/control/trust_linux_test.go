package control

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/testenv"
)

// patience bounds every wait for something that happens.
const patience = 10 * time.Second

// asNobody runs f on a thread of a user without privileges.
func asNobody(t *testing.T, f func() error) error {
	t.Helper()
	if os.Geteuid() != 0 {
		testenv.Lacking(t, "only root can become nobody")
	}
	const nobody = 65534
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			done <- errno
			return
		}
		done <- f()
	}()
	return <-done
}

// reachable lets everybody reach a path.
func reachable(t *testing.T, path string) {
	t.Helper()
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOnlyRoot: the socket's mode keeps others out, and where that was changed the
// daemon asks the kernel who speaks.
func TestOnlyRoot(t *testing.T) {
	e := &fakeEngine{}
	path := serve(t, e)
	reachable(t, path)
	ask := func() error {
		_, err := Ask(context.Background(), path, Request{Op: Open, Session: &enforce.Session{Tunnel: "tun0"}})
		return err
	}
	if err := asNobody(t, ask); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "use sudo") {
		t.Errorf("by the mode: %v", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	var remote *Error
	if err := asNobody(t, ask); !errors.As(err, &remote) || remote.Code != CodeDenied || !errors.Is(err, ErrDenied) {
		t.Errorf("by the kernel's word: %v", err)
	}
	if n := e.opened.Load(); n != 0 {
		t.Errorf("nobody opened %d sessions", n)
	}
	if err := ask(); err != nil {
		t.Errorf("control: root: %v", err)
	}
}

// taken starts a server with a log, and returns what it logs so far.
func taken(t *testing.T) (l *Listener, log func() string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	path := endpoint(t)
	if l, err = Listen(path); err != nil {
		t.Fatal(err)
	}
	s := Server{Engine: &fakeEngine{}, Log: slog.New(slog.NewTextHandler(w, nil))}
	s.renew(l)
	t.Cleanup(func() { _ = l.Close() })
	return l, func() string {
		s.renew(l)
		_ = r.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		b, _ := io.ReadAll(r)
		return string(b)
	}
}

// TestSocketTakenAway: it is made anew, never in the place of what is another's, and
// each is said once.
func TestSocketTakenAway(t *testing.T) {
	l, log := taken(t)
	if got := log(); got != "" {
		t.Errorf("with the socket there: %s", got)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Remove(l.path))
	must(os.WriteFile(l.path, []byte("mine"), 0o600))
	if got := log(); !strings.Contains(got, "cannot be made again") || !strings.Contains(got, "not a socket") {
		t.Errorf("a file is there: %q", got)
	}
	if got := log(); got != "" {
		t.Errorf("said again: %s", got)
	}
	if b, err := os.ReadFile(l.path); err != nil || string(b) != "mine" {
		t.Errorf("the file was touched: %q, %v", b, err)
	}
	must(os.Remove(l.path))
	before := l.unix
	if got := log(); !strings.Contains(got, "made again") {
		t.Errorf("the place is free: %q", got)
	}
	if _, err := before.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the old socket still listens: %v", err)
	}
	must(os.Remove(l.path)) // and another's is there when it ends
	other, err := net.Listen("unix", l.path)
	must(err)
	defer other.Close()
	must(l.Close())
	if _, err := os.Lstat(l.path); err != nil {
		t.Errorf("another's socket was removed: %v", err)
	}
	if renewed, err := l.renew(); renewed || err != nil {
		t.Errorf("a closed one is made again: %t, %v", renewed, err)
	}
}

// TestSocketIsLookedAfter: a server that is asked nothing finds out by itself.
func TestSocketIsLookedAfter(t *testing.T) {
	path := serve(t, &fakeEngine{})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if !testenv.Until(patience, func() bool {
		_, err := Ask(t.Context(), path, Request{Op: Ping})
		return err == nil
	}) {
		t.Error("no command can speak to the daemon any more")
	}
}

// hungUp reports whether the other end has closed, or does within a time.
func hungUp(c net.Conn, wait time.Duration) bool {
	_ = c.SetReadDeadline(time.Now().Add(wait))
	_, err := c.Read(make([]byte, 1))
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

// TestMute: who says nothing is in nobody's way, and the time to say it in is not
// waited for.
func TestMute(t *testing.T) {
	path := serve(t, &fakeEngine{})
	const most = maxConns - 50
	var mute []net.Conn
	for range most {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		mute = append(mute, conn)
	}
	began, gone := time.Now(), map[net.Conn]bool{}
	for len(gone) < most-maxReading && time.Since(began) < readTimeout-time.Second {
		for _, c := range mute {
			if !gone[c] && hungUp(c, time.Millisecond) {
				gone[c] = true
			}
		}
	}
	if len(gone) < most-maxReading {
		t.Errorf("of %d that say nothing %d were hung up on", most, len(gone))
	}
}

// TestCrowd: the oldest makes way.
func TestCrowd(t *testing.T) {
	var near, far [4]net.Conn
	for i := range near {
		near[i], far[i] = net.Pipe()
	}
	c := crowd{most: 2}
	for _, conn := range near[:3] {
		c.enter(conn)
	}
	if !hungUp(far[0], time.Millisecond) || hungUp(far[1], time.Millisecond) || hungUp(far[2], time.Millisecond) {
		t.Error("it is not the oldest alone that was hung up on")
	}
	c.enter(near[3])
	if !hungUp(far[1], time.Millisecond) || len(c.conns) != 2 {
		t.Errorf("then the second; %d are counted", len(c.conns))
	}
	c.leave(near[0])
	if len(c.conns) != 2 {
		t.Error("one that had left is counted again")
	}
	if c.leave(near[2]); len(c.conns) != 1 || c.conns[0] != near[3] {
		t.Error("who left is still counted")
	}
}

// TestLargeRequests: only a few may be large at once, and each gives its place back.
func TestLargeRequests(t *testing.T) {
	places := make(chan struct{}, maxLarge)
	var all []*metered
	read := func(size int) error {
		m := &metered{r: strings.NewReader(strings.Repeat("x", size)), large: places}
		all = append(all, m)
		_, err := io.Copy(io.Discard, struct{ io.Reader }{m})
		return err
	}
	for range 2 * maxLarge {
		if err := read(smallRequest - 1); err != nil {
			t.Fatalf("a small one: %v", err)
		}
	}
	for range maxLarge {
		if err := read(4 * smallRequest); err != nil {
			t.Fatal(err)
		}
	}
	if err := read(4 * smallRequest); !errors.Is(err, errManyLarge) {
		t.Errorf("one too many: %v", err)
	}
	for _, m := range all {
		m.done()
	}
	if err := read(4 * smallRequest); err != nil {
		t.Errorf("the places are free again: %v", err)
	}
}

// heldEngine answers with what can be long.
type heldEngine struct{ fakeEngine }

func (*heldEngine) Open(context.Context, enforce.Session) (enforce.SessionStatus, error) {
	return enforce.SessionStatus{Tunnel: "tun0", Held: make([]enforce.HeldRoute, 3)}, nil
}

// TestAnswers: what the other tests' table does not ask.
func TestAnswers(t *testing.T) {
	path := serve(t, &heldEngine{})
	resp, err := Ask(t.Context(), path, Request{Op: Open, Session: &enforce.Session{Tunnel: "tun0"}})
	if err != nil || resp.Session == nil || resp.Session.Held == nil || len(resp.Session.Held) != 0 {
		t.Errorf("held routes are left out of an open's answer: %+v, %v", resp.Session, err)
	}
	resp, err = Ask(t.Context(), path, Request{Op: Policy})
	if err != nil || len(resp.Policy) != 1 || resp.Policy[0].Tunnel != "tun0" || len(resp.Gateways) != 1 {
		t.Errorf("policy: %+v, %v", resp, err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if err := writeLine(conn, Request{Version: Version, Op: Watch}); err != nil {
		t.Fatal(err)
	}
	if first, err := readResponse(conn); err != nil || first.Daemon == nil || first.Daemon.PID != 7 {
		t.Errorf("who watches is told first whom: %+v, %v", first, err)
	}
}

// TestMoreThanSlots: a place is free again once its connection is answered.
func TestMoreThanSlots(t *testing.T) {
	path := serve(t, &fakeEngine{})
	ctx, cancel := context.WithTimeout(t.Context(), 6*patience)
	defer cancel()
	for range maxConns + 2 {
		if _, err := Ask(ctx, path, Request{Op: Ping}); err != nil {
			t.Fatal(err)
		}
	}
	for range maxWorking + 2 {
		if _, err := Ask(ctx, path, Request{Op: Status}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTheEnd: those who say nothing are in nobody's way who asked; a server's end waits
// for those being answered, and who watches learns that the daemon has ended.
func TestTheEnd(t *testing.T) {
	path := endpoint(t)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	e := &fakeEngine{}
	ctx, cancel := context.WithCancel(t.Context())
	served, watched, asked := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	s := Server{Engine: e}
	go func() { served <- s.Serve(ctx, l) }()
	go func() { watched <- Follow(t.Context(), path, func(report.Event) error { return nil }) }()
	go func() {
		_, err := Ask(t.Context(), path, Request{Op: Open, Session: &enforce.Session{Tunnel: "slow"}})
		asked <- err
	}()
	if !testenv.Until(patience, func() bool { return e.watching.Load() == 1 && e.opened.Load() == 1 }) {
		t.Fatal("nobody is being answered")
	}
	var mute []net.Conn
	for range maxReading + 1 {
		mute = append(mute, dialed(t, path))
	}
	tooMany := func() bool {
		return slices.ContainsFunc(mute, func(c net.Conn) bool { return hungUp(c, time.Millisecond) })
	}
	if !testenv.Until(patience, tooMany) || e.watching.Load() != 1 {
		t.Errorf("of those that say nothing one must go, and %d are being answered", e.watching.Load())
	}
	for _, c := range mute {
		_ = c.Close()
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if n := e.watching.Load(); n != 0 {
		t.Errorf("the server has ended, and %d are being answered", n)
	}
	if err := <-watched; !errors.Is(err, ErrAway) || !strings.Contains(err.Error(), "it has ended") {
		t.Errorf("who watches: %v", err)
	}
	var remote *Error
	if err := <-asked; !errors.As(err, &remote) {
		t.Errorf("who asked: %v", err)
	}
	_, err = Ask(t.Context(), path, Request{Op: Ping})
	if !errors.Is(err, ErrAway) || strings.Count(err.Error(), path) != 1 {
		t.Errorf("afterwards: %v", err)
	}
	if err := Follow(t.Context(), path, func(report.Event) error { return nil }); !errors.Is(err, ErrAway) {
		t.Errorf("afterwards, to watch: %v", err)
	}
}

// TestListenRefuses: each reason is told, and nothing is touched.
func TestListenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		filepath.Join(file, "c.sock"), filepath.Join(filepath.Dir(file), strings.Repeat("x", 200)), "/proc/self/c.sock",
	} {
		if _, err := Listen(path); err == nil || !strings.HasPrefix(err.Error(), "control socket") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestListenTaken: whose socket it is must be plain before it is replaced.
func TestListenTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := Listen(path); !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "cannot tell") {
		t.Errorf("a socket of another kind: %v", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("it was removed: %v", err)
	}
	if _, err := Listen(path + "\x00"); err == nil || !strings.HasPrefix(err.Error(), "control socket") {
		t.Errorf("no path: %v", err)
	}
}

// TestMayAsk: root, and whoever the daemon runs as.
func TestMayAsk(t *testing.T) {
	for _, c := range []struct {
		uid  uint32
		self int
		want bool
	}{{0, 0, true}, {0, 1000, true}, {1000, 1000, true}, {1000, 0, false}, {1001, 1000, false}, {65534, 1000, false}} {
		if err := mayAsk(c.uid, c.self); (err == nil) != c.want {
			t.Errorf("user %d of a daemon of user %d: %v", c.uid, c.self, err)
		}
	}
	closed, _ := net.Pipe()
	if err := checkPeer(closed); !errors.Is(err, errNoPeer) {
		t.Errorf("no socket: %v", err)
	}
	ended := dialed(t, serve(t, &fakeEngine{}))
	_ = ended.Close()
	for name, conn := range map[string]net.Conn{"none": new(net.UnixConn), "one that is closed": ended} {
		if err := checkPeer(conn); err == nil {
			t.Errorf("a connection has a trusted peer: %s", name)
		}
	}
}

// dialed is a connection to a socket.
func dialed(t *testing.T, path string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestListenerEnds: a server whose listener was closed behind its back says so; another
// that answers on a path is left alone, and told of as that.
func TestListenerEnds(t *testing.T) {
	path := endpoint(t)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	s := Server{Engine: &fakeEngine{}}
	go func() { served <- s.Serve(t.Context(), l) }()
	if _, err := Ask(t.Context(), path, Request{Op: Ping}); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "another program answers on it") {
		t.Errorf("a second daemon: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-served:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("it serves on without a listener")
	}
	if err := l.Close(); err == nil {
		t.Error("what was closed is closed again")
	}
}

// TestEndedBefore: a server that is ended as it starts takes its socket away before it
// returns.
func TestEndedBefore(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		path := endpoint(t)
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		s := Server{Engine: &fakeEngine{}}
		if err := s.Serve(ctx, l); err != nil {
			t.Error(err)
		}
		if left(t, path); t.Failed() {
			return
		}
	}
}

// TestReadLine: a line may be as long as the limit, what a newer daemon adds is passed
// over, and nothing is taken that is not all there.
func TestReadLine(t *testing.T) {
	const answer = `{"version":1,"daemon":{"pid":7,"program":"x"},"of_a_later_version":true}` + "\n"
	if resp, err := readResponse(strings.NewReader(answer)); err != nil || resp.Daemon == nil || resp.Daemon.PID != 7 {
		t.Errorf("a newer daemon's answer: %+v, %v", resp, err)
	}
	if _, err := readRequest(strings.NewReader(`{"version":1,"op":"ping","of_a_later_version":true}` + "\n")); err == nil {
		t.Error("a request with what is not understood was taken")
	}
	var v any
	for limit, want := range map[int64]string{int64(len(answer)): "", int64(len(answer)) - 1: "longer than"} {
		if err := readLine(strings.NewReader(answer), limit, false, &v); err != nil != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%d bytes of at most %d: %v", len(answer), limit, err)
		}
	}
	broken := errors.New("broken")
	for name, r := range map[string]io.Reader{"broken": io.MultiReader(strings.NewReader("{"), &failing{broken}), "cut off": strings.NewReader("{}"), "no JSON": strings.NewReader("{\n"), "two": strings.NewReader("{} {}\n")} {
		if err := readLine(r, 1<<10, false, &v); err == nil || name == "broken" && !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := writeLine(io.Discard, func() {}); err == nil {
		t.Error("what cannot be encoded was written")
	}
	if err := writeLine(&failing{broken}, 1); !errors.Is(err, broken) {
		t.Errorf("written to nobody: %v", err)
	}
	if e := (&Error{CodeInput, "no such interface"}); e.Error() != "no such interface" {
		t.Errorf("the error's text is %q", e.Error())
	}
}

// failing is a connection that gives an error.
type failing struct{ err error }

func (f *failing) Read([]byte) (int, error)  { return 0, f.err }
func (f *failing) Write([]byte) (int, error) { return 0, f.err }
