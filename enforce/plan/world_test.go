package plan_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// world is a random machine: interfaces, a main table, nexthop objects, and a
// policy to be enforced on it. All of it follows from the choices of rng.
type world struct {
	rng      choices
	table    enforcetest.Table
	spec     plan.Spec
	policy   *plan.Policy
	universe []universe // the ranges where everything happens, one per family
}

// choices is where random decisions come from: a generator or a fuzzer's bytes.
type choices interface {
	IntN(n int) int
}

// universe is a small range of addresses, so that prefixes meet often.
type universe struct {
	base    netip.Addr
	lengths []int
	metrics []uint32
	gates   map[uint32]netip.Addr // a neighbour on each link
	sources []netip.Addr
}

func newWorld(rng choices) *world {
	w := &world{rng: rng, universe: []universe{
		{
			base: netip.MustParseAddr("10.0.0.0"), lengths: []int{0, 1, 8, 24, 26, 27, 28, 28, 29, 30, 31, 32},
			metrics: []uint32{0, 0, 50, 100},
			gates: map[uint32]netip.Addr{eth0: netip.MustParseAddr("192.0.2.254"), eth1: netip.MustParseAddr("10.0.0.30"),
				docker0: netip.MustParseAddr("172.17.0.9"), tun0: netip.MustParseAddr("10.8.0.1"), tun1: netip.MustParseAddr("10.9.0.1")},
		},
		{
			base: netip.MustParseAddr("fd00::"), lengths: []int{0, 1, 7, 64, 122, 123, 124, 124, 125, 126, 127, 128},
			metrics: []uint32{1, 256, 1024, 1024},
			gates: map[uint32]netip.Addr{eth0: netip.MustParseAddr("fe80::2"), eth1: netip.MustParseAddr("fd00::1e"),
				docker0: netip.MustParseAddr("fe80::4"), tun0: netip.MustParseAddr("fd08::1"), tun1: netip.MustParseAddr("fd09::1")},
			sources: []netip.Addr{{}, netip.MustParseAddr("fd08::2"), netip.MustParseAddr("fd00::1d"), netip.MustParseAddr("2001:db8::9")},
		},
	}}
	w.makeLinks()
	w.makeSpec()
	w.makeRoutes()
	return w
}

func (w *world) chance(percent int) bool { return w.rng.IntN(100) < percent }

func pick[T any](w *world, from []T) T { return from[w.rng.IntN(len(from))] }

func (w *world) makeLinks() {
	add := func(index uint32, addrs string) {
		w.table.AddLink(plan.Link{Index: index, Name: linkName(index), Up: true, Addrs: addresses(addrs)})
	}
	add(1, "127.0.0.1/8 ::1/128")
	add(eth0, "192.0.2.10/24 fe80::10/64")
	add(eth1, "10.0.0.29/29 fd00::1d/125") // a LAN inside the universe
	add(docker0, "172.17.0.1/16 fe80::11/64")
	add(tun0, "10.8.0.2/24 fd08::2/64")
	add(tun1, "10.9.0.2/24 fd09::2/64")
	for id := range uint32(3) {
		w.table.SetNexthop(id+1, w.hop(&w.universe[0], true))
	}
	w.table.SetNexthop(4, w.hop(&w.universe[0], true), w.hop(&w.universe[0], true))
	if w.chance(20) {
		w.table.SetNexthop(3)
	}
}

func (w *world) prefix(u *universe) netip.Prefix {
	b := u.base.AsSlice()
	b[len(b)-1] = byte(w.rng.IntN(64))
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, pick(w, u.lengths)).Masked()
}

func (w *world) prefixes(n int) (out []netip.Prefix) {
	for range n {
		out = append(out, w.prefix(&w.universe[w.rng.IntN(len(w.universe))]))
	}
	return out
}

func (w *world) makeSpec() {
	w.spec = plan.Spec{KeepUnreachable: w.chance(10), RestoreAll: w.chance(10)}
	for _, tunnel := range []uint32{tun0, tun1}[:1+w.rng.IntN(2)] {
		s := plan.Session{Tunnel: tunnel, TunnelUp: true, Protect: w.prefixes(1 + w.rng.IntN(4)), Exclude: w.prefixes(w.rng.IntN(3))}
		if w.chance(30) {
			s.Servers = append(s.Servers, w.server())
		}
		if w.chance(10) {
			s.KeepLinks = []uint32{docker0}
		}
		if w.chance(10) {
			s.OtherTable = s.Protect[:1]
		}
		w.spec.Sessions = append(w.spec.Sessions, s)
	}
	w.policy = w.soundPolicy()
}

func (w *world) server() netip.Addr {
	if w.chance(30) {
		return netip.MustParseAddr("203.0.113.5")
	}
	return w.prefix(&w.universe[w.rng.IntN(len(w.universe))]).Addr().Next()
}

