package loader

import (
	"errors"
	"log/slog"
	"net/netip"
	"time"
)

// Errors to test for with errors.Is.
var (
	// ErrUnsupported says that this system has no witness.
	ErrUnsupported = errors.New("not supported on this system")
	// ErrPrivilege says that the process may not do what was asked; the message names what it lacks.
	ErrPrivilege = errors.New("missing privilege")
	// ErrNoGuard says that a folder holds no guard of another network namespace.
	ErrNoGuard = errors.New("no guard of another network namespace is pinned there")
	// ErrClosed says that the witness was closed.
	ErrClosed = errors.New("witness closed")
)

// Class is what a policy says of a prefix. The longest prefix that holds a destination decides.
type Class uint8

// The classes.
const (
	Protected = Class(leakClassCLASS_PROTECTED) // must leave by its tunnel
	Excluded  = Class(leakClassCLASS_EXCLUDED)  // may leave anywhere
	Ignored   = Class(leakClassCLASS_IGNORED)   // none of our business
	Server    = Class(leakClassCLASS_SERVER)    // excluded for the tunnel's own transport, protected from all else
	Gateway   = Class(leakClassCLASS_GATEWAY)   // the next hop to the server: neighbour discovery and DHCP may pass, nothing else
)

// Action is what is done with a leaking packet.
type Action uint8

// The actions.
const (
	Count = Action(leakActionACTION_COUNT) // let it go
	Drop  = Action(leakActionACTION_DROP)  // stop it
)

// Reason is why a packet was counted. Leak tells which reasons are leaks.
type Reason uint8

// The reasons.
const (
	LeakProtected   = Reason(leakReasonREASON_PROTECTED)        // a protected destination outside its tunnel
	LeakServer      = Reason(leakReasonREASON_SERVER)           // the server's address, not the tunnel's transport
	LeakEarly       = Reason(leakReasonREASON_EARLY)            // by an interface that has no program (yet)
	LeakOverflow    = Reason(leakReasonREASON_OVERFLOW)         // any leak, when the table of counters is full
	LeakGateway     = Reason(leakReasonREASON_GATEWAY)          // the gateway's address, not what the link itself needs
	LeakSender      = Reason(leakReasonREASON_SENDER)           // to where the tunnel's transport goes, but from another sender
	ExemptND        = Reason(leakReasonREASON_EXEMPT_ND)        // this host's neighbour discovery with one on the link
	ExemptDHCP      = Reason(leakReasonREASON_EXEMPT_DHCP)      // this host's DHCP or DHCPv6 with one on the link
	ExemptBroadcast = Reason(leakReasonREASON_EXEMPT_BROADCAST) // the broadcast address of a network on the link
	ExemptInterface = Reason(leakReasonREASON_EXEMPT_DEVICE)    // an interface in Prefix.Exempt
	ExemptFragment  = Reason(leakReasonREASON_EXEMPT_FRAGMENT)  // to the server, its first fragment lost; dropped as a leak
)

// Leak is false for what was counted only to show that a rule let it pass.
func (r Reason) Leak() bool { return r != 0 && r < Reason(leakReasonREASON_EXEMPT) }

// String returns a short name, as in reports.
func (r Reason) String() string { return name(reasonNames, r) }

var reasonNames = map[Reason]string{
	LeakProtected: "protected", LeakServer: "server", LeakEarly: "early", LeakOverflow: "overflow", LeakGateway: "gateway",
	LeakSender: "sender",
	ExemptND:   "exempt-nd", ExemptDHCP: "exempt-dhcp", ExemptBroadcast: "exempt-broadcast", ExemptInterface: "exempt-interface",
	ExemptFragment: "exempt-fragment",
}

// Origin is how the sender of a packet is known, and so how far to trust it.
type Origin uint8

// The origins.
const (
	Unowned   = Origin(leakOriginORIGIN_UNOWNED)   // the kernel's own, or its socket is gone
	Socket    = Origin(leakOriginORIGIN_SOCKET)    // noted on the socket when it was made, connected or sent by
	Seed      = Origin(leakOriginORIGIN_SEED)      // a holder of a socket that is older than the hooks
	Task      = Origin(leakOriginORIGIN_TASK)      // the running task, which has the socket's uid: likely
	Packet    = Origin(leakOriginORIGIN_PACKET)    // a packet socket's caller
	Forwarded = Origin(leakOriginORIGIN_FORWARDED) // not of this host: see Ingress and Source
)

