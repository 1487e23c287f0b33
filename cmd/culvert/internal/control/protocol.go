// Package control is the conversation between the command line and a running
// daemon: one request and one answer per connection, each a line of JSON, over
// a socket that only root may use.
//
//	→ {"version":1,"op":"open","session":{"tunnel":"tun0","protect":["10.0.0.0/8"]}}
//	← {"version":1,"session":{"tunnel":"tun0","state":"enforcing",…}}
//	→ {"version":1,"op":"close","tunnel":"tun9"}
//	← {"version":1,"error":{"code":"no_session","message":"tun9: no session"}}
//
// One operation has many answers: watch, whose first line says who answers, and
// each further one what has happened.
package control

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
)

// Version is the protocol's. It changes when an old reader would misunderstand.
const Version = 1

// The bounds of one line.
const (
	maxRequest  = 4 << 20
	maxResponse = 64 << 20
)

// Op is what a request asks for.
type Op string

// The operations.
const (
	Ping   Op = "ping"   // who answers
	Open   Op = "open"   // open or change Session
	Close  Op = "close"  // end the session on Tunnel
	Leave  Op = "leave"  // the VPN's connection on Tunnel has ended, as its hook says
	Status Op = "status" // everything there is to tell
	Policy Op = "policy" // the open sessions as they were asked for

	Plan    Op = "plan"    // what opening Sessions would do
	Leaks   Op = "leaks"   // what leaked, all of it
	Watch   Op = "watch"   // what happens, as it happens
	Release Op = "release" // end the guards of tunnels that are away
	Reload  Op = "reload"  // read the configuration file again
)

// Request is one question.
type Request struct {
	Version int              `json:"version"`
	Op      Op               `json:"op"`
	Session *enforce.Session `json:"session,omitempty"`
	Tunnel  string           `json:"tunnel,omitempty"`

	Sessions []enforce.Session `json:"sessions,omitempty"`
}

// Response is the answer to it: Error, or what the operation returns.
type Response struct {
	Version int                    `json:"version"`
	Error   *Error                 `json:"error,omitempty"`
	Daemon  *Daemon                `json:"daemon,omitempty"`  // of ping, open, status and watch
	Session *enforce.SessionStatus `json:"session,omitempty"` // without Held, which Status has
	Status  *report.Status         `json:"status,omitempty"`
	Policy  []enforce.Session      `json:"policy,omitempty"`

	Gateways []netip.Prefix `json:"gateways,omitempty"` // of policy: next hops to the servers

	Leaks    *report.Leaks    `json:"leaks,omitempty"`   // of leaks; nil when nothing is measured
	Witness  *report.Witness  `json:"witness,omitempty"` // of leaks
	Event    *report.Event    `json:"event,omitempty"`   // of watch
	Released *report.Released `json:"released,omitempty"`

	Reloaded *enforce.Reloaded `json:"reloaded,omitempty"`
	Preview  *enforce.Preview  `json:"preview,omitempty"` // of plan
}

// Daemon says who answers.
type Daemon struct {
	PID     int    `json:"pid"`
	Program string `json:"program"` // its version
	Audit   bool   `json:"audit,omitempty"`

	Notes []string `json:"notes,omitempty"` // what to know of its settings when a session is opened

	Namespace string `json:"namespace,omitempty"` // whose routing it is, where a machine has several
}

// Code says what kind of error a response carries.
type Code string

// The codes.
const (
	CodeInput     Code = "input"      // the request asks for what cannot be; nothing was changed
	CodeNoSession Code = "no_session" // no session is open on that tunnel
	CodeFailed    Code = "failed"     // it could not be done
	CodeDenied    Code = "denied"     // the caller may not ask
	CodeProtocol  Code = "protocol"   // the request could not be read
)

// Error is what a daemon answers instead of a result.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Is makes a code match what it stands for.
func (e *Error) Is(target error) bool {
	switch target {
	case enforce.ErrNoSession:
		return e.Code == CodeNoSession
	case ErrDenied:
		return e.Code == CodeDenied
	}
	return false
}

// asError is the wire's word for an error of the engine.
func asError(err error) *Error {
	var input *enforce.InputError
	var own *Error
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &input):
		return &Error{CodeInput, err.Error()}
	case errors.Is(err, enforce.ErrNoSession):
		return &Error{CodeNoSession, err.Error()}
	}
	return &Error{CodeFailed, err.Error()}
}

// readRequest reads one request and refuses whatever it does not understand.
func readRequest(r io.Reader) (Request, error) {
	var req Request
	if err := readLine(r, maxRequest, true, &req); err != nil {
		return req, &Error{CodeProtocol, "request: " + err.Error()}
	}
	if req.Version != Version {
		return req, &Error{CodeProtocol, fmt.Sprintf("request: version %d is not spoken here, only %d; use one version of culvert for daemon and command", req.Version, Version)}
	}
	return req, req.check()
}

// check says whether an operation has what it needs, and nothing else.
func (req Request) check() error {
	var session, tunnel, sessions bool
	switch req.Op {
	case Ping, Status, Policy, Leaks, Watch, Release, Reload:
	case Open:
		session = true
	case Plan:
		sessions = true
	case Close, Leave:
		tunnel = true
	default:
		return &Error{CodeProtocol, fmt.Sprintf("request: operation %.40q is unknown", string(req.Op))}
	}
	if session != (req.Session != nil) || tunnel != (req.Tunnel != "") || sessions != (len(req.Sessions) > 0) {
		return &Error{CodeProtocol, fmt.Sprintf("request: %s has too much or too little beside it", req.Op)}
	}
	return nil
}

// readResponse reads one answer. Fields that a newer daemon may add are passed
// over.
func readResponse(r io.Reader) (Response, error) {
	var resp Response
	err := readLine(r, maxResponse, false, &resp)
	return resp, err
}

// readLine reads a line of JSON, no longer than limit, into v.
func readLine(r io.Reader, limit int64, strict bool, v any) error {
	lr := &io.LimitedReader{R: r, N: limit}
	line, err := bufio.NewReader(lr).ReadBytes('\n')
	switch {
	case errors.Is(err, io.EOF) && lr.N == 0:
		return fmt.Errorf("longer than %d bytes", limit)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("ends early: %w", io.ErrUnexpectedEOF)
	case err != nil:
		return err
	}
	d := json.NewDecoder(bytes.NewReader(line))
	if strict {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("more than one value on the line")
	}
	return nil
}

// writeLine writes v as a line of JSON.
func writeLine(w io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}
