// Package enforce keeps a main routing table so that every packet for a VPN's
// prefixes enters the tunnel, and gives back what it took.
//
// An [Enforcer] has two paths and one decision (package plan):
//
//   - the edge: each route that the system announces is judged on arrival
//     against the policy alone and answered at once; the answer's cost does not
//     depend on the size of the table. Until the table has been read by a
//     new policy, it deletes only routes that conflicted with the old policy
//     too: the others may have stood before, and are written down first;
//   - the level: a dump of the table is judged whole, at start, at every policy
//     change, whenever something was or may have been missed, and on a slow
//     timer. Events are hints, the dump is the truth.
//
// The operating system is behind [System]; what must survive a crash is behind
// [Journal]. Packages rtnl, pfroute and winroute are Systems.
package enforce

import (
	"context"
	"iter"
	"net/netip"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

// System is the routing of an operating system. Its methods may be called from
// different goroutines at once.
type System interface {
	// Watch subscribes, calls ready once every change from then on will be
	// noticed, and serves edge and sink until the context ends, when it
	// returns nil. Anything lost or only hinted at becomes sink.Dirty; a
	// receive error is never silence.
	Watch(ctx context.Context, edge Edge, sink *Sink, ready func()) error

	// Table streams the main table, both families, in the kernel's order
	// within a slot. A route's Raw may be a view of a buffer that is used
	// again for the next route: whoever keeps one copies it. When the table
	// cannot be read it yields one error and ends; after ErrInterrupted the
	// caller starts over.
	Table(ctx context.Context) iter.Seq2[plan.Route, error]

	// Apply carries out Put, Remove, Lift, Restore and Withdraw in order, passes
	// over Forget, and returns one error per action. Adding what is there and
	// deleting what is gone are ErrAlready, which is a success. A Remove, Lift
	// or Withdraw deletes the very route that it names or nothing.
	Apply(ctx context.Context, actions []plan.Action) []error

	// Facts returns what else the decision needs.
	Facts(ctx context.Context) (Facts, error)
}

// RouteCheck returns what the System can say of a route that came from a file,
// or nil where it can say nothing: whether its Raw is a route of the System's,
// and the one that the other fields describe.
func RouteCheck(sys System) func(*plan.Route) error {
	if c, ok := sys.(interface{ CheckRoute(r *plan.Route) error }); ok {
		return c.CheckRoute
	}
	return nil
}

// Facts is what a System knows besides routes.
type Facts struct {
	Links    []plan.Link
	Bypasses []string           // what else keeps packets from asking main, in words
	Rules    []Rule             // in the order that they are asked; nil where there are none
	Tables   map[string]Content // of the tables that rules ask before main
	Local    []plan.Route       // of table local, those that follow from no address of this host
	Uptime   time.Duration      // since boot, by the clock that routes' lifetimes go by
}

// Content is what a table holds.
type Content struct {
	Routes []plan.Route
	Cut    bool // there are more
}

// Edge judges one announced route. It must not wait, allocate or log. The
// route is the caller's scratch: it has no Raw and is valid during the call.
type Edge func(change Change, r *plan.Route) Answer

// Change says what happened to an announced route.
type Change uint8

// The changes. A replacement is announced as Added: the victim is not named.
const (
	Added Change = iota
	Deleted
)

// Answer is what to do about an announced route, in this order.
type Answer struct {
	Put     *plan.Route // add this first, when not nil
	Delete  bool        // delete the announced route
	Tell    bool        // pass it on to the Enforcer
	Verdict plan.Verdict

	tally *tally // of the session that it is given for
	stood bool   // the route may have stood before what it conflicts with was protected
}

// Event is an announced route that concerned the policy, and what was done.
type Event struct {
	Change  Change
	Route   plan.Route // with Raw
	Answer  Answer
	Idle    bool      // the answer found that there was nothing to do
	Removed bool      // the Delete deleted the route
	Readded bool      // the Put added a route
	Err     error     // of the Put or the Delete
	Seen    time.Time // when the announcement was read
	Done    time.Time // when the answer had been carried out
	Port    uint32    // netlink port or process id of who asked for the change; 0 is the kernel or unknown
	Process string    // its name, where it could still be known

	counted bool
}

// Session is one VPN connection to enforce.
type Session struct {
	Tunnel            string         `json:"tunnel"` // interface name
	Protect           []netip.Prefix `json:"protect"`
	Derived           []netip.Prefix `json:"derived,omitempty"` // of Protect: the tunnel's own networks, which nobody asked for; one that another session names too is protected by that one alone
	Exclude           []netip.Prefix `json:"exclude,omitempty"`
	Servers           []Server       `json:"servers,omitempty"`
	ExcludeInterfaces []string       `json:"exclude_interfaces,omitempty"` // names or patterns (path.Match); their routes are reported, not removed
	OtherTable        []netip.Prefix `json:"other_table,omitempty"`        // of Protect: routed by the VPN in a table of its own
	OtherFamily       OtherFamily    `json:"other_family,omitempty"`       // of a full tunnel: what is done with the family that it leaves out
	ServerFrom        []string       `json:"server_from,omitempty"`        // who may send to Servers, each as [ParseSender] takes it; empty: what the tunnel's kind makes certain
	ServersFound      bool           `json:"servers_found,omitempty"`      // nobody named Servers: they are what the tunnel's own settings said last
	Rearm             bool           `json:"rearm,omitempty"`              // wait for the tunnel, and again when it vanished
	Hook              bool           `json:"hook,omitempty"`               // facts of a connection, told by the VPN: see Join
}

// Server is where the tunnel's own transport goes.
type Server struct {
	Addr  netip.AddrPort `json:"addr"`  // port 0 where the transport has none
	Proto string         `json:"proto"` // one of TransportNames
}

// String is how the server is written on a command line: ADDR:PORT/PROTO, or ADDR/PROTO where the transport has no ports.
func (s Server) String() string {
	if _, ports, ok := Transport(s.Proto); ok && !ports {
		return s.Addr.Addr().String() + "/" + s.Proto
	}
	return s.Addr.String() + "/" + s.Proto
}

// State is where a session is: connecting → enforcing → (reconnecting) → restored.
type State string

// The states. A session that is failed is still enforced as far as it goes.
const (
	Connecting   State = "connecting"   // the tunnel interface is not there yet
	Enforcing    State = "enforcing"    // the table was read and is right
	Reconnecting State = "reconnecting" // the interface is there but cannot carry its routes
	Auditing     State = "auditing"     // judged and reported, nothing changed
	Failed       State = "failed"       // something that must be done could not be; see Error
	Restored     State = "restored"     // ended; what it had removed is back
	Restoring    State = "restoring"    // ended; some of that cannot come back yet: see Error, and Status.Waiting
)

// Loss says what happens when a tunnel vanishes without notice.
type Loss string

// The ways to lose a tunnel.
const (
	LossRestore Loss = "restore" // the session ends and the routes come back
	LossGuard   Loss = "guard"   // conflicts stay out and protected traffic is dropped
)

// Status is a moment's view of the Enforcer. Its JSON form is stable.
type Status struct {
	Sessions  []SessionStatus `json:"sessions"`
	Totals    Totals          `json:"totals"`    // since the start, for all sessions, ended ones included
	Incidents []Incident      `json:"incidents"` // the last ones, oldest first
	// Waiting are the held routes that no session keeps out: they come back once what
	// they need is there.
	Waiting []HeldRoute `json:"waiting,omitempty"`
}

// SessionStatus tells of one session.
type SessionStatus struct {
	Tunnel        string         `json:"tunnel"`
	Interface     string         `json:"interface,omitempty"` // its name now, when it was renamed since it was opened
	State         State          `json:"state"`
	Error         string         `json:"error,omitempty"`
	Protected     []netip.Prefix `json:"protected"`
	Excluded      []netip.Prefix `json:"excluded"`
	Removed       uint64         `json:"removed"` // of Totals, for this session
	Readded       uint64         `json:"readded"`
	Restored      uint64         `json:"restored"`
	Withdrawn     uint64         `json:"withdrawn"`
	Held          []HeldRoute    `json:"held"`
	Contested     []Contest      `json:"contested"`
	OneFamily     string         `json:"one_family,omitempty"` // all of one family is protected and the other leaves outside: by what, and the remedy
	Rejected      []netip.Prefix `json:"rejected,omitempty"`   // of the other family, as OtherFamily asks
	Unenforceable []string       `json:"unenforceable"`        // what routing cannot protect
	Notes         []string       `json:"notes"`                // what is as it should be, and good to know
}

// Totals are changes of the table, each counted once, where it is made.
type Totals struct {
	Removed   uint64 `json:"removed"`   // conflicting routes deleted, repeats included
	Readded   uint64 `json:"readded"`   // VPN routes and pinholes put (back)
	Restored  uint64 `json:"restored"`  // held routes given back
	Withdrawn uint64 `json:"withdrawn"` // culvert's own routes taken away, and others' taken out for a moment so that routes come back in order
}

// Totals returns the session's share.
func (s *SessionStatus) Totals() Totals {
	return Totals{Removed: s.Removed, Readded: s.Readded, Restored: s.Restored, Withdrawn: s.Withdrawn}
}

// HeldRoute is a removed route that will come back.
type HeldRoute struct {
	Route string    `json:"route"`
	Since time.Time `json:"since"`
	Why   string    `json:"why,omitempty"` // why it is not back, where no session keeps it out
}

// Contest is a route that somebody adds again and again.
type Contest struct {
	Route string `json:"route"`
	Times uint64 `json:"times"`
	By    Adder  `json:"by"`
}

// Adder is who asked for a change, as far as it can be known.
type Adder struct {
	Protocol string `json:"protocol"`          // route protocol, for example "dhcp"
	Port     uint32 `json:"port,omitempty"`    // netlink port id: usually the process id, forgeable
	Process  string `json:"process,omitempty"` // name of that process while it lived
}

// Incident is one thing that was wrong and what became of it.
type Incident struct {
	ID      uint64    `json:"id"`
	Tunnel  string    `json:"tunnel"`
	What    string    `json:"what"` // "removed", "readded", "restored", "reported", "failed", "ended"
	Route   string    `json:"route"`
	Reason  string    `json:"reason"`
	By      Adder     `json:"by"`
	Seen    time.Time `json:"seen"`
	Gone    time.Time `json:"gone,omitzero"`
	Exposed int64     `json:"exposed_us"`      // microseconds from Seen to Gone; of several the longest
	Count   uint64    `json:"count,omitempty"` // of several told as one, Seen the first and Gone the last; 0 is one
	Path    string    `json:"path"`            // "edge" or "level"
	Error   string    `json:"error,omitempty"`
}