// String returns a short name, as in reports.
func (o Origin) String() string { return name(originNames, o) }

var originNames = map[Origin]string{
	Unowned: "unowned", Socket: "socket", Seed: "seed", Task: "task", Packet: "packet", Forwarded: "forwarded",
}

// Mode is how an interface is watched.
type Mode uint8

// The modes.
const (
	ModeNone     Mode = iota // not at all: see Interface.Err
	ModeTCX                  // a TCX link
	ModeClsact               // a filter of a clsact qdisc
	ModeTunnel               // need not be: the only tunnel
	ModeLoopback             // need not be: nothing leaves the host by it
)

// String returns a short name, as in reports.
func (m Mode) String() string { return name(modeNames, m) }

var modeNames = map[Mode]string{
	ModeNone: "none", ModeTCX: "tcx", ModeClsact: "clsact", ModeTunnel: "tunnel", ModeLoopback: "loopback",
}

func name[K comparable](names map[K]string, k K) string {
	if s, ok := names[k]; ok {
		return s
	}
	return "none"
}

// From says who sends a tunnel's transport to its server; the same packets from others are leaks ([LeakSender]). Packets
// that this host only forwards pass with FromAny alone.
type From uint8

// The senders.
const (
	FromAny  = From(leakFromFROM_ANY)  // anybody
	FromHost = From(leakFromFROM_HOST) // this host
	// FromKernel is the kernel itself, as for a WireGuard interface: no process sent the packet by a socket of its own.
	FromKernel = From(leakFromFROM_KERNEL)
	FromUID    = From(leakFromFROM_UID)  // sockets of the user with the id Prefix.Who
	FromMark   = From(leakFromFROM_MARK) // packets with the firewall mark Prefix.Who
)

// AnyProto is the Proto of a server to which everything may go.
const AnyProto = 255

// MaxTransports is how many a server may have.
const MaxTransports = 8

// Prefix is one line of a policy. Lines of the same prefix add up: it may have four tunnels, a server eight transports.
// Their class and exempt interfaces must be the same. A policy may have 32 different sets of exempt interfaces.
type Prefix struct {
	Prefix netip.Prefix
	Class  Class
	ID     uint32 // the caller's, for counters, samples and senders
	Drop   bool   // drops here even where Config.Action counts
	Tunnel int    // interface index of the tunnel that owns it; 0 while there is none
	Proto  uint8  // Server: IP protocol of the tunnel's transport, or AnyProto
	Port   uint16 // Server: its destination port; 0 is any, or none
	From   From   // Server: who sends it
	Who    uint32 // Server: the user id of FromUID, or the mark of FromMark; else 0
	Exempt []int  // interface indexes by which its packets are counted as exempt, and never dropped
	// Name is the tunnel's: an interface that comes by this name owns the prefix too, from its first packet on, if its Kind
	// and Frames are the same. "" is none.
	Name   string
	Kind   string // the tunnel's kind, as rtnetlink says; "" with Frames 0: not known, and any kind will do
	Frames uint16 // the tunnel's hardware type (ARPHRD_*)
}

// Config is the whole policy. The zero value protects nothing.
type Config struct {
	Prefixes []Prefix
	Action   Action
	Tunnels  []int // interface indexes; a sole tunnel gets no program, of several each is watched for the others'
	Guard    bool  // pin everything, to outlive this process; Drop does so too
	// Drops end so long after Set, unless Set is called again: when the first of the two is over. 0 is no limit. The
	// programs judge by both, so they hold when this process is dead.
	Heartbeat time.Duration // does not count sleep: while the host sleeps nobody can call Set
	Remaining time.Duration // counts sleep
}

// Drops reports whether any line of the policy drops.
func (c *Config) Drops() bool {
	for _, p := range c.Prefixes {
		if p.Drop {
			return true
		}
	}
	return c.Action == Drop
}