// soundPolicy leaves out of the spec what Build finds wrong with it.
func (w *world) soundPolicy() *plan.Policy {
	for {
		p, problems := plan.Build(w.spec)
		if len(problems) == 0 {
			return p
		}
		bad := problems[0].Prefix
		for i := len(w.spec.Sessions) - 1; i >= 0; i-- {
			s := &w.spec.Sessions[i]
			without := func(from []netip.Prefix) []netip.Prefix {
				return slices.DeleteFunc(slices.Clone(from), func(p netip.Prefix) bool { return p == bad })
			}
			if len(without(s.Exclude)) < len(s.Exclude) {
				s.Exclude = without(s.Exclude)
				break
			}
			if len(without(s.Protect)) < len(s.Protect) {
				s.Protect = without(s.Protect)
				break
			}
		}
	}
}

func (w *world) makeRoutes() {
	w.add(rt("default via 192.0.2.254 dev eth0 proto boot"), enforcetest.Append)
	if w.chance(70) {
		w.add(rt("::/0 via fe80::2 dev eth0 metric 1024 proto static"), enforcetest.Append)
	}
	for range w.rng.IntN(25) {
		w.add(w.route(), pick(w, []enforcetest.How{enforcetest.Append, enforcetest.Prepend}))
	}
	for _, s := range w.spec.Sessions {
		for _, p := range s.Protect {
			if w.chance(70) {
				w.add(w.vpnRoute(p, s.Tunnel), pick(w, []enforcetest.How{enforcetest.Append, enforcetest.Prepend}))
			}
		}
	}
}

// add adds a route if the kernel would. One that takes a subnet's own place and
// goes by a gateway inside it is left out: ahead of the subnet, it could be put
// back in its place or without onlink, not both.
func (w *world) add(r plan.Route, how enforcetest.How) {
	for h := range r.Hops() {
		if h.Link == eth1 && h.Via.IsValid() && (r.Dst == prefix("10.0.0.24/29", "") || r.Dst == prefix("fd00::18/125", "")) {
			return
		}
	}
	_ = w.table.Add(r, how)
}

func (w *world) vpnRoute(p netip.Prefix, tunnel uint32) plan.Route {
	u := &w.universe[0]
	if p.Addr().Is6() {
		u = &w.universe[1]
	}
	r := plan.Route{Dst: p, Hop: plan.Hop{Link: tunnel}, Metric: pick(w, u.metrics), Protocol: enforcetest.ProtoStatic}
	if p.Addr().Is6() && p.IsSingleIP() {
		r.Metric = 1024 // else a host route of ours would become a leg of it
	}
	if w.chance(50) {
		r.Hop.Via = u.gates[tunnel]
	}
	return r
}

func (w *world) hop(u *universe, gated bool) plan.Hop {
	h := plan.Hop{Link: pick(w, []uint32{eth0, eth0, eth1, docker0, tun0, tun0, tun1})}
	if gated {
		h.Via = u.gates[h.Link]
	}
	return h
}

// route makes a route of any kind.
func (w *world) route() plan.Route {
	u := &w.universe[w.rng.IntN(len(w.universe))]
	r := plan.Route{Dst: w.prefix(u), Metric: pick(w, u.metrics), Protocol: enforcetest.ProtoStatic}
	switch {
	case w.chance(15):
		r.Type = pick(w, []plan.Type{plan.Blackhole, plan.Unreachable, plan.Prohibit, plan.Throw, plan.Throw, plan.Local})
	case w.chance(15):
		r = r.WithHops(w.hop(u, true), w.hop(u, true))
	case w.chance(12):
		r.NexthopID = uint32(1 + w.rng.IntN(4))
	default:
		r.Hop = w.hop(u, w.chance(50))
	}
	if r.Type == plan.Local {
		r.Hop.Link = eth0
	}
	if u.base.Is4() {
		w.attributes4(&r)
	} else {
		w.attributes6(&r)
	}
	return r
}

func (w *world) attributes4(r *plan.Route) {
	if w.chance(20) {
		r.TOS = pick(w, []uint8{0x08, 0x10})
	}
	if w.chance(10) {
		r.PrefSrc = netip.MustParseAddr("192.0.2.10")
	}
	r.Protocol = pick(w, []uint8{enforcetest.ProtoBoot, enforcetest.ProtoStatic})
	if w.chance(10) {
		*r = enforcetest.WithExtra(*r, "mtu 1400")
	}
}

func (w *world) attributes6(r *plan.Route) {
	if w.chance(15) {
		r.Src = pick(w, prefixes("fd08::/64 fd00::/64 fd00::18/125"))
	}
	if r.Dst.IsSingleIP() && r.Metric == 1 {
		r.Metric = 256 // else our own host routes would become legs of it
	}
	if r.Type == plan.Unicast && r.NexthopID == 0 && !r.Multipath() && w.chance(15) {
		r.Pref = pick(w, []plan.Pref{plan.PrefLow, plan.PrefHigh})
		r.Expires = 3000
	}
}

