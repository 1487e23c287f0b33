package enforce

import (
	"errors"
	"fmt"

	"github.com/culvert-project/culvert/enforce/plan"
)

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

// DisplacedError says that a delete also took other routes, which could not be put
// back. They must be held until they can. It stands for Result otherwise.
type DisplacedError struct {
	Routes []plan.Route
	Why    error // why they could not be put back
	Result error // what became of the delete itself: nil is success
}

// Error says how many routes are out, and why.
func (e *DisplacedError) Error() string {
	return fmt.Sprintf("%d other routes were deleted with it and cannot stand now: %v", len(e.Routes), e.Why)
}

// Unwrap returns what became of the delete.
func (e *DisplacedError) Unwrap() error { return e.Result }

// Changed reports whether an action that ended with the error did to the table what
// it was told to, whatever else it did. ErrAlready changed nothing.
func Changed(err error) bool {
	var d *DisplacedError
	return err == nil || errors.As(err, &d) && d.Result == nil
}

// InputError says what is wrong with what the caller asked for, naming the
// input and the remedy. Nothing was changed.
type InputError struct {
	Input string
	Text  string
}

// Error returns the input and the sentence about it.
func (e *InputError) Error() string { return e.Input + ": " + e.Text }
