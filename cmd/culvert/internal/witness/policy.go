package witness

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/culvert-project/culvert/loader"
)

// Rules is what the operator asked for.
type Rules struct {
	Drop  bool          // stop leaks, do not only count them
	Guard bool          // hold when a tunnel vanishes; a guard that begins only then is too late, so it drops from the start
	Audit bool          // stop nothing, whatever a session asks for
	For   time.Duration // how long a guard holds after the tunnel, or the daemon, is gone; 0 is for ever
}

// drops reports whether leaks are stopped.
func (r Rules) drops() bool { return r.Drop || r.Guard }

// owner is what an ID of a policy stands for.
type owner struct {
	tunnel string
	prefix netip.Prefix
	link   int // interface index of the tunnel; 0 while it is away
}

// policy is a protection as the loader takes it.
type policy struct {
	config loader.Config
	owners map[uint32]owner
}

// compile makes a policy. Of sessions whose tunnel is away it drops while free
// says that the guard still holds them.
func compile(p enforce.Protection, want Rules, free func(tunnel string) bool) policy {
	pol, _ := build(p, want, free)
	return pol
}

// build is compile, with the lines as they were collected.
func build(p enforce.Protection, want Rules, free func(tunnel string) bool) (policy, *builder) {
	b := &builder{lines: map[netip.Prefix][]loader.Prefix{}, owners: map[uint32]owner{}}
	for _, r := range plan.IgnoredRanges() {
		b.pass(r, loader.Ignored)
	}
	for _, s := range p.Sessions {
		for _, x := range s.Exclude {
			b.pass(x, loader.Excluded)
		}
	}
	for _, s := range sorted(p.Sessions) {
		drop := want.drops() && !(s.Link == 0 && free(s.Tunnel))
		b.protect(&s, s.Protect, drop)
	}
	for _, s := range sorted(p.Sessions) {
		b.protect(&s, s.Reject, !want.Audit && !(s.Link == 0 && free(s.Tunnel)))
	}
	b.servers(p.Sessions)
	b.gateways(p.Gateways)
	return policy{b.config(p.Sessions, want), b.owners}, b
}

// sorted brings sessions into an order that a restart does not change, so that
// IDs which collide are settled alike.
func sorted(in []enforce.ProtectedSession) []enforce.ProtectedSession {
	out := slices.Clone(in)
	slices.SortFunc(out, func(a, b enforce.ProtectedSession) int { return cmp.Compare(a.Tunnel, b.Tunnel) })
	return out
}

// builder collects lines. All lines of one prefix have one class: the first
// that was given to it.
type builder struct {
	lines  map[netip.Prefix][]loader.Prefix
	owners map[uint32]owner
}

func (b *builder) pass(p netip.Prefix, class loader.Class) {
	if b.lines[p] == nil {
		b.lines[p] = []loader.Prefix{{Prefix: p, Class: class}}
	}
}

// gateways narrows the way to each next hop to what the link itself needs, where its address is protected and is not the
// server's: that has its own, narrower lines.
func (b *builder) gateways(list []netip.Prefix) {
	for _, host := range list {
		around, ok := b.lookup(host.Addr())
		if !ok || around.Class != loader.Protected {
			continue
		}
		b.lines[host] = []loader.Prefix{{
			Prefix: host, Class: loader.Gateway, ID: b.within(host, around), Drop: around.Drop, Tunnel: around.Tunnel,
			Exempt: around.Exempt, Name: around.Name, Kind: around.Kind, Frames: around.Frames,
		}}
	}
}

// protect adds what a session protects, or rejects: that is dropped outside its
// tunnel whatever else is only counted.
func (b *builder) protect(s *enforce.ProtectedSession, list []netip.Prefix, drop bool) {
	for _, x := range list {
		if b.lines[x] != nil {
			continue
		}
		own := owner{s.Tunnel, x, int(s.Link)}
		name := s.Tunnel
		if s.Renamed {
			name = ""
		}
		b.lines[x] = []loader.Prefix{{
			Prefix: x, Class: loader.Protected, ID: b.id(own), Drop: drop, Tunnel: int(s.Link), Exempt: indexes(s.KeepLinks),
			Name: name, Kind: s.Type.Kind, Frames: s.Type.Frames,
		}}
	}
}

// id is the same for the same tunnel and prefix in every process: counters of an
// adopted guard keep their meaning.
func (b *builder) id(own owner) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(own.tunnel + " " + own.prefix.String()))
	id := max(1, h.Sum32())
	for b.owners[id] != (owner{}) {
		id = max(1, id+1)
	}
	b.owners[id] = own
	return id
}

// servers narrows the way to each server to the tunnel's own transport, where
// its address is protected at all and nobody excluded it.
func (b *builder) servers(sessions []enforce.ProtectedSession) {
	gates := map[netip.Prefix][]loader.Prefix{}
	for _, s := range sessions {
		for _, srv := range s.Servers {
			a := srv.Addr.Addr().Unmap()
			host := netip.PrefixFrom(a, a.BitLen())
			gates[host] = append(gates[host], fromOf(&s, gatesOf(srv))...)
		}
	}
	for host, list := range gates {
		if around, ok := b.lookup(host.Addr()); ok && around.Class == loader.Protected {
			b.lines[host] = b.server(host, around, list)
		}
	}
}

