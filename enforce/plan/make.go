package plan

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Link is what the decision needs to know of an interface.
type Link struct {
	Index uint32
	Name  string
	HW    string // hardware address, or "" where there is none
	Kind  LinkKind
	Type  LinkType
	Up    bool
	Mute6 bool           // IPv6 is switched off on it: it carries none, and takes no IPv6 route
	Addrs []netip.Prefix // addresses with their prefix lengths, not masked
	Peers []netip.Prefix // what point-to-point addresses lead to, masked
}

// LinkType says what an interface is, as the system tells it. The zero value means that
// this is not known.
type LinkType struct {
	Kind   string `json:"kind,omitempty"`   // the driver's kind (IFLA_INFO_KIND): "tun", "veth"; "" where the driver names none, as for a network card
	Frames uint16 `json:"frames,omitempty"` // the hardware type (ARPHRD_*) of what it carries
}

// String names the type for a person: "tap", "wireguard", "network card".
func (t LinkType) String() string {
	if t == (LinkType{Kind: "tun", Frames: framesEthernet}) {
		return "tap"
	}
	return cmp.Or(t.Kind, "network card")
}

const framesEthernet = 1 // ARPHRD_ETHER

// Fits reports whether an interface of type t may be the one that was of type o: the
// types are equal, or one of them is not known.
func (t LinkType) Fits(o LinkType) bool { return t == o || t == LinkType{} || o == LinkType{} }

// Another reports whether an interface of type t is certainly not the one that was of
// type o: both types are known and the kinds differ. Frames alone may change, as a
// modem's do.
func (t LinkType) Another(o LinkType) bool { return !t.Fits(o) && t.Kind != o.Kind }

// Held is a route that was removed and must come back.
type Held struct {
	ID    uint64 // given by whoever holds it; ascending in the order of removal
	Route Route
	Age   uint32         // seconds since it was removed
	Place uint64         // orders the routes of a slot: its own ID, or that of the oldest copy that it replaced; 0 is its own
	First bool           // it goes back ahead of its slot: none that stayed, or is back already, stood before it
	Nets  []netip.Prefix // what Nets said when it was removed; empty: not known
}

// Kind is what an [Action] does.
type Kind uint8

// The kinds, in the order they are carried out: what protects comes before
// what removes, and what comes back before what was only standing in.
const (
	Put      Kind = iota // add a route that must exist
	Remove               // delete a conflicting route
	Lift                 // delete a held route that stands before its turn; a Restore puts it back in order
	Restore              // add a held route, then forget it
	Withdraw             // delete a route of our own that is no longer wanted
	Forget               // a held route that must not come back
)

var kindNames = [...]string{"put", "remove", "lift", "restore", "withdraw", "forget"}

// String returns the word for the kind.
func (k Kind) String() string { return kindNames[k] }

// Action is one step of a plan.
type Action struct {
	Kind    Kind
	Route   Route
	Verdict Verdict // why, for Remove
	Hold    bool    // Remove: write the route down first, it must come back
	First   bool    // Put, Restore: ahead of the others in the route's slot
	Age     uint32  // Restore: seconds that the route was away
	Held    uint64  // Restore, Forget: what is crossed out; Remove: what it supersedes; Lift: whose copy stands
	Place   uint64  // Restore: the held route's place among the others of its slot
	Why     string  // why, for Put, Lift, Withdraw and Forget
}

// Input is what Make decides on.
type Input struct {
	Policy   *Policy
	Table    iter.Seq[Route] // the main table, in the kernel's order within a slot; Raw is copied where kept
	Held     []Held
	Links    []Link
	Baseline bool // the first look under this policy: what stands was there before
	// Before is the policy by which the table was last right, nil where none is known.
	// A route that conflicts with Before came later, while connected. A route that
	// conflicts with Policy alone stood before. Baseline is used only where Before is nil.
	Before *Policy
}

// Finding is something that the main table cannot settle, or may not.
type Finding struct {
	Prefix netip.Prefix
	Link   uint32
	Text   string
}

// Plan is what Make decided.
type Plan struct {
	Actions  []Action
	Policy   *Policy        // the input's, refined by what the table taught
	Missing  []netip.Prefix // protected prefixes that had no tunnel route
	Reported []Route        // routes that take protected traffic by the operator's word
	Shadowed []Route        // routes that stay in the place of conflicts, or may: see MayTake
	// Swallowed are routes that send a server's packets into the server's own
	// tunnel, and that cannot be got round.
	Swallowed []Route
	Unfit     []Finding // protected addresses that routing cannot protect
	Stranded  []Finding // excluded prefixes whose packets enter the tunnel all the same
	Defaults  []Route   // the winning default route of each family, of those outside every tunnel
}

