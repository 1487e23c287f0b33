package plan_test

import (
	"flag"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

var (
	firstSeed = flag.Uint64("seed", 1, "first seed of the random tables")
	cases     = flag.Int("cases", manyCases, "how many random tables")
)

// eachWorld runs a property on random worlds. A failure names its seed: run it
// again alone with -seed N -cases 1.
func eachWorld(t *testing.T, share int, property func(*testing.T, *world, *rand.Rand)) {
	for i := range uint64(max(1, *cases/share)) {
		seed := *firstSeed + i
		rng := seeded(seed)
		property(t, newWorld(rng), rng)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// TestPromise: connect, be attacked, disconnect, on random tables. After each
// of the first two the promise holds; after the last the table is as before.
func TestPromise(t *testing.T) {
	eachWorld(t, 1, func(t *testing.T, w *world, rng *rand.Rand) { w.live(t) })
}

// live is one world's life.
func (w *world) live(t *testing.T) {
	s := w.simulate()
	before := s.sys.Text()
	s.settle(t)
	loose := w.sandwiched(s.policy)
	w.holds(t, s, "connected")
	for range w.rng.IntN(3) {
		w.attack(s)
		s.settle(t)
		w.holds(t, s, "attacked")
	}
	if w.chance(30) {
		w.sabotage(s)
		s.settle(t)
		w.holds(t, s, "sabotaged")
		if t.Failed() {
			t.Log(w.describe(s))
		}
		return // the table cannot be what it was
	}
	s.disconnect(t)
	if len(s.held) > 0 && !t.Failed() {
		t.Errorf("still held after the disconnect: %+v", s.held)
	}
	if after := s.sys.Text(); !sameTable(before, after, loose) && !w.spec.RestoreAll && !t.Failed() {
		t.Errorf("after the disconnect the table differs:\n%s", difference(before, after))
	}
	if t.Failed() {
		t.Log(w.describe(s))
	}
}

// sandwiched returns the lines of IPv4 slots where a route that goes stands
// between two that stay. Prepending and appending cannot put it back between
// them: it comes back behind both, where it takes as little as it did before.
func (w *world) sandwiched(p *plan.Policy) map[string]bool {
	marks := map[plan.Slot]string{} // per slot: s for a route that stays, g for one that goes
	text := map[plan.Slot][]string{}
	for r := range w.table.Routes() {
		mark := "s"
		if plan.Judge(p, &r).Decision == plan.Conflict {
			mark = "g"
		}
		marks[r.Slot()] += mark
		_, extra, _ := strings.Cut(r.Raw, ";")
		text[r.Slot()] = append(text[r.Slot()], strings.TrimSpace(enforcetest.Text(r)+" "+extra))
	}
	out := map[string]bool{}
	for slot, m := range marks {
		if strings.Contains(strings.Trim(m, "g"), "g") && slot.Dst.Addr().Is4() {
			for _, line := range text[slot] {
				out[line] = true
			}
		}
	}
	return out
}

// sameTable compares two tables, but not the order of lines that are loose.
func sameTable(a, b string, loose map[string]bool) bool {
	return loosen(a, loose) == loosen(b, loose)
}

func loosen(text string, loose map[string]bool) string {
	all := strings.Split(text, "\n")
	for i := 0; i < len(all); i++ {
		end := i
		for end < len(all) && loose[all[end]] {
			end++
		}
		slices.Sort(all[i:end])
		i = max(i, end-1)
	}
	return strings.Join(all, "\n")
}

// sabotage does what an attacker with the right to can: it deletes and replaces
// routes, those of the tunnel and our own too, and turns nexthop objects round.
func (w *world) sabotage(s *simulation) {
	_ = s.sys.Do(1000, func(t *enforcetest.Table) error {
		for range 1 + w.rng.IntN(6) {
			all := slices.Collect(t.Routes())
			switch victim := pick(w, all); w.rng.IntN(4) {
			case 0:
				_ = t.DeleteExact(victim)
			case 1:
				other := w.route()
				other.Dst, other.Src, other.Metric, other.TOS, other.Expires = victim.Dst, victim.Src, victim.Metric, victim.TOS, 0
				_ = t.Add(other, enforcetest.Replace)
			case 2:
				t.SetNexthop(uint32(1+w.rng.IntN(4)), w.hop(&w.universe[0], true))
			case 3:
				_ = t.Add(w.route(), enforcetest.Replace)
			}
		}
		return nil
	})
	s.log = append(s.log, "sabotage, leaving\n"+named(s.sys.Text()))
}

// staying lists the routes that do not conflict.
func staying(t *enforcetest.Table, p *plan.Policy) string {
	var out []string
	for r := range t.Routes() {
		if plan.Judge(p, &r).Decision != plan.Conflict {
			out = append(out, enforcetest.Text(r))
		}
	}
	return strings.Join(out, "\n")
}

const protoDHCP = 16

// attack adds routes that conflict.
func (w *world) attack(s *simulation) {
	for range 1 + w.rng.IntN(6) {
		r := w.route()
		if r.Dst.Addr().Is6() && (touches(r, tun0) || touches(r, tun1)) {
			continue // as a leg of a multipath route it would stay
		}
		r.Protocol = protoDHCP // an owner's newer copy would replace the held one
		how := pick(w, []enforcetest.How{enforcetest.Append, enforcetest.Prepend})
		_ = s.sys.Do(1000, func(t *enforcetest.Table) error {
			before := t.Clone()
			if err := t.Add(r, how); err != nil {
				return err
			}
			if staying(t, s.policy) != staying(before, s.policy) {
				*t = *before // the table would never be again what it was
			}
			return nil
		})
	}
}

// holds checks the promise and that the plan is at rest.
func (w *world) holds(t *testing.T, s *simulation, when string) {
	t.Helper()
	table := s.sys.Snapshot()
	for a := range w.addresses(table, s.policy) {
		if a.Is6() && table.Hidden() {
			continue // no dump shows what stands between legs that stay
		}
		w.holdsAt(t, table, s.policy, a, when)
	}
	w.atRest(t, s, when)
	w.pinholesAreSound(t, s, when)
}

// addresses returns the first and last address of every prefix in the table
// and the policy, and their neighbours.
func (w *world) addresses(table *enforcetest.Table, p *plan.Policy) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	add := func(p netip.Prefix) {
		first, last := p.Masked().Addr(), lastOf(p)
		for _, a := range []netip.Addr{first, last, first.Prev(), last.Next()} {
			if a.IsValid() {
				out[a] = true
			}
		}
	}
	for r := range table.Routes() {
		add(r.Dst)
	}
	for e := range p.Entries() {
		add(e.Prefix)
	}
	for _, i := range plan.IgnoredRanges() {
		add(i)
	}
	return out
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// holdsAt checks one address, for every TOS and source.
func (w *world) holdsAt(t *testing.T, table *enforcetest.Table, p *plan.Policy, a netip.Addr, when string) {
	t.Helper()
	class, e := p.Lookup(a)
	if class != plan.Protected {
		return
	}
	for _, tos := range []uint8{0, 0x08, 0x10} {
		for _, src := range append([]netip.Addr{{}}, w.sourcesFor(a)...) {
			r, ok := table.Lookup(a, tos, src)
			if e.OtherTable && (!ok || r.Dst.Bits() <= e.Prefix.Bits()) {
				continue
			}
			if ok && plan.Judge(p, &r).Decision == plan.Report {
				continue
			}
			if !ok || !leavesBy(r, e.Tunnel) {
				t.Errorf("%s: %v tos %#x from %v must leave by %s (%v), selects %s", when, a, tos, src, linkName(e.Tunnel), e.Prefix, say(r))
				return
			}
		}
		if a.Is6() {
			return
		}
	}
}

func (w *world) sourcesFor(a netip.Addr) []netip.Addr {
	if a.Is4() {
		return nil
	}
	return w.universe[1].sources
}

func touches(r plan.Route, link uint32) bool {
	for h := range r.Hops() {
		if h.Link == link {
			return true
		}
	}
	return false
}

func leavesBy(r plan.Route, tunnel uint32) bool {
	for h := range r.Hops() {
		if h.Link != tunnel {
			return false
		}
	}
	return r.Type == plan.Unicast
}

// atRest checks that a second plan has nothing to do and teaches nothing new,
// and that the order of reading does not matter.
func (w *world) atRest(t *testing.T, s *simulation, when string) {
	t.Helper()
	pl := s.make(s.dump())
	if !pl.Settled() || pl.Policy != s.policy {
		t.Errorf("%s: not at rest, policy changed %v:\n%s", when, pl.Policy != s.policy, strings.Join(lines(pl), "\n"))
	}
}

// pinholesAreSound checks that the plan excludes nothing but the servers and
// the gateways of the table.
func (w *world) pinholesAreSound(t *testing.T, s *simulation, when string) {
	t.Helper()
	var sound []netip.Addr
	for _, x := range w.spec.Sessions {
		sound = append(sound, x.Servers...)
	}
	for _, u := range w.universe {
		for _, g := range u.gates {
			sound = append(sound, g)
		}
	}
	for _, p := range s.policy.Spec().Pinholes {
		if !p.IsSingleIP() || !slices.Contains(sound, p.Addr()) {
			t.Errorf("%s: pinhole %v is neither a server nor a gateway", when, p)
		}
	}
}

// TestOrderDoesNotMatter reads tables with their slots in random order: within
// a slot the order is the kernel's, between slots it means nothing.
func TestOrderDoesNotMatter(t *testing.T) {
	eachWorld(t, 4, func(t *testing.T, w *world, rng *rand.Rand) {
		s := w.simulate()
		dump := s.dump()
		want := s.make(dump)
		for range 3 {
			shuffled := shuffleSlots(dump, rng)
			got := s.make(shuffled)
			if a, b := strings.Join(lines(want), "\n"), strings.Join(lines(got), "\n"); a != b {
				t.Errorf("in table order\n%s\nin another\n%s\n%s", a, b, w.describe(s))
			}
			if !slices.Equal(want.Missing, got.Missing) || !slices.Equal(want.Policy.Spec().Pinholes, got.Policy.Spec().Pinholes) {
				t.Errorf("missing %v and %v, pinholes %v and %v", want.Missing, got.Missing, want.Policy.Spec().Pinholes, got.Policy.Spec().Pinholes)
			}
		}
	})
}

func shuffleSlots(in []plan.Route, rng *rand.Rand) []plan.Route {
	var slots [][]plan.Route
	at := map[plan.Slot]int{}
	for _, r := range in {
		i, ok := at[r.Slot()]
		if !ok {
			i = len(slots)
			at[r.Slot()] = i
			slots = append(slots, nil)
		}
		slots[i] = append(slots[i], r)
	}
	rng.Shuffle(len(slots), func(i, j int) { slots[i], slots[j] = slots[j], slots[i] })
	return slices.Concat(slots...)
}

// TestCrash kills the process after each step of connecting and of
// disconnecting. Whether the next one connects again or only recovers, in the
// end the table is as before.
func TestCrash(t *testing.T) {
	eachWorld(t, 20, func(t *testing.T, w *world, _ *rand.Rand) {
		for _, c := range []crash{{}, {reconnect: true}, {late: true}, {late: true, reconnect: true}} {
			for c.after = 0; w.crashes(t, c) && !t.Failed(); c.after++ {
			}
		}
	})
}

// crash says when the process dies and what the next one does.
type crash struct {
	after     int  // steps
	late      bool // of the disconnect; else of the connect
	reconnect bool // the next process connects before it disconnects
}

// crashes lives one life with a crash in it. It is false when the life was over
// before the crash came.
func (w *world) crashes(t *testing.T, c crash) bool {
	s := w.simulate()
	before := s.sys.Text()
	if c.late {
		s.settle(t)
	}
	loose := w.sandwiched(s.policy)
	s.fuse = c.after
	alive := false
	if c.late {
		alive = s.disconnect(t)
	} else {
		alive = s.settle(t)
	}
	s.fuse = -1
	s.log = append(s.log, "crash")
	if c.reconnect {
		s.policy, s.baseline = w.policy, true
		s.settle(t)
		w.holds(t, s, "connected again")
	}
	s.disconnect(t)
	if after := s.sys.Text(); !sameTable(before, after, loose) {
		t.Errorf("%+v: the table differs:\n%s", c, difference(before, after))
	}
	if t.Failed() {
		t.Log(w.describe(s))
	}
	return !alive
}

// difference lists the lines that only one text has, or says that the order
// differs.
func difference(before, after string) string {
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	var out []string
	for _, l := range a {
		if !slices.Contains(b, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range b {
		if !slices.Contains(a, l) {
			out = append(out, "+ "+l)
		}
	}
	if out == nil {
		for i := range a {
			if a[i] != b[i] {
				return "order or number: " + a[i] + " is now " + b[i]
			}
		}
	}
	return strings.Join(out, "\n")
}
