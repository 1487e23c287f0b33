package main

import (
	"context"
	"io"
	"net/netip"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// system is an operating system's routing, as the commands need it.
type system interface {
	enforce.System
	io.Closer
	// lookup asks the system which route a packet would take.
	lookup(ctx context.Context, q query) (answer, error)
}

// query is a packet to ask about.
type query struct {
	dst    netip.Addr
	tos    uint8
	mark   uint32
	uid    uint32
	device string // the socket is bound to it, or ""
}

// answer is what becomes of it.
type answer struct {
	route   plan.Route
	table   string // by name where it has one
	rules   []string
	refused error // what a sender is told when there is no way, or nil
}
