package main

import "fmt"

// holder says who has the place of the one daemon: that of a network namespace
// on Linux, of the machine elsewhere.
type holder struct {
	PID    int    `json:"pid"`
	What   string `json:"what"` // the command: run or recover
	Socket string `json:"socket,omitempty"`
}

// String names the holder for a person.
func (h holder) String() string {
	switch {
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

// heldError: another process serves what this one would.
type heldError struct{ by holder }

func (e *heldError) Error() string {
	return "this " + here.Place + " is served already: " + e.by.String()
}
