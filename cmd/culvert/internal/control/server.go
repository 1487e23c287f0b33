package control

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
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

	// acceptFor bounds a wait for a connection: then it is time to look whether
	// the socket can still be found.
	acceptFor = 2 * time.Second

	maxConns   = 256 // more wait to be accepted
	maxReading = 64  // requests being read, and answers being written
	maxWorking = 16  // requests being carried out
)

// Engine is what a daemon does for the command line: the enforcer, joined with
// the witness.
type Engine interface {
	Open(ctx context.Context, s enforce.Session) (enforce.SessionStatus, error)
	Close(ctx context.Context, tunnel string) (enforce.SessionStatus, error)
	Leave(ctx context.Context, tunnel string) (enforce.SessionStatus, error)
	Reload(ctx context.Context) (enforce.Reloaded, error)
	Preview(ctx context.Context, sessions []enforce.Session) (enforce.Preview, error)
	Status(ctx context.Context) (report.Status, error)
	Sessions(ctx context.Context) ([]enforce.Session, error)
	Gateways() []netip.Prefix
	Leaks(ctx context.Context) (*report.Leaks, report.Witness, error)
	Watch(ctx context.Context, f func(report.Event) error) error
	Release(ctx context.Context) (report.Released, error)
}

// Server answers requests with an Engine. Log may be nil.
type Server struct {
	Engine Engine
	Daemon Daemon
	Log    *slog.Logger

	reading, writing crowd
	working          chan struct{}
	large            chan struct{}
	lost             bool // the socket's path is taken; said once
}

// Serve answers connections, a bounded number at once, until the context ends;
// then it waits for those being answered and returns nil. It closes l. Those who
// say nothing, or read nothing, are in nobody's way: where there are many of
// them, the oldest is hung up on.
func (s *Server) Serve(ctx context.Context, l *Listener) error {
	defer l.Close() //nolint:errcheck // it is closed by now, or the context's end is just closing it
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	slots := make(chan struct{}, maxConns)
	s.reading.most, s.writing.most = maxReading, maxReading
	s.working = make(chan struct{}, maxWorking)
	s.large = make(chan struct{}, maxLarge)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := s.accept(ctx, l)
		if conn == nil {
			return err
		}
		conns.Go(func() {
			defer func() { <-slots }()
			s.handle(ctx, conn)
		})
	}
}

// accept waits for a connection; there is none when serving is over. Meanwhile it
// looks after the socket.
func (s *Server) accept(ctx context.Context, l *Listener) (net.Conn, error) {
	for looked := time.Now(); ; {
		conn, err := l.accept()
		switch {
		case ctx.Err() != nil:
			return nil, nil
		case err == nil:
			return conn, nil
		case errors.Is(err, net.ErrClosed):
			return nil, err
		case !errors.Is(err, os.ErrDeadlineExceeded): // out of descriptors, most likely: let some be given back
			time.Sleep(50 * time.Millisecond)
		}
		if time.Since(looked) >= acceptFor {
			s.renew(l)
			looked = time.Now()
		}
	}
}

// renew sees to it that the socket can be found, and tells when it cannot.
func (s *Server) renew(l *Listener) {
	renewed, err := l.renew()
	switch {
	case s.Log == nil:
	case err != nil && !s.lost:
		s.Log.Error("control socket was taken away and cannot be made again: no command can speak to the daemon", "err", err)
	case renewed:
		s.Log.Warn("control socket was taken away: made again")
	}
	s.lost = err != nil
}

// handle carries one connection from its request to its end.
func (s *Server) handle(ctx context.Context, conn net.Conn) {
	defer conn.Close() //nolint:errcheck // nothing is left to lose
	s.reading.enter(conn)
	_ = conn.SetReadDeadline(time.Now().Add(readTimeout))
	req, err := s.request(conn)
	s.reading.leave(conn)
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
	r := &metered{r: conn, large: s.large}
	defer r.done()
	return readRequest(r)
}

func (s *Server) answer(conn net.Conn, resp Response) {
	resp.Version = Version
	s.writing.enter(conn)
	defer s.writing.leave(conn)
	_ = conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err := writeLine(conn, resp); err != nil && s.Log != nil {
		s.Log.Debug("answer not delivered", "err", err)
	}
}

func (s *Server) serve(ctx context.Context, req Request) Response {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	select {
	case s.working <- struct{}{}:
		defer func() { <-s.working }()
	case <-ctx.Done():
		return Response{Error: asError(ctx.Err())}
	}
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
		resp.Session, err = withoutHeld(s.Engine.Open(ctx, *req.Session))
	case Close:
		resp.Session, err = withoutHeld(s.Engine.Close(ctx, req.Tunnel))
	case Leave:
		resp.Session, err = withoutHeld(s.Engine.Leave(ctx, req.Tunnel))
	case Plan:
		resp.Preview, err = pointer(s.Engine.Preview(ctx, req.Sessions))
	case Reload:
		resp.Reloaded, err = pointer(s.Engine.Reload(ctx))
	case Policy:
		resp.Gateways = s.Engine.Gateways()
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

// withoutHeld leaves out the held routes: they can be hundreds of thousands, and who
// opens or closes a session does not wait to be told each.
func withoutHeld(st enforce.SessionStatus, err error) (*enforce.SessionStatus, error) {
	if st.Held != nil {
		st.Held = []enforce.HeldRoute{}
	}
	return pointer(st, err)
}

// pointer returns where v is, or nil when there is an error and v says nothing.
func pointer[T any](v T, err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return &v, nil
}
