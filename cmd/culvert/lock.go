package main

import "fmt"

// holder says who has the place of the one daemon: that of a network namespace
// on Linux, of the machine elsewhere.
type holder struct {
	PID    int    `json:"pid"`
	What   string `json:"what"` // the command: run or recover
	Socket string `json:"socket,omitempty"`
	uid    uint32
}

// String names the holder for a person.
func (h holder) String() string {
	switch {
	case h.uid != 0:
		return fmt.Sprintf("process %d of user %d, which is not root: find out why it holds the socket %s", h.PID, h.uid, lockName)
	case h.Socket != "":
		return fmt.Sprintf("\"culvert %s\", process %d, control socket %s", h.What, h.PID, h.Socket)
	case h.What != "":
		return fmt.Sprintf("\"culvert %s\", process %d", h.What, h.PID)
	}
	if h.PID == 0 {
		return "by a process that did not say which it is"
	}
	return fmt.Sprintf("process %d", h.PID)
}

// lockName is the abstract socket that a daemon is bound to. Such names belong
// to a network namespace and vanish with their process.
const lockName = "@culvert-daemon"

// heldError: another process serves what this one would.
type heldError struct{ by holder }

func (e *heldError) Error() string {
	return "this " + here.Place + " is served already: " + e.by.String()
}