// Settled reports whether the table was already right: nothing to add or delete.
func (pl *Plan) Settled() bool {
	return !slices.ContainsFunc(pl.Actions, func(a Action) bool { return a.Kind != Forget })
}

// Make judges a whole table and returns the actions that make it right. It
// reads the table once and keeps only what the policy touches, so its memory
// grows with the conflicts, not with the table.
func Make(in Input) Plan {
	m := maker{in: in, p: in.Policy, seen: map[netip.Prefix]Route{}, owed: map[netip.Prefix]Route{}, bySlot: map[Slot][]int{}}
	m.behind, m.ahead, m.nextHops = map[Route]bool{}, map[netip.Prefix]bool{}, map[Hop]bool{}
	m.book, m.ways = newAddressBook(in.Links), newWays(in.Held)
	m.paths, m.excluded = m.p.servers(), m.p.exclusions()
	m.sortHeld()
	for r := range in.Table {
		m.read(&r)
	}
	m.judgeHeld()
	m.readHeld()
	m.refine()
	m.put()
	m.remove()
	m.restore()
	m.withdraw()
	m.swallowed()
	m.unfit()
	m.strand()
	m.out.Policy = m.p
	return m.out
}

// sortHeld finds the held routes by their places.
func (m *maker) sortHeld() {
	m.heldIn, m.crowded, m.standing = map[Slot][]*Held{}, map[Slot][]*Held{}, map[uint64]Route{}
	for i := range m.in.Held {
		slot := m.in.Held[i].Route.Slot()
		m.heldIn[slot] = append(m.heldIn[slot], &m.in.Held[i])
		if len(m.heldIn[slot]) > 1 {
			m.crowded[slot] = m.heldIn[slot]
		}
	}
}

type maker struct {
	in         Input
	p          *Policy
	book       addressBook
	ways       ways
	heldIn     map[Slot][]*Held // the held routes by their places
	crowded    map[Slot][]*Held // of those, the places of more than one
	standing   map[uint64]Route // the held routes of crowded places that stand all the same
	fates      []fate           // of the held routes, by their place in the input
	candidates []candidate
	onLink     []int                  // of the candidates: those with no gateway
	bySlot     map[Slot][]int         // indices of the candidates
	stay       Slot                   // of the last route read that stays
	own        []Route                // our own routes that do not carry protected traffic
	twins      []Route                // others' IPv6 routes that ours may be a leg or an equal of
	seen       map[netip.Prefix]Route // the tunnel's standing route for each protected prefix
	owed       map[netip.Prefix]Route // the same, of those held: they come back
	paths      []path
	wanted     []Route               // own host routes that must stand, in the order to put them
	gateways   []netip.Prefix        // those of them that are next hops
	behind     map[Route]bool        // of own: those that stand behind a rival
	ahead      map[netip.Prefix]bool // of wanted: those that have to stand ahead of one
	nextHops   map[Hop]bool          // gateways of excluded routes
	excluded   map[netip.Prefix]*exclusion
	lostWay    bool // no way to one of the servers is known now
	out        Plan
}

// isTunnel reports whether the link is the tunnel of any session.
func (p *Policy) isTunnel(link uint32) bool {
	return slices.ContainsFunc(p.spec.Sessions, func(s Session) bool { return s.Tunnel == link })
}

// read takes in one route of the table.
func (m *maker) read(r *Route) {
	v := Judge(m.p, r)
	m.readDefault(r)
	m.readHeldTwin(r)
	m.ways.take(r)
	if r.Origin == Own && v.Decision != Ours {
		m.readOwn(r)
		return
	}
	m.follow(r, v)
	m.readExcluded(r, v)
	m.readStaying(r, v)
	if v.Shared && divisible(r) {
		// Only the foreign legs can have to go: the tunnel's are its route.
		rest := withLegs(*r, func(h Hop) bool { return h.Link == v.Entry.Tunnel })
		m.see(&rest, v.Entry)
	}
	if v.Reason == InExcluded && divisible(r) && v.Entry.Prefix == r.Dst {
		m.twins = append(m.twins, r.Clone())
	}
	switch {
	case v.Decision == Ours:
		m.readOurs(r, v.Entry)
	case v.Decision == Conflict, v.Reason == Shadowed, m.isPinhole(v):
		m.consider(r)
	case v.Decision == Report:
		m.stays(r)
		m.out.Reported = append(m.out.Reported, r.Clone())
	}
}

