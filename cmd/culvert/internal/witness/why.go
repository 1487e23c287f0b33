package witness

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/loader"
)

// System is what the operating system can tell of a packet's way and sender.
type System interface {
	// Way asks which way a packet of this host would go now.
	Way(ctx context.Context, p Packet) (Way, error)
	// Link names an interface, "" when it is gone.
	Link(index int) string
	// Cgroup names the cgroup of a process that lives, "" when it does not.
	Cgroup(pid int) string
}

// Packet is what decides a packet's way.
type Packet struct {
	Dst, Src netip.Addr
	Proto    uint8
	TOS      uint8
	Mark     uint32
	UID      int    // -1 when no process is known
	Device   string // SO_BINDTODEVICE
	Ingress  string // interface that it came in by, when forwarded
	Port     uint16 // where it goes; 0 is not known
}

// Way is the system's answer.
type Way struct {
	Route   string // in words
	Table   string
	Links   []int // interface indexes of its hops
	Rules   []Rule
	Refused bool // there is none
}

// cause is what led a sender's packets past the tunnel.
type cause struct {
	mechanism report.Mechanism
	text      string
}

// ofTable reports whether a route of the main table may have been the cause, so
// that an incident may be.
func (c cause) ofTable() bool {
	switch c.mechanism {
	case report.Forwarded, report.Route, report.InFlight, report.Unknown, report.NoTunnel:
		return true
	}
	return false
}

// seen is one sender as the loader knows it, with the way that its last packet
// went.
type seen struct {
	id      who
	to      netip.AddrPort
	src     netip.Addr // zero where only sums are known
	proto   uint8
	tos     uint8
	mark    uint32
	cgroup  uint64
	tunnel  int  // interface index; 0 while it is away
	present bool // its prefix is in a policy that is known
}

// who tells senders apart, by nothing that they can change at will: a process
// has the name that it likes.
type who struct {
	device, ingress, bound int
	prefix                 uint32
	reason                 loader.Reason
	origin                 loader.Origin
	pid, uid               int
	source                 netip.Addr
	others                 bool // all whom there was no room to tell apart
}

// explain names the mechanism as far as it can be known. The lookup is made with
// the packet's mark, user, device and type of service, some time after the
// packet: a route that stood for a moment is gone by then.
func explain(ctx context.Context, sys System, s *seen) cause {
	switch {
	case s.id.reason == loader.LeakServer:
		return cause{report.Server, "to the VPN server's address, but not the tunnel's own transport"}
	case s.id.reason == loader.LeakSender && s.id.origin == loader.Forwarded:
		return cause{report.Server, "forwarded to where the tunnel's own packets go; --server-from any lets such pass"}
	case s.id.reason == loader.LeakSender:
		return cause{report.Server, "to where the tunnel's own packets go, but not from who sends those; --server-from any lets such pass"}
	case s.id.reason == loader.LeakGateway:
		return cause{report.Gateway, "to the gateway's address, where only neighbour discovery and DHCP may go"}
	case s.id.reason == loader.LeakEarly:
		return cause{report.Early, "by an interface too new to have a program"}
	case s.id.reason == loader.LeakOverflow:
		return cause{report.Unknown, "more interfaces and prefixes than there are counters"}
	case s.id.origin == loader.Packet:
		return cause{report.PacketSocket, "a packet socket, which asks no route"}
	}
	p := s.packet(sys)
	if s.id.bound == s.id.device {
		return cause{report.Bound, "SO_BINDTODEVICE " + p.Device}
	}
	way, err := sys.Way(ctx, p)
	switch {
	case s.id.bound != 0:
		return boundTo(s, &p, &way)
	case err != nil:
		return cause{report.Unknown, "the way cannot be asked for: " + err.Error()}
	}
	return byWay(s, &p, &way)
}

func (s *seen) packet(sys System) Packet {
	p := Packet{Dst: s.to.Addr(), Src: s.src, Proto: s.proto, Port: s.to.Port(), TOS: s.tos, Mark: s.mark, UID: s.id.uid}
	if s.id.origin == loader.Unowned || s.id.origin == loader.Forwarded {
		p.UID = -1
	}
	if s.id.source.IsValid() {
		p.Src = s.id.source
	}
	if s.id.bound != 0 {
		p.Device = sys.Link(s.id.bound)
	}
	if s.id.ingress != 0 {
		p.Ingress = sys.Link(s.id.ingress)
	}
	return p
}

// boundTo tells a socket bound to a VRF, which has a table of its own, from one
// bound to the interface itself.
func boundTo(s *seen, p *Packet, way *Way) cause {
	if way.Table != "" && way.Table != "main" && way.Table != "local" {
		return cause{report.VRF, fmt.Sprintf("bound to VRF %s: table %s, %s", p.Device, way.Table, way.Route)}
	}
	return cause{report.Bound, "SO_BINDTODEVICE " + p.Device}
}

func byWay(s *seen, p *Packet, way *Way) cause {
	into := slices.Contains(way.Links, s.tunnel) && s.tunnel != 0
	forwarded := ""
	if s.id.origin == loader.Forwarded {
		forwarded = fmt.Sprintf("forwarded from %s (%s)", p.Ingress, p.Src)
	}
	if rule := ruleOf(p, way, into); rule != "" {
		return cause{report.Rule, join(forwarded, "rule "+rule)}
	}
	switch {
	case s.tunnel == 0 && s.present:
		return cause{report.NoTunnel, join(forwarded, "the tunnel is away; "+way.text())}
	case !into && !way.Refused && way.Table == "main":
		return cause{report.Route, join(forwarded, "route "+way.text())}
	case forwarded != "":
		return cause{report.Forwarded, forwarded}
	}
	return cause{report.InFlight, "no route leads there now: one that stood for a moment, or an interface chosen for the packet (IP_PKTINFO)"}
}

// ruleOf finds the policy rule that took the packet, or "".
func ruleOf(p *Packet, way *Way, into bool) string {
	if !into && !way.Refused && way.Table != "main" && way.Table != "local" && way.Table != "" {
		if rule := byTable(way.Rules, way.Table, p); rule != "" {
			return rule + ", " + way.Route
		}
	}
	if into || p.Ingress != "" {
		return bySelector(way.Rules, p)
	}
	return ""
}

func (w *Way) text() string {
	if w.Refused {
		return "no route"
	}
	return w.Route
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}
