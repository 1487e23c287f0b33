package enforce

import "errors"

// What a System's errors mean to the Enforcer; they are found with errors.Is.
var (
	// ErrInterrupted: the table changed while it was read. Read it again.
	ErrInterrupted = errors.New("the table changed while it was read")
	// ErrGone: what a route needs (its interface, its nexthop object) is no
	// more, so the kernel would have dropped the route too.
	ErrGone = errors.New("what the route depends on is gone")
	// ErrNotNow: the route cannot stand at present, its interface is down for
	// example; try again when something changed.
	ErrNotNow = errors.New("not possible at present")
	// ErrAlready: there was nothing to do, the route is there or gone already.
	// A success, told apart so that nothing is counted that was not done.
	ErrAlready = errors.New("nothing to do")
	// ErrNoSession: no session is open on that tunnel.
	ErrNoSession = errors.New("no session")
)

// InputError says what is wrong with what the caller asked for, naming the
// input and the remedy. Nothing was changed.
type InputError struct {
	Input string
	Text  string
}

// Error returns the input and the sentence about it.
func (e *InputError) Error() string { return e.Input + ": " + e.Text }