// readOwn notes a route of ours, and whether it stands where it never wins.
func (m *maker) readOwn(r *Route) {
	own := r.Clone()
	m.own = append(m.own, own)
	if r.Dst.Addr().Is4() && slices.ContainsFunc(m.paths, func(pa path) bool { return pa.rival.Slot() == r.Slot() }) {
		m.behind[own] = true
	}
}

// readDefault notes a default route that does not enter a tunnel.
func (m *maker) readDefault(r *Route) {
	if r.Dst.Bits() != 0 || r.Dead || r.TOS != 0 || r.Origin == Own || m.p.isTunnel(r.Hop.Link) {
		return
	}
	i := slices.IndexFunc(m.out.Defaults, func(d Route) bool { return d.Dst == r.Dst })
	switch {
	case i < 0:
		m.out.Defaults = append(m.out.Defaults, r.Clone())
	case r.Metric < m.out.Defaults[i].Metric:
		m.out.Defaults[i] = r.Clone()
	}
}

func (m *maker) isPinhole(v Verdict) bool {
	return v.Reason == InExcluded && slices.Contains(m.p.spec.Pinholes, v.Entry.Prefix)
}

// readOurs notes the tunnel's standing routes.
func (m *maker) readOurs(r *Route, e *Entry) {
	m.stays(r)
	if r.Origin == Own && r.Dst != e.Prefix {
		m.own = append(m.own, r.Clone())
		return
	}
	m.see(r, e)
}

// fits reports whether r can be the tunnel's route for the protected prefix.
func (e *Entry) fits(r *Route) bool {
	return r.Dst == e.Prefix && r.TOS == 0 && !r.Src.IsValid() && !r.Dead
}

// see notes the tunnel's standing route for a protected prefix, the one that
// wins if there are several.
func (m *maker) see(r *Route, e *Entry) {
	if !e.fits(r) {
		return
	}
	if old, ok := m.seen[r.Dst]; !ok || r.Metric < old.Metric {
		m.seen[r.Dst] = r.Clone()
	}
}

// readHeld lets held routes show the way to a server too: the only default
// route may be among them.
func (m *maker) readHeld() {
	for i := range m.fates {
		f := &m.fates[i]
		if f.why != "" {
			continue
		}
		if r := &f.rest; m.couldStand(r) && m.ways.lead(r, &m.book) {
			m.follow(r, Verdict{Decision: Conflict})
		}
		if v := Judge(m.p, &f.rest); v.Decision == Ours && v.Entry.fits(&f.rest) {
			m.owed[f.rest.Dst] = f.rest
		}
	}
}

// stead is the route to put for a prefix whose tunnel route is missing. Where one
// of another session's taking is held that IPv6 could not tell from the one we
// would make up (it ignores the protocol), that one is put: restoring it would
// find the other there, which is withdrawn in the end.
func (m *maker) stead(e *Entry) Route {
	r, ok := m.owed[e.Prefix]
	if ok && !e.Known && r.Hop == e.Route.Hop && r.More == "" && r.Metric == e.Route.Metric {
		return r
	}
	return e.Route
}

// refine settles the pinholes and the tunnel routes' metrics, and makes the
// policy that knows them.
func (m *maker) refine() {
	for i := range m.paths {
		m.want(&m.paths[i])
	}
	m.wantNextHops()
	spec := m.p.spec
	var pins []netip.Prefix
	for _, r := range m.wanted {
		pins = append(pins, r.Dst)
	}
	gateways := m.gateways
	if m.lostWay { // what led to a gateway may do so again
		pins, gateways = append(pins, spec.Pinholes...), append(gateways, spec.Gateways...)
	}
	pins, gateways = sortedSet(pins), sortedSet(gateways)
	seen := m.mergeSeen()
	if slices.Equal(pins, spec.Pinholes) && slices.Equal(gateways, spec.Gateways) && slices.EqualFunc(seen, spec.Seen, Route.Same) {
		return
	}
	spec.Pinholes, spec.Gateways, spec.Seen = pins, gateways, seen
	m.p, _ = Build(spec)
}

func sortedSet(list []netip.Prefix) []netip.Prefix {
	slices.SortFunc(list, ComparePrefix)
	return slices.Compact(list)
}

// mergeSeen returns the tunnel routes last seen, updated by the standing ones.
func (m *maker) mergeSeen() []Route {
	var out []Route
	for e := range m.p.Entries() {
		r, standing := m.seen[e.Prefix]
		if !standing && e.Known {
			r, standing = e.Route, true
		}
		if standing {
			out = append(out, r)
		}
	}
	return out
}

