package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
)

// What can stand between a command and its daemon, or a daemon and its socket.
var (
	// ErrAway: no daemon answers on the socket.
	ErrAway = errors.New("no daemon answers")
	// ErrDenied: the caller may not use the socket.
	ErrDenied = errors.New("not permitted")
	// ErrTaken: something that is not a dead daemon's socket has the path.
	ErrTaken = errors.New("path is taken")
)

// Ask sends one request to the daemon at a socket and returns its answer. The
// error is ErrAway, ErrDenied or an *Error from the daemon. Without a deadline
// in the context it gives up after a minute.
func Ask(ctx context.Context, path string, req Request) (Response, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := reach(ctx, path)
	if err != nil {
		return Response{}, err
	}
	defer conn.Close() //nolint:errcheck // the answer is read, or it is not
	return exchange(ctx, conn, path, req)
}

// reach connects to the daemon.
func reach(ctx context.Context, path string) (net.Conn, error) {
	conn, err := dial(ctx, path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%s: %w: %s", path, ErrDenied, onlyThese)
	case err != nil:
		return nil, away(path, err)
	}
	return conn, nil
}

// Follow asks for what happens and hands each event to f, until the context
// ends (nil), f fails, or the daemon ends (ErrAway).
func Follow(ctx context.Context, path string, f func(report.Event) error) error {
	conn, err := reach(ctx, path)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // only read
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := writeLine(conn, Request{Version: Version, Op: Watch}); err != nil && ctx.Err() == nil {
		return away(path, err)
	}
	err = follow(json.NewDecoder(conn), path, f)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func follow(d *json.Decoder, path string, f func(report.Event) error) error {
	for {
		var resp Response
		err := d.Decode(&resp)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w any more: it has ended", path, ErrAway)
		case resp.Error != nil:
			return resp.Error
		case resp.Event == nil:
			continue
		}
		if err := f(*resp.Event); err != nil {
			return err
		}
	}
}

func away(path string, cause error) error {
	var op *net.OpError
	if errors.As(cause, &op) {
		cause = op.Err // the rest of it names the path once more
	}
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
