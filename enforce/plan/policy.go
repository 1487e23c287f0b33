package plan

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// Class is what the policy says of a prefix.
type Class uint8

// The classes.
const (
	Unlisted  Class = iota // in no prefix of the policy
	Protected              // must leave through the tunnel
	Excluded               // bypasses the tunnel on purpose
	Ignored                // never touched, whatever else the policy says
	Gateway                // next hop to a server: its route stays, but only the link's own needs may go there
)

var classNames = [...]string{"unlisted", "protected", "excluded", "ignored", "gateway"}

// String returns the word for the class that messages use.
func (c Class) String() string { return classNames[c] }

// ignored are the destinations that are never touched: loopback, link-local,
// multicast and broadcast of both families.
var ignored4 = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("255.255.255.255/32"),
}

var ignored6 = []netip.Prefix{
	netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// IgnoredRanges returns the destinations that are never touched.
func IgnoredRanges() []netip.Prefix { return slices.Concat(ignored4, ignored6) }

// InIgnored reports whether p lies inside an ignored range.
func InIgnored(p netip.Prefix) bool {
	list := ignored6
	if p.Addr().Is4() {
		list = ignored4
	}
	for _, i := range list {
		if i.Bits() <= p.Bits() && i.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// Session is one tunnel's share of the policy.
type Session struct {
	Tunnel     uint32         // interface index of the tunnel
	TunnelUp   bool           // false: its routes cannot stand now, none is put
	Mute6      bool           // IPv6 is switched off on it: none of IPv6 is put
	Protect    []netip.Prefix // must leave through the tunnel
	Exclude    []netip.Prefix // bypass it on purpose
	Servers    []netip.Addr   // where the tunnel's own transport goes
	KeepLinks  []uint32       // interfaces whose routes are reported, not removed
	OtherTable []netip.Prefix // of Protect: the VPN routes these in a table of its own
	Reject     []netip.Prefix // of a family that the tunnel does not carry: nothing to these may leave outside it
}

// Spec is everything a [Policy] is built from. The zero Spec protects nothing.
type Spec struct {
	Sessions        []Session
	KeepUnreachable bool // blackhole, unreachable and prohibit are reported, not removed
	RestoreAll      bool // whatever was removed comes back, not only what stood before

	// What the table taught, carried from one Make to the next.
	Pinholes []netip.Prefix // host routes that keep the transport alive: they stay
	Gateways []netip.Prefix // those of them that are next hops
	Seen     []Route        // each protected prefix's tunnel route, as last seen
}

// Entry is one prefix of the policy.
type Entry struct {
	Prefix     netip.Prefix
	Class      Class
	Session    int    // index into Spec.Sessions
	Tunnel     uint32 // interface that must carry a protected prefix
	Reject     bool   // a route of ours rejects what the tunnel does not take
	OtherTable bool   // the tunnel route of the prefix is not in main
	Route      Route  // the tunnel's route for it: as last seen, else the one we would put
	Known      bool   // Route was seen, not made up
	keepLinks  []uint32
}

// Keeps reports whether routes by the interface may stay inside the prefix.
func (e *Entry) Keeps(link uint32) bool { return slices.Contains(e.keepLinks, link) }

// Policy is a set of prefixes with a class each. It never changes once built,
// so any number of goroutines may judge by it. The zero Policy protects nothing.
type Policy struct {
	spec    Spec
	trie    bart.Table[*Entry] // every class but Ignored
	protect bart.Table[*Entry] // Protected alone
}

// Problem is something in a Spec that cannot be: the prefix at fault and a
// sentence that says why and what to do.
type Problem struct {
	Prefix netip.Prefix
	Text   string
}

// Build makes a policy. The problems name prefixes that cannot be enforced as
// given; a policy with problems must not be used.
func Build(spec Spec) (*Policy, []Problem) {
	p := &Policy{spec: spec}
	var problems []Problem
	for i := range spec.Sessions {
		problems = append(problems, p.addSession(i)...)
	}
	for i := range spec.Sessions {
		p.addRejects(i)
	}
	for _, r := range spec.Seen {
		p.learn(r)
	}
	for _, pin := range spec.Pinholes {
		p.pinhole(pin)
	}
	return p, problems
}

// pinhole spares a host route that the transport needs. What may go there is no wider for it: a next hop to the
// server is not a way around the tunnel, unless the operator excluded it or it is the server itself.
func (p *Policy) pinhole(pin netip.Prefix) {
	class, around := p.classify(pin)
	e := &Entry{Prefix: pin, Class: Excluded}
	if around != nil {
		e.Session = around.Session
	}
	if class == Protected && slices.Contains(p.spec.Gateways, pin) {
		e.Class = Gateway
	}
	p.trie.Insert(pin, e)
}

func (p *Policy) addSession(i int) []Problem {
	s := &p.spec.Sessions[i]
	var problems []Problem
	for _, x := range s.Protect {
		e := &Entry{Prefix: x, Class: Protected, Session: i, Tunnel: s.Tunnel, keepLinks: s.KeepLinks}
		e.OtherTable = slices.Contains(s.OtherTable, x)
		e.Route = ownRoute(x, s.Tunnel)
		problems = append(problems, p.insert(e)...)
	}
	for _, x := range s.Exclude {
		problems = append(problems, p.insert(&Entry{Prefix: x, Class: Excluded, Session: i})...)
	}
	for _, a := range s.Servers {
		host := netip.PrefixFrom(a, a.BitLen())
		p.trie.Insert(host, &Entry{Prefix: host, Class: Excluded, Session: i})
	}
	return problems
}

// addRejects adds what a session rejects, where no session says anything of just
// that prefix.
func (p *Policy) addRejects(i int) {
	s := &p.spec.Sessions[i]
	for _, x := range s.Reject {
		if _, taken := p.trie.Get(x); taken {
			continue
		}
		e := &Entry{Prefix: x, Class: Protected, Session: i, Tunnel: s.Tunnel, Reject: true, keepLinks: s.KeepLinks}
		e.Route = Route{Dst: x, Type: Unreachable, Origin: Own}
		if x.Addr().Is6() {
			e.Route.Metric = ownMetric6
		}
		p.trie.Insert(x, e)
		p.protect.Insert(x, e)
	}
}

// rejects reports whether r is our own route that rejects what the entry asks for.
func (e *Entry) rejects(r *Route) bool {
	return e.Reject && r.Origin == Own && r.Type == Unreachable && r.Dst == e.Prefix
}

func (p *Policy) insert(e *Entry) []Problem {
	switch old, ok := p.trie.Get(e.Prefix); {
	case e.Prefix != e.Prefix.Masked():
		return []Problem{{e.Prefix, "has host bits set; write " + e.Prefix.Masked().String()}}
	case InIgnored(e.Prefix):
		return []Problem{{e.Prefix, "lies inside a range that is never touched (loopback, link-local, multicast); leave it out"}}
	case !ok:
	case old.Class != e.Class:
		return []Problem{{e.Prefix, "is both protected and excluded; remove one of the two"}}
	case old.Session != e.Session && e.Class == Protected:
		return []Problem{{e.Prefix, "is protected by two sessions; give it to one tunnel"}}
	}
	p.trie.Insert(e.Prefix, e)
	if e.Class == Protected {
		p.protect.Insert(e.Prefix, e)
	}
	return nil
}

// learn notes the tunnel's own route for a protected prefix.
func (p *Policy) learn(r Route) {
	e, ok := p.protect.Get(r.Dst)
	if !ok || r.Hop.Link != e.Tunnel {
		return
	}
	e.Route, e.Known = r.byValue(), true
}

// byValue returns a route that is sure to go where r went when it was seen.
// What uses a nexthop object goes where that says now: to put such a route back
// would put back whatever others have made of the object.
func (r Route) byValue() Route {
	if r.NexthopID != 0 {
		r.NexthopID, r.Raw, r.Origin, r.Protocol = 0, "", Own, 0
	}
	return r
}

// ownMetric6 is the metric of IPv6 tunnel routes that we make up: it leaves
// VPN clients room to add their own at the usual 1024 without a clash.
const ownMetric6 = 1

func ownRoute(dst netip.Prefix, link uint32) Route {
	r := Route{Dst: dst, Hop: Hop{Link: link}, Origin: Own}
	if dst.Addr().Is6() {
		r.Metric = ownMetric6
	}
	return r
}

// Spec returns what the policy was built from. The caller must not change it.
func (p *Policy) Spec() Spec { return p.spec }

// Empty reports whether the policy protects nothing.
func (p *Policy) Empty() bool { return p.protect.Size() == 0 }

// MayPut reports whether the tunnel's route for a protected prefix can and
// should be put into main now.
func (p *Policy) MayPut(e *Entry) bool {
	s := &p.spec.Sessions[e.Session]
	mute := s.Mute6 && e.Prefix.Addr().Is6()
	return (s.TunnelUp && !mute || e.Reject) && !e.OtherTable
}

// Carries reports whether a route leads to a server or to a gateway that is kept
// reachable: the transport's way may change with it.
func (p *Policy) Carries(r *Route) bool {
	for i := range p.spec.Sessions {
		for _, a := range p.spec.Sessions[i].Servers {
			if r.Dst.Contains(a) {
				return true
			}
		}
	}
	for _, pin := range p.spec.Pinholes {
		if r.Dst == pin {
			return true
		}
	}
	return false
}

// Lookup returns the class of one address and the entry that gives it; the
// entry is nil when the address is unlisted or ignored.
func (p *Policy) Lookup(a netip.Addr) (Class, *Entry) {
	return p.classify(netip.PrefixFrom(a, a.BitLen()))
}

// classify returns the class of a route's destination: ignored if it lies in
// an ignored range, else that of the longest policy prefix containing it.
func (p *Policy) classify(dst netip.Prefix) (Class, *Entry) {
	if InIgnored(dst) {
		return Ignored, nil
	}
	_, e, ok := p.trie.LookupPrefixLPM(dst)
	if !ok {
		return Unlisted, nil
	}
	return e.Class, e
}

// Entries yields every prefix of the policy in order.
func (p *Policy) Entries() iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		for _, e := range p.trie.AllSorted() {
			if !yield(e) {
				return
			}
		}
	}
}