// put adds what must exist: the transport's way first, then the tunnel's routes.
func (m *maker) put() {
	for _, w := range m.wanted {
		if !m.stands(w) {
			// Behind an equal one of the VPN's own: its client deletes the first
			// that fits, which must not be ours.
			// Ahead of one that leads into the tunnel, which would win.
			m.out.Actions = append(m.out.Actions, Action{Kind: Put, Route: w, First: m.ahead[w.Dst], Why: "keeps the way to the VPN server"})
		}
	}
	for e := range m.p.Entries() {
		if _, standing := m.seen[e.Prefix]; standing || e.Class != Protected || e.OtherTable {
			continue
		}
		if e.Reject {
			m.out.Actions = append(m.out.Actions, Action{Kind: Put, Route: e.Route, First: true, Why: "rejects what the tunnel leaves out"})
			continue
		}
		m.out.Missing = append(m.out.Missing, e.Prefix)
		if m.p.MayPut(e) {
			m.out.Actions = append(m.out.Actions, Action{Kind: Put, Route: m.stead(e), First: true, Why: "the tunnel's route must exist"})
		}
	}
}

// remove deletes what the refined policy still calls a conflict.
func (m *maker) remove() {
	m.judgeCandidates()
	removals := make([]Action, 0, len(m.candidates))
	for i := range m.candidates {
		switch c := &m.candidates[i]; c.verdict.Decision {
		case Conflict:
			removals = append(removals, m.removal(c))
		case Report:
			m.out.Reported = append(m.out.Reported, c.route)
		case Keep:
			m.out.Shadowed = append(m.out.Shadowed, c.route)
		}
	}
	for _, r := range m.seen { // a delete of legs may take the tunnel's route, where that is the first of them
		if len(m.bySlot[r.Slot()]) > 0 && r.Dst.Addr().Is4() {
			m.out.Shadowed = append(m.out.Shadowed, r)
		}
	}
	slices.SortFunc(m.out.Shadowed, Compare)
	removals = outsideIn(removals)
	m.supersede(removals)
	m.out.Actions = slices.Grow(m.out.Actions, len(removals))
	for _, a := range removals {
		a.Hold = m.stood(&a.Route) || a.Held != 0 || m.mustReturn(&a.Route)
		m.out.Actions = append(m.out.Actions, a)
	}
}

// stood reports whether a route was there before the prefix that it conflicts with was
// protected: the policy by which the table was last right let it stand.
func (m *maker) stood(r *Route) bool {
	if m.in.Before == nil {
		return m.in.Baseline
	}
	return Judge(m.in.Before, r).Decision != Conflict
}

// MayTake reports whether a delete that names r can take o: a system need not tell
// routes by all that they differ in. Linux takes a metric of 0, and a source address,
// protocol or gateway that is not named, for any; and a list of legs of IPv4 for
// another that it begins with.
func (r *Route) MayTake(o *Route) bool {
	open := func(named, is netip.Addr) bool { return !named.IsValid() || named == is }
	return r.Dst == o.Dst && r.TOS == o.TOS && r.Type == o.Type && r.Hop.Link == o.Hop.Link && !r.Same(*o) &&
		(r.Metric == 0 || r.Metric == o.Metric) && open(r.PrefSrc, o.PrefSrc) && open(r.Hop.Via, o.Hop.Via) &&
		(r.Dst.Addr().Is6() || strings.HasPrefix(r.More, o.More) && (r.Protocol == 0 || r.Protocol == o.Protocol))
}

func (m *maker) removal(c *candidate) Action {
	a := Action{Kind: Remove, Route: c.route, Verdict: c.verdict, First: c.first()}
	if c.verdict.Shared && divisible(&c.route) {
		a.Route = withLegs(c.route, func(h Hop) bool { return h.Link != c.verdict.Entry.Tunnel })
	}
	return a
}

// divisible reports whether single legs of the route can be deleted: those of
// IPv6 are routes of their own, unless a nexthop object gives them.
func divisible(r *Route) bool { return r.Dst.Addr().Is6() && r.NexthopID == 0 }

// withLegs reduces a multipath route to some of its legs.
func withLegs(r Route, keep func(Hop) bool) Route {
	var legs []Hop
	for h := range r.Hops() {
		if keep(h) {
			legs = append(legs, h)
		}
	}
	return r.WithHops(legs...)
}

