package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
	"github.com/culvert-project/culvert/cmd/culvert/internal/plain"
	"github.com/culvert-project/culvert/cmd/culvert/internal/session"
	"github.com/culvert-project/culvert/enforce"
)

// The exit codes. They are part of the command's interface. None of them is 2: a
// Go program that crashes exits with that, and the systemd unit does not start
// the daemon again after exitUsage and exitDenied.
const (
	exitOK     = 0
	exitWrong  = 1  // not enforcing, failed, or not as it should be
	exitAway   = 3  // no daemon answers
	exitDenied = 4  // not permitted
	exitUsage  = 64 // bad usage or input; nothing was changed (EX_USAGE of sysexits.h)
)

const exitHelp = `Exit codes:
  0  done, and as it should be
  1  not enforcing, failed, or not as it should be
  3  no daemon answers
  4  not permitted
  64 bad usage or input; nothing was changed`

// codedError is an error with an exit code of its own.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// withCode gives an error an exit code; nil stays nil.
func withCode(code int, err error) error {
	if err == nil {
		return nil
	}
	return &codedError{code, err}
}

func usagef(format string, args ...any) error {
	return withCode(exitUsage, fmt.Errorf(format, args...))
}

// errQuiet ends a command with exit code 1 when its output said why.
var errQuiet = errors.New("not as it should be")

// exitCode says what the program ends with.
func exitCode(err error) int {
	var coded *codedError
	var bad *session.Error
	var input *enforce.InputError
	var remote *control.Error
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &coded):
		return coded.code
	case errors.As(err, &bad), errors.As(err, &input):
		return exitUsage
	case errors.As(err, &remote) && (remote.Code == control.CodeInput || remote.Code == control.CodeProtocol):
		return exitUsage
	case errors.Is(err, control.ErrDenied), errors.Is(err, fs.ErrPermission):
		return exitDenied
	case errors.Is(err, control.ErrAway):
		return exitAway
	}
	return exitWrong
}

// complain says an error to a person, unless the command has said it already.
func complain(w io.Writer, err error) {
	if err != nil && !errors.Is(err, errQuiet) {
		for i, line := range strings.Split(err.Error(), "\n") {
			begin := "culvert: "
			if i > 0 {
				begin = "  " // whoever put an end of a line into a name begins no message with it
			}
			plain.Fprintf(w, "%s%s\n", begin, line) //nolint:errcheck // there is nowhere else to say it
		}
	}
}
