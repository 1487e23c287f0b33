// Package report is what the daemon tells of itself: the enforcer's view joined
// with the witness's counts. Its JSON form is stable; fields may be added.
package report

import (
	"net/netip"
	"time"

	"github.com/culvert-project/culvert/enforce"
)

// Status is a moment's view of routes and packets.
type Status struct {
	Sessions  []Session      `json:"sessions"`
	Routes    enforce.Totals `json:"totals"` // since the start, for all sessions, ended ones included
	Incidents []Incident     `json:"incidents"`
	// Waiting are the held routes that no session keeps out, but that cannot come back yet.
	Waiting []enforce.HeldRoute `json:"waiting,omitempty"`
	Leaks   *Leaks              `json:"leaks,omitempty"` // nil when nothing was measured
	Witness Witness             `json:"witness"`
}

// Session is a session and what leaked of it.
type Session struct {
	enforce.SessionStatus
	Leaks  *Leaks `json:"leaks,omitempty"`   // by its prefixes, since the start; nil when nothing was measured
	OnLeak Mode   `json:"on_leak,omitempty"` // what the policy in force does with them; off: they are not even counted
}

// Incident is an incident and what left outside the tunnel because of it.
type Incident struct {
	enforce.Incident
	*Exposure // nil when nothing was measured
}

// Exposure is what an incident let out. Zero is a measured zero.
type Exposure struct {
	Totals
	Shared  bool     `json:"shared,omitempty"` // divided among incidents of the same moment by what was sampled
	Senders []Sender `json:"senders"`
}

// Totals are exact sums.
type Totals struct {
	Packets uint64 `json:"packets"` // on the wire, dropped ones too
	Bytes   uint64 `json:"bytes"`
	Dropped uint64 `json:"dropped"` // packets that were stopped
}

// Add adds another sum.
func (t *Totals) Add(o Totals) {
	t.Packets += o.Packets
	t.Bytes += o.Bytes
	t.Dropped += o.Dropped
}

// Leaks are sums of leaks and what they are made of.
type Leaks struct {
	Totals
	By         []Finding   `json:"by"`
	Interfaces []Interface `json:"interfaces,omitempty"` // of all sessions together
	DNS        []Resolver  `json:"dns,omitempty"`        // name servers that were asked outside the tunnel lately
	Exempt     []Exempt    `json:"exempt,omitempty"`     // what a rule let pass, so that it is no leak
}

// Resolver is a name server that was asked outside the tunnel.
type Resolver struct {
	Address netip.Addr `json:"address"`
	Tunnel  string     `json:"tunnel"`            // that should have carried it
	Gateway bool       `json:"gateway,omitempty"` // it is the next hop to the VPN server
	Dropped bool       `json:"dropped,omitempty"` // the latest question was stopped
	Last    time.Time  `json:"last"`
}

// Exempt is what a rule let pass by one interface.
type Exempt struct {
	Interface string `json:"interface"`
	Reason    string `json:"reason"` // exempt-nd, exempt-dhcp, exempt-broadcast, exempt-interface, exempt-fragment
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"`
}

// Interface is what leaked by one interface.
type Interface struct {
	Interface string `json:"interface"`
	Totals
	By []Finding `json:"by"`
}

// Finding says who leaked, to where, by which interface, why, and how much.
type Finding struct {
	Sender
	Tunnel    string    `json:"tunnel"`
	Prefix    string    `json:"prefix"`             // protected prefix, or the server's address
	To        string    `json:"to"`                 // the latest destination
	Interface string    `json:"interface"`          // by which it left
	Mechanism Mechanism `json:"mechanism"`          // what led past the tunnel
	Why       string    `json:"why"`                // the same in words
	Incident  uint64    `json:"incident,omitempty"` // the incident that it belongs to
	First     time.Time `json:"first"`
	Last      time.Time `json:"last"`
}

// Mechanism is what led a packet past the tunnel.
type Mechanism string

