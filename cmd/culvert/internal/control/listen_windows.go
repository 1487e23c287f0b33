package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"

	"github.com/Microsoft/go-winio"
)

// Listener is a control socket: on Windows a named pipe.
type Listener struct{ pipe net.Listener }

// Close stops listening; the pipe goes with its last handle.
func (l *Listener) Close() error { return l.pipe.Close() }

func (l *Listener) accept() (net.Conn, error) { return l.pipe.Accept() }

// renew has nothing to do: nobody can take a pipe's name away.
func (l *Listener) renew() (bool, error) { return false, nil }

// Listen opens the control pipe, which only administrators and SYSTEM may use.
// A pipe that exists belongs to a living program and is never joined.
func Listen(path string) (*Listener, error) {
	if !isPipe(path) {
		return nil, fmt.Errorf("control pipe %s: %w; write one that begins with %s", path, errNoPipe, pipePrefix)
	}
	l, err := winio.ListenPipe(path, &winio.PipeConfig{SecurityDescriptor: pipeAccess})
	switch {
	case errors.Is(err, fs.ErrPermission): // what Windows says of a second first instance
		return nil, fmt.Errorf("control pipe %s: %w: another program answers on it; stop it or choose another with --socket (%w)", path, ErrTaken, err)
	case err != nil:
		return nil, fmt.Errorf("control pipe %s: %w", path, err)
	}
	return &Listener{pipe: l}, nil
}

// errNoPipe: the path is elsewhere than pipes are.
var errNoPipe = errors.New("not a named pipe of this machine")

// dial opens the pipe. Whoever is at its other end cannot act as the caller.
func dial(ctx context.Context, path string) (net.Conn, error) {
	if !isPipe(path) {
		return nil, errNoPipe
	}
	return winio.DialPipeContext(ctx, path)
}

// onlyThese says who may use the pipe, and how to become one of them.
const onlyThese = "only administrators may speak to the daemon; use an elevated prompt"

// checkPeer has nothing to ask: the pipe's access list has let the peer in.
func checkPeer(net.Conn) error { return nil }