// supersede finds for each removal the held route that it is a newer copy of:
// the identical ones first, so that none is taken for another's copy.
func (m *maker) supersede(removals []Action) {
	held := maps.Clone(m.heldIn)
	claim := func(same func(h *Held, r *Route) bool) {
		for i := range removals {
			a := &removals[i]
			rest := held[a.Route.Slot()]
			n := slices.IndexFunc(rest, func(h *Held) bool { return same(h, &a.Route) })
			if a.Held == 0 && n >= 0 {
				a.Held = rest[n].ID
				held[a.Route.Slot()] = slices.Concat(rest[:n], rest[n+1:])
			}
		}
	}
	claim(func(h *Held, r *Route) bool { return h.Route.Same(*r) })
	if m.in.Baseline {
		return // what stands was there beside what is held
	}
	claim(func(h *Held, r *Route) bool { return r.Replaces(&h.Route) })
}

// Superseded returns the ID of the held route that r is a newer copy of, or 0:
// the identical one if there is one, else one by the same owner in the same
// place. Those of r's slot are enough; they are yielded with their IDs.
func Superseded(held iter.Seq2[uint64, *Route], r *Route) (newer uint64) {
	for id, h := range held {
		switch {
		case h.Same(*r):
			return id
		case newer == 0 && r.Replaces(h):
			newer = id
		}
	}
	return newer
}

// heldAt yields the held routes of a slot.
func (m *maker) heldAt(s Slot) iter.Seq2[uint64, *Route] {
	return func(yield func(uint64, *Route) bool) {
		for _, h := range m.heldIn[s] {
			if !yield(h.ID, &h.Route) {
				return
			}
		}
	}
}

// mustReturn reports whether r comes back although it did not stand before
// the connection.
func (m *maker) mustReturn(r *Route) bool {
	return MustReturn(m.p, r) && (m.p.spec.RestoreAll || m.book.hasAddress(r))
}

// MustReturn reports whether a conflicting route must be written down before it
// is deleted even though it came while connected: every route when the policy
// restores all, else what the kernel derived from an address or the network's
// client from a lease. (Lose that, and a laptop that changed networks while
// connected is left without one.)
func MustReturn(p *Policy, r *Route) bool {
	return p.spec.RestoreAll || r.Connected() || r.leasedLink()
}

// restore brings back held routes that no longer conflict, and forgets those
// that the system would have dropped by now.
func (m *maker) restore() {
	superseded := map[uint64]bool{}
	for i := range m.out.Actions {
		if a := &m.out.Actions[i]; a.Held != 0 {
			superseded[a.Held] = true
		}
	}
	back := make([]Action, 0, m.due(superseded))
	for i := range m.in.Held {
		h := &m.in.Held[i]
		if superseded[h.ID] {
			continue
		}
		f := &m.fates[i]
		if f.why == "" && Judge(m.p, &f.rest).Decision == Conflict {
			continue
		}
		if f.why == "" {
			f.why = m.unwelcome(&f.rest)
		}
		if f.why != "" {
			m.out.Actions = append(m.out.Actions, Action{Kind: Forget, Route: h.Route, Held: h.ID, Why: f.why})
		} else {
			back = append(back, Action{Kind: Restore, Route: f.rest, Held: h.ID, Place: cmp.Or(h.Place, h.ID), First: h.First, Age: h.Age})
		}
	}
	back = orderRestore(back)
	m.out.Actions = append(append(m.out.Actions, m.lift(back)...), back...)
}

// due returns how many held routes may come back.
func (m *maker) due(superseded map[uint64]bool) (n int) {
	for i := range m.in.Held {
		if !superseded[m.in.Held[i].ID] && m.fates[i].why == "" && Judge(m.p, &m.fates[i].rest).Decision != Conflict {
			n++
		}
	}
	return n
}

// withdraw deletes routes of ours that nothing wants any more.
func (m *maker) withdraw() {
	slices.SortStableFunc(m.own, Compare)
	for _, o := range m.own {
		if m.behind[o] || !slices.ContainsFunc(m.wanted, o.serves) {
			m.out.Actions = append(m.out.Actions, Action{Kind: Withdraw, Route: o, Why: "no longer needed"})
		}
	}
	slices.SortStableFunc(m.out.Actions, func(a, b Action) int { return cmp.Compare(a.Kind, b.Kind) })
}

// unfit reports local addresses inside protected prefixes: the table of local
// addresses is asked before main and is never touched.
func (m *maker) unfit() {
	for i := range m.in.Links {
		l := &m.in.Links[i]
		for _, a := range l.Addrs {
			host := netip.PrefixFrom(a.Addr(), a.Addr().BitLen())
			if class, _ := m.p.classify(host); class == Protected && !m.p.isTunnel(l.Index) {
				m.out.Unfit = append(m.out.Unfit, Finding{Prefix: host, Link: l.Index,
					Text: "is this host's own address on " + l.Name + ": packets to it stay local"})
			}
		}
	}
}