// The mechanisms.
const (
	Bound        Mechanism = "bound"     // SO_BINDTODEVICE
	PacketSocket Mechanism = "packet"    // a packet socket
	Forwarded    Mechanism = "forwarded" // from another host or namespace
	Rule         Mechanism = "rule"      // a policy rule that is asked before main
	VRF          Mechanism = "vrf"       // a VRF's own table
	Route        Mechanism = "route"     // a route of table main
	InFlight     Mechanism = "in-flight" // no route leads there any more
	NoTunnel     Mechanism = "no-tunnel" // the tunnel is away
	Server       Mechanism = "server"    // the VPN server's address, not its transport
	Gateway      Mechanism = "gateway"   // the address of the next hop to the server
	Early        Mechanism = "early"     // an interface too new to be watched
	Unknown      Mechanism = "unknown"
)

// Sender is who sent some packets, as far as it can be known.
type Sender struct {
	Process string `json:"process,omitempty"`
	PID     int    `json:"pid,omitempty"`
	UID     int    `json:"uid"` // -1 when no process is known
	Cgroup  string `json:"cgroup,omitempty"`
	Origin  string `json:"origin"`            // how the sender is known
	Ingress string `json:"ingress,omitempty"` // forwarded: interface that it came in by
	Source  string `json:"source,omitempty"`  // forwarded: address that it came from
	Totals
}

// Mode is what the witness does about leaks.
type Mode string

// The modes.
const (
	Off   Mode = "off"   // nothing is seen; see Reason
	Count Mode = "count" // leaks are counted and let go
	Drop  Mode = "drop"  // leaks are counted and stopped
)

// Witness is the state of the witness of packets.
type Witness struct {
	Mode       Mode      `json:"mode"`                // what the policy in force does
	Asked      Mode      `json:"asked,omitempty"`     // what was asked for, where that is another
	Reason     string    `json:"reason,omitempty"`    // why it is off
	Error      string    `json:"error,omitempty"`     // why what is in force is not what should be
	Guard      string    `json:"guard,omitempty"`     // folder of what outlives the daemon
	Until      time.Time `json:"until,omitzero"`      // when drops end if nothing renews them, and the machine does not sleep
	Adopted    bool      `json:"adopted,omitempty"`   // an earlier daemon's guard was taken over, with its counts
	Holding    []string  `json:"holding,omitempty"`   // tunnels that are away while a guard holds
	Senders    string    `json:"senders,omitempty"`   // what the naming of senders lacks
	Gap        string    `json:"gap,omitempty"`       // why new interfaces are not watched from their first packet
	Unseen     []string  `json:"unseen,omitempty"`    // what on this host may send or change packets unseen
	Suppressed uint64    `json:"suppressed"`          // samples held back; counts are exact all the same
	Lost       uint64    `json:"lost"`                // samples that found no room
	Interfaces []Watched `json:"interfaces"`          // how each is watched
	Unwatched  int       `json:"unwatched,omitempty"` // interfaces that should be watched and are not
}

// Watched is how one interface is watched.
type Watched struct {
	Interface string `json:"interface"`
	Mode      string `json:"mode"`                // tcx, clsact, tunnel, loopback, none
	Error     string `json:"error,omitempty"`     // why it is none, or why packets may pass unseen
	Gap       int64  `json:"gap_us,omitempty"`    // microseconds from when it was heard of to when it was watched
	Displaced uint64 `json:"displaced,omitempty"` // how often another TCX program stood before culvert's, which is first again
	By        string `json:"by,omitempty"`        // which one, the last time
}

// Event is one line of what happens.
type Event struct {
	Time     time.Time `json:"time"`
	Kind     string    `json:"kind"` // "incident", "leak" or "lost"
	Incident *Incident `json:"incident,omitempty"`
	Leak     *Finding  `json:"leak,omitempty"` // with what came since the last such line
	Lost     int       `json:"lost,omitempty"` // lines that the reader was too slow for
}

// Released is what ending a guard by hand did.
type Released struct {
	Tunnels []string `json:"tunnels"` // whose guard has ended
	Routes  int      `json:"routes"`  // given back
}
