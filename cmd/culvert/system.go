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
	src    netip.Addr // zero: the system chooses
	tos    uint8
	mark   uint32
	uid    uint32
	device string // the socket is bound to it, or ""
	proto  uint8  // 0: not given
	port   uint16
}

// answer is what becomes of it.
type answer struct {
	route   plan.Route
	table   string // by name where it has one
	rule    string // that decided, "" where the system has none
	unless  []string
	onLink  bool  // no route leads there, but the socket's interface is taken to
	refused error // what a sender is told when there is no way, or nil
}