// simulation enforces a world's policy as an Enforcer does, in steps that can
// be cut short anywhere.
type simulation struct {
	sys      *enforcetest.System
	policy   *plan.Policy
	held     []plan.Held
	lastID   uint64
	baseline bool
	fuse     int // steps until the crash; negative: none
	log      []string
}

func (w *world) simulate() *simulation {
	return &simulation{sys: enforcetest.NewSystem(&w.table), policy: w.policy, baseline: true, fuse: -1}
}

func (s *simulation) make(table []plan.Route) plan.Plan {
	return plan.Make(plan.Input{Policy: s.policy, Table: slices.Values(table), Held: s.held, Links: s.sys.Snapshot().Links(), Baseline: s.baseline})
}

func (s *simulation) dump() []plan.Route { return slices.Collect(s.sys.Snapshot().Routes()) }

// burn counts one step and reports whether the process died before it.
func (s *simulation) burn() bool {
	if s.fuse == 0 {
		return true
	}
	s.fuse--
	return false
}

// settle judges and acts until nothing is left to do. It is false when the
// process died on the way.
func (s *simulation) settle(t *testing.T) bool {
	t.Helper()
	for range 4 {
		pl := s.make(s.dump())
		s.policy = pl.Policy
		if !s.carryOut(t, pl.Actions) {
			return false
		}
		if pl.Settled() {
			s.baseline = false
			return true
		}
	}
	t.Errorf("not settled after 4 rounds:\n%s", strings.Join(lines(s.make(s.dump())), "\n"))
	return true
}

// carryOut writes down, acts and crosses out.
func (s *simulation) carryOut(t *testing.T, actions []plan.Action) bool {
	t.Helper()
	for _, a := range actions {
		if s.mustWrite(a) {
			if s.burn() {
				return false
			}
			s.lastID++
			s.held = append(s.held, plan.Held{ID: s.lastID, Route: a.Route, First: a.First})
		}
	}
	for _, a := range actions {
		if s.burn() {
			return false
		}
		s.log = append(s.log, lines(plan.Plan{Actions: []plan.Action{a}})[0])
		if err := s.sys.Apply(t.Context(), []plan.Action{a})[0]; err != nil && !errors.Is(err, enforcetest.ErrExists) && !errors.Is(err, enforcetest.ErrNotFound) {
			t.Errorf("%s: %v", lines(plan.Plan{Actions: []plan.Action{a}})[0], err)
		}
	}
	for _, a := range actions {
		if s.burn() {
			return false
		}
		s.crossOut(a)
	}
	return true
}

// mustWrite reports whether a removal needs an entry of its own.
func (s *simulation) mustWrite(a plan.Action) bool {
	i := slices.IndexFunc(s.held, func(h plan.Held) bool { return h.ID == a.Held })
	return a.Kind == plan.Remove && a.Hold && (i < 0 || !s.held[i].Route.Same(a.Route))
}

func (s *simulation) crossOut(a plan.Action) {
	superseded := a.Kind == plan.Remove && slices.ContainsFunc(s.held, func(h plan.Held) bool { return h.ID > a.Held && h.Route.Same(a.Route) })
	if a.Kind == plan.Restore || a.Kind == plan.Forget || superseded {
		s.held = slices.DeleteFunc(s.held, func(h plan.Held) bool { return h.ID == a.Held })
	}
}

// disconnect takes the policy away and settles.
func (s *simulation) disconnect(t *testing.T) bool {
	t.Helper()
	s.policy, _ = plan.Build(plan.Spec{})
	s.baseline = false
	return s.settle(t)
}

// describe tells a failure from its beginning.
func (w *world) describe(s *simulation) string {
	var b strings.Builder
	for _, x := range w.spec.Sessions {
		fmt.Fprintf(&b, "session %s: %+v\n", linkName(x.Tunnel), x)
	}
	fmt.Fprintf(&b, "keep_unreachable %v, restore all %v, pinholes %v\n", w.spec.KeepUnreachable, w.spec.RestoreAll, s.policy.Spec().Pinholes)
	fmt.Fprintf(&b, "began with\n%ssteps\n%s\nended with\n%s", named(w.table.Text()), strings.Join(s.log, "\n"), named(s.sys.Text()))
	return b.String()
}

func named(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		for i, name := range linkNames {
			if name != "" {
				line = strings.ReplaceAll(line, fmt.Sprintf(" dev %d ", i), " dev "+name+" ")
			}
		}
		out.WriteString("  " + line)
	}
	return out.String()
}

func seeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x63756c76657274)) }