func (b *builder) server(host netip.Prefix, around loader.Prefix, gates []loader.Prefix) []loader.Prefix {
	id := b.within(host, around)
	gates = fewer(gates)
	for i := range gates {
		gates[i] = loader.Prefix{
			Prefix: host, Class: loader.Server, ID: id, Drop: around.Drop, Tunnel: around.Tunnel, Exempt: around.Exempt, Name: around.Name, Kind: around.Kind, Frames: around.Frames,
			Proto: gates[i].Proto, Port: gates[i].Port, From: gates[i].From, Who: gates[i].Who,
		}
	}
	return gates
}

// within is the ID of a host inside a protected prefix, of the same owner.
func (b *builder) within(host netip.Prefix, around loader.Prefix) uint32 {
	if around.Prefix == host {
		return around.ID
	}
	own := b.owners[around.ID]
	own.prefix = host
	return b.id(own)
}

// fewer lets any port pass where a server has too many transports, and any protocol
// where it has too many of those: the loader would refuse the whole policy.
func fewer(gates []loader.Prefix) []loader.Prefix {
	if gates = distinct(gates); len(gates) <= loader.MaxTransports {
		return gates
	}
	for i := range gates {
		gates[i].Port = 0
	}
	if gates = distinct(gates); len(gates) <= loader.MaxTransports {
		return gates
	}
	return []loader.Prefix{{Proto: loader.AnyProto}}
}

// distinct sorts gates and drops repeats.
func distinct(gates []loader.Prefix) []loader.Prefix {
	slices.SortFunc(gates, compareGate)
	return slices.CompactFunc(gates, func(a, b loader.Prefix) bool { return compareGate(a, b) == 0 })
}

func compareGate(a, b loader.Prefix) int {
	return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port), cmp.Compare(a.From, b.From), cmp.Compare(a.Who, b.Who))
}

// lookup finds the first line of the longest prefix that holds a.
func (b *builder) lookup(a netip.Addr) (loader.Prefix, bool) {
	for bits := a.BitLen(); bits >= 0; bits-- {
		p, _ := a.Prefix(bits)
		if l := b.lines[p]; l != nil {
			return l[0], true
		}
	}
	return loader.Prefix{}, false
}

func indexes(links []uint32) (out []int) {
	for _, l := range links {
		out = append(out, int(l))
	}
	return out
}

// gatesOf is what a server's transport looks like from outside. ESP comes with the exchange of its keys, which goes to the
// same address by UDP.
func gatesOf(srv enforce.Server) []loader.Prefix {
	number, _, _ := enforce.Transport(srv.Proto)
	switch srv.Proto {
	case enforce.AnyTransport:
		return []loader.Prefix{{Proto: loader.AnyProto}}
	case "esp":
		return []loader.Prefix{{Proto: number}, {Proto: protoUDP, Port: portIKE}, {Proto: protoUDP, Port: portIKENAT}}
	}
	return []loader.Prefix{{Proto: number, Port: srv.Addr.Port()}}
}

// fromOf returns the gates of a session's servers, each once for each sender of its transport.
func fromOf(s *enforce.ProtectedSession, gates []loader.Prefix) (out []loader.Prefix) {
	for _, f := range senders(s) {
		for _, g := range gates {
			g.From, g.Who = f.From, f.Who
			out = append(out, g)
		}
	}
	return out
}

// senders are the senders of a session's transport. Where ServerFrom names none the tunnel's kind decides, as far as it
// makes that certain: the kernel sends WireGuard's packets, a process of this host those of a tun. Packets of other kinds
// of tunnel may look forwarded.
func senders(s *enforce.ProtectedSession) (out []loader.Prefix) {
	for _, word := range s.ServerFrom {
		f, err := enforce.ParseSender(word)
		if err != nil {
			continue // the enforcer has refused it
		}
		out = append(out, loader.Prefix{From: loaderFrom[f.By], Who: f.ID})
	}
	switch {
	case len(out) > 0:
		return out
	case s.Type.Kind == "wireguard":
		return []loader.Prefix{{From: loader.FromKernel}}
	case s.Type.Kind == "tun":
		return []loader.Prefix{{From: loader.FromHost}}
	}
	return []loader.Prefix{{From: loader.FromAny}}
}

var loaderFrom = map[enforce.SenderKind]loader.From{
	enforce.SenderAny: loader.FromAny, enforce.SenderHost: loader.FromHost, enforce.SenderUID: loader.FromUID, enforce.SenderMark: loader.FromMark,
}

// Protocols, and what IKE is carried to: directly, and together with ESP where an address is translated on the way.
const (
	protoTCP   = 6
	protoUDP   = 17
	portIKE    = 500
	portIKENAT = 4500
)

func (b *builder) config(sessions []enforce.ProtectedSession, want Rules) loader.Config {
	cfg := loader.Config{Guard: want.Guard && len(sessions) > 0}
	for _, lines := range b.lines {
		cfg.Prefixes = append(cfg.Prefixes, lines...)
	}
	slices.SortFunc(cfg.Prefixes, func(a, b loader.Prefix) int {
		return cmp.Or(plan.ComparePrefix(a.Prefix, b.Prefix), compareGate(a, b))
	})
	for _, s := range sessions {
		if s.Link != 0 {
			cfg.Tunnels = append(cfg.Tunnels, int(s.Link))
		}
	}
	return cfg
}
