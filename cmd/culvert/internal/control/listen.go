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
	"syscall"
	"time"
)

// Listener is a control socket.
type Listener struct{ unix *net.UnixListener }

// Close stops listening and removes the socket.
func (l *Listener) Close() error { return l.unix.Close() }

func (l *Listener) accept() (net.Conn, error) { return l.unix.Accept() }

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
	// Until the mode is set the check of the peer is what guards the socket.
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return &Listener{unix: l}, nil
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
