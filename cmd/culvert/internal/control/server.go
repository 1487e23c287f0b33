package control

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
)

// The bounds of one connection, and of all of them.
const (
	readTimeout   = 5 * time.Second
	engineTimeout = 30 * time.Second
	writeTimeout  = 10 * time.Second
	maxConns      = 16
)

// Engine is what a daemon does for the command line: the enforcer, joined with
// the witness.
type Engine interface {
	Open(ctx context.Context, s enforce.Session) (enforce.SessionStatus, error)
	Close(ctx context.Context, tunnel string) (enforce.SessionStatus, error)
	Status(ctx context.Context) (report.Status, error)
	Sessions(ctx context.Context) ([]enforce.Session, error)
	Pinholes() []netip.Prefix
	Leaks(ctx context.Context) (*report.Leaks, report.Witness, error)
	Watch(ctx context.Context, f func(report.Event) error) error
	Release(ctx context.Context) (report.Released, error)
}

// Server answers requests with an Engine. Log may be nil.
type Server struct {
	Engine Engine
	Daemon Daemon
	Log    *slog.Logger
}

// Serve answers connections, a bounded number at once, until the context ends;
// then it waits for those being answered and returns nil. It closes l.
func (s *Server) Serve(ctx context.Context, l *Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	slots := make(chan struct{}, maxConns)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := l.accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !transient(err):
			return err
		case err != nil: // out of descriptors, most likely: let some be given back
			time.Sleep(50 * time.Millisecond)
			<-slots
			continue
		}
		conns.Go(func() {
			defer func() { <-slots }()
			s.handle(ctx, conn)
		})
	}
}

func transient(err error) bool { return !errors.Is(err, net.ErrClosed) }

// handle carries one connection from its request to its end.
func (s *Server) handle(ctx context.Context, conn net.Conn) {
	defer conn.Close() //nolint:errcheck // nothing is left to lose
	_ = conn.SetReadDeadline(time.Now().Add(readTimeout))
	req, err := s.request(conn)
	switch {
	case err != nil:
		s.answer(conn, Response{Error: asError(err)})
	case req.Op == Watch:
		s.watch(ctx, conn)
	default:
		s.answer(conn, s.serve(ctx, req))
	}
}

func (s *Server) request(conn net.Conn) (Request, error) {
	if err := checkPeer(conn); err != nil {
		return Request{}, &Error{CodeDenied, err.Error()}
	}
	return readRequest(conn)
}

func (s *Server) answer(conn net.Conn, resp Response) {
	resp.Version = Version
	_ = conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err := writeLine(conn, resp); err != nil && s.Log != nil {
		s.Log.Debug("answer not delivered", "err", err)
	}
}

func (s *Server) serve(ctx context.Context, req Request) Response {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	resp, err := s.do(ctx, req)
	if err != nil {
		resp.Error = asError(err)
	}
	return resp
}

// watch writes a line for each event until the asker hangs up or the context
// ends.
func (s *Server) watch(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	_ = conn.SetReadDeadline(time.Time{})
	go func() {
		defer cancel()
		_, _ = conn.Read(make([]byte, 1)) // there is nothing more to ask
	}()
	s.answer(conn, Response{Daemon: &s.Daemon})
	err := s.Engine.Watch(ctx, func(ev report.Event) error {
		_ = conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		return writeLine(conn, Response{Version: Version, Event: &ev})
	})
	if err != nil && ctx.Err() == nil {
		s.answer(conn, Response{Error: asError(err)})
	}
}

// do carries out one request.
func (s *Server) do(ctx context.Context, req Request) (resp Response, err error) {
	switch req.Op {
	case Ping:
		resp.Daemon = &s.Daemon
	case Open:
		resp.Daemon = &s.Daemon
		resp.Session, err = pointer(s.Engine.Open(ctx, *req.Session))
	case Close:
		resp.Session, err = pointer(s.Engine.Close(ctx, req.Tunnel))
	case Policy:
		resp.Pinholes = s.Engine.Pinholes()
		resp.Policy, err = s.Engine.Sessions(ctx)
	case Status:
		resp.Daemon = &s.Daemon
		resp.Status, err = pointer(s.Engine.Status(ctx))
	case Leaks:
		var state report.Witness
		resp.Leaks, state, err = s.Engine.Leaks(ctx)
		resp.Witness = &state
	case Release:
		resp.Released, err = pointer(s.Engine.Release(ctx))
	}
	return resp, err
}

// pointer returns where v is, or nil when there is an error and v says nothing.
func pointer[T any](v T, err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return &v, nil
}
