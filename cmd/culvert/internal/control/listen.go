//go:build !windows

package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Listener is a control socket.
type Listener struct {
	path string

	mu     sync.Mutex // guards the rest
	unix   *net.UnixListener
	file   fs.FileInfo // the socket, as it was made
	closed bool
}

// Close stops listening and removes the socket, unless its path is another's now.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed = true; l.stands() {
		_ = os.Remove(l.path)
	}
	return l.unix.Close()
}

// accept waits for a connection for a while; os.ErrDeadlineExceeded is nobody.
func (l *Listener) accept() (net.Conn, error) {
	l.mu.Lock()
	now := l.unix
	l.mu.Unlock()
	_ = now.SetDeadline(time.Now().Add(acceptFor))
	return now.Accept()
}

// renew makes the socket anew when its path leads elsewhere, and reports whether
// it did. What is not a dead daemon's socket is never replaced.
func (l *Listener) renew() (renewed bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.stands() {
		return false, nil
	}
	fresh, err := Listen(l.path)
	if err != nil {
		return false, err
	}
	_ = l.unix.Close()
	l.unix, l.file = fresh.unix, fresh.file
	return true, nil
}

// stands reports whether the path leads to the socket.
func (l *Listener) stands() bool {
	named, err := os.Lstat(l.path)
	return err == nil && os.SameFile(named, l.file)
}

func dial(ctx context.Context, path string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", path)
}

// onlyThese says who may use the socket, and how to become one of them.
const onlyThese = "only root may speak to the daemon; use sudo"

// Listen opens the control socket: mode 0600, its folder made when it is not
// there. The socket of a dead daemon is replaced; a living one's and anything
// that is not a socket never is.
func Listen(path string) (*Listener, error) {
	if err := peerSupported(); err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := clearStale(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // the path may be another's by then
	// Until the mode is set the check of the peer is what guards the socket.
	err = os.Chmod(path, 0o600)
	file, statErr := os.Lstat(path)
	if err = errors.Join(err, statErr); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return &Listener{path: path, unix: l, file: file}, nil
}

// clearStale makes way for a new socket if what is there is a dead daemon's.
func clearStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("control socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("control socket %s: %w: it is not a socket and is never replaced; remove it or choose another with --socket", path, ErrTaken)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("control socket %s: %w: another program answers on it; stop it or choose another with --socket", path, ErrTaken)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("control socket %s: %w: cannot tell whether its owner lives (%w)", path, ErrTaken, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}