// Options of a witness. The zero value is a good one.
type Options struct {
	Logger    *slog.Logger  // nil discards
	PinDir    string        // in a BPF file system, or a directory to mount one on; "" finds one
	NoSenders bool          // leave the machine's cgroup hooks alone: senders are guessed
	Burst     int           // samples per CPU in 100 ms, and as many again of senders that are new; 0 is 64
	Recheck   time.Duration // how often what is attached is compared with what should be; 0 is 5 s

	//lint:ignore U1000 read on Linux alone
	modes []Mode // tried in turn for each interface; nil is TCX, then clsact
	//lint:ignore U1000 read on Linux alone
	noEarly bool // leave out the netfilter hook
}

// Counter is one exact sum, kept since the witness (or the guard that it adopted) began.
type Counter struct {
	Interface int // index; 0 for LeakOverflow, and for all interfaces that are gone
	Prefix    uint32
	Reason    Reason
	Packets   uint64 // on the wire
	Bytes     uint64 // on the wire, from the link header on, without its trailer
	Dropped   uint64 // packets among Packets
	// Upper says that the interface sat on others that were watched as well (a bridge, a VLAN, a bond) when the packets
	// passed: what it did not drop they counted again. A total leaves out such packets. An interface that does so at one
	// time and not at another has a sum of each.
	Upper bool
}

// Sender sums what one sender leaked by one interface to one prefix. Rare senders give way to new ones when there are
// thousands: the counters are exact, this list is the top of them.
type Sender struct {
	Interface int
	Prefix    uint32
	Reason    Reason
	Origin    Origin
	PID       int
	UID       int
	Comm      string     // the process's latest name, which it can change at will
	Cgroup    uint64     // id: the inode number of its directory
	Bound     int        // interface index of SO_BINDTODEVICE
	Ingress   int        // Forwarded: interface index that it came in by
	Source    netip.Addr // Forwarded
	Upper     bool       // as in Counter
	Packets   uint64
	Bytes     uint64
	Dropped   uint64
	First     time.Time
	Last      time.Time
	To        netip.AddrPort // the latest destination, and how it was asked for
	Proto     uint8
	TOS       uint8
	Mark      uint32
}

// Sample is one leaking packet (or GSO buffer) in detail.
type Sample struct {
	Time        time.Time
	Interface   int
	Ingress     int // interface index, when forwarded
	Bound       int // interface index of SO_BINDTODEVICE
	Prefix      uint32
	Reason      Reason
	Origin      Origin
	Dropped     bool
	PID         int
	UID         int
	Comm        string
	Cgroup      uint64
	Cookie      uint64 // of the socket
	Source      netip.AddrPort
	Destination netip.AddrPort
	Proto       uint8
	TOS         uint8
	Mark        uint32
	Bytes       int
	Segments    int
}

// Interface is the state of one interface.
type Interface struct {
	Index int
	Name  string
	Mode  Mode
	Upper bool          // sits on other interfaces of this namespace
	Err   error         // why Mode is ModeNone, or why packets may pass unseen all the same
	Gap   time.Duration // from when we heard of it to when it was watched; 0 if it was there at Open

	Displaced uint64 // how often another TCX program stood before ours, which was then put first again
	Rival     string // which one, the last time
}

// Status is what the witness can say of itself. Empty strings mean that all is well.
type Status struct {
	Interfaces []Interface
	Senders    string        // what attribution lacks, and why
	Seeded     time.Duration // how long noting the older sockets took; 0 if it was not done
	Early      string        // why new interfaces have a gap; "" when the netfilter hook covers them
	Guarded    string        // the directory that holds the pins; "" when nothing is pinned
	Unpinned   string        // why drops end with this process though the policy in force should outlive it; "" when they do not
	Adopted    bool          // an earlier process's guard was taken over
	Until      time.Time     // when drops end if Set is not called again, and the machine does not sleep; zero is never
	Unseen     []string      // what on this host may send or change packets unseen, in words
	Suppressed uint64        // samples held back by the rate limit
	Lost       uint64        // samples that found no room
}
