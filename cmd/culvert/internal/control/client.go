package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"time"
)

// What can stand between a command and its daemon.
var (
	// ErrAway: no daemon answers on the socket.
	ErrAway = errors.New("no daemon answers")
	// ErrDenied: the caller may not use the socket.
	ErrDenied = errors.New("not permitted")
)

// Ask sends one request to the daemon at a socket and returns its answer. The
// error is ErrAway, ErrDenied or an *Error from the daemon. Without a deadline
// in the context it gives up after a minute.
func Ask(ctx context.Context, path string, req Request) (Response, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return Response{}, fmt.Errorf("%s: %w: only root may speak to the daemon; use sudo", path, ErrDenied)
	case err != nil:
		return Response{}, away(path, err)
	}
	defer conn.Close() //nolint:errcheck // the answer is read, or it is not
	return exchange(ctx, conn, path, req)
}

func away(path string, cause error) error {
	return fmt.Errorf("%s: %w; start one with \"culvert run\", or name its socket with --socket (%w)", path, ErrAway, cause)
}

// exchange sends the request and reads the answer, within the context's time.
func exchange(ctx context.Context, conn net.Conn, path string, req Request) (Response, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	req.Version = Version
	// A daemon that refuses may answer and close before it has read everything.
	sendErr := writeLine(conn, req)
	resp, err := readResponse(conn)
	switch {
	case err != nil && ctx.Err() != nil:
		return resp, away(path, fmt.Errorf("no answer in time: %w", ctx.Err()))
	case err != nil:
		return resp, away(path, errors.Join(sendErr, err))
	case resp.Error != nil:
		return resp, resp.Error
	}
	return resp, nil
}
