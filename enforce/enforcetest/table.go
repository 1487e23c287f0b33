package enforcetest

import (
	"cmp"
	"errors"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// What a Table answers when it refuses, named as Linux does.
var (
	ErrExists   = errors.New("file exists (EEXIST)")
	ErrNotFound = errors.New("no such process (ESRCH)")
	ErrAbsent   = errors.New("no such file or directory (ENOENT)")
	ErrNoLink   = errors.New("no such device (ENODEV)")
	ErrLinkDown = errors.New("network is down (ENETDOWN)")
	ErrMute6    = errors.New("IPv6 is disabled on nexthop device (EACCES)")
	ErrGateway  = errors.New("nexthop has invalid gateway (ENETUNREACH)")
	ErrSource   = errors.New("invalid preferred source address (EINVAL)")
	ErrNexthop  = errors.New("nexthop id does not exist (EINVAL)")
)

// How says in which way a route is added.
type How uint8

// The ways to add a route: iproute2's verbs of the same names.
const (
	Add     How = iota // refuse when the slot is taken
	Append             // behind the slot's other routes
	Prepend            // ahead of the slot's other routes
	Replace            // in place of the slot's first route, or new
	Change             // in place of the slot's first route, which must exist
)

// The route protocols that a Table gives out, in Linux's numbers. ProtoOwn
// stands for culvert's.
const (
	ProtoKernel uint8 = 2
	ProtoBoot   uint8 = 3
	ProtoStatic uint8 = 4
	ProtoOwn    uint8 = 199
)

// Table is a main routing table in memory. It keeps Linux's order, merges
// IPv6 routes into multipath ones, resolves nexthop objects, and loses routes
// with their interfaces and addresses as Linux does. It is not safe for
// concurrent use. The zero Table is empty and ready.
type Table struct {
	rows   []row // in the order of a dump
	links  []plan.Link
	groups map[uint32]nexthop
	serial int
	hear   func(announcement) // nil: nobody listens
}

// row is a route as it is stored: an IPv6 multipath route is one row per leg.
type row struct {
	r      plan.Route
	extra  string // attributes that a plan.Route does not know, as text
	serial int
}

// nexthop is a nexthop object; one without hops is a blackhole.
type nexthop struct{ hops []plan.Hop }

// announcement is what the table says of a change to whoever listens.
type announcement struct {
	change happening
	route  plan.Route
	why    string // for hint
}

type happening uint8

const (
	added happening = iota
	deleted
	hint   // something happened that may have changed the table
	urgent // the same, of an interface
)

func (t *Table) say(c happening, r plan.Route) {
	if t.hear != nil {
		t.hear(announcement{change: c, route: r})
	}
}

func (t *Table) hint(why string) {
	if t.hear != nil {
		t.hear(announcement{change: hint, why: why})
	}
}

// hurry is a hint that an interface changed.
func (t *Table) hurry(why string) {
	if t.hear != nil {
		t.hear(announcement{change: urgent, why: why})
	}
}

// Listen has route told of each change that the table announces from then on, and other of
// whatever may have changed it besides: urgent is what came of an interface. Nobody else
// listens any more.
func (t *Table) Listen(route func(enforce.Change, plan.Route), other func(why string, urgent bool)) {
	t.hear = func(a announcement) {
		switch a.change {
		case hint, urgent:
			other(a.why, a.change == urgent)
		case deleted:
			route(enforce.Deleted, a.route)
		default:
			route(enforce.Added, a.route)
		}
	}
}

// Clone returns an independent copy that nobody listens to.
func (t *Table) Clone() *Table {
	links := slices.Clone(t.links)
	for i := range links {
		links[i].Addrs = slices.Clone(links[i].Addrs)
	}
	return &Table{rows: slices.Clone(t.rows), links: links, groups: maps.Clone(t.groups), serial: t.serial}
}

// Routes yields the table as a dump does: resolved, merged, in order. The
// table may change while it is read; the reading does not see it.
func (t *Table) Routes() iter.Seq[plan.Route] {
	rows := slices.Clone(t.rows)
	return func(yield func(plan.Route) bool) {
		for i := 0; i < len(rows); i = afterLegs(rows, i) {
			if !yield(t.assemble(rows, i)) {
				return
			}
		}
	}
}

// afterLegs returns where the dump goes on after rows[i]: behind the last leg
// of its multipath route. What stands between the legs is left out, and that
// is no mistake of this fake.
func afterLegs(rows []row, i int) int {
	last := i
	for j := i + 1; j < len(rows); j++ {
		if siblings(&rows[i].r, &rows[j].r) {
			last = j
		}
	}
	return last + 1
}

// Hidden reports whether routes stand in the table that a dump leaves out:
// IPv6 ones between the legs of a multipath route of their slot.
func (t *Table) Hidden() bool {
	dumped := 0
	for r := range t.Routes() {
		dumped += len(slices.Collect(r.Hops()))
		if r.NexthopID != 0 || r.Dst.Addr().Is4() {
			dumped -= len(slices.Collect(r.Hops())) - 1
		}
	}
	return dumped < len(t.rows)
}

// assemble returns the whole route that begins with rows[i].
func (t *Table) assemble(rows []row, i int) plan.Route {
	r := rows[i].r
	hops := []plan.Hop{r.Hop}
	if merges(&r) {
		for _, o := range rows {
			if o.serial != rows[i].serial && siblings(&o.r, &r) {
				hops = append(hops, o.r.Hop)
			}
		}
		r = r.WithHops(hops...)
	}
	r.Raw = strconv.Itoa(rows[i].serial) + ";" + rows[i].extra
	t.resolve(&r)
	r.Dead = r.Dead || t.dead(&r)
	return r
}

// resolve fills in what the route's nexthop object says.
func (t *Table) resolve(r *plan.Route) {
	nh, ok := t.groups[r.NexthopID]
	if r.NexthopID == 0 || !ok {
		return
	}
	*r = r.WithHops(nh.hops...)
	if len(nh.hops) == 0 {
		r.Type = plan.Blackhole
	}
}

func (t *Table) dead(r *plan.Route) bool {
	if r.Type != plan.Unicast {
		return false
	}
	for h := range r.Hops() {
		if l := t.link(h.Link); l == nil || l.Up {
			return false
		}
	}
	return true
}

// Add puts a route in and says whether Linux would have. A route's Raw may
// carry attributes that plan does not know: see [WithExtra].
func (t *Table) Add(r plan.Route, how How) error {
	r, extra := t.stored(r)
	if err := t.admissible(&r, extra); err != nil {
		return err
	}
	if r.Dst.Addr().Is4() {
		return t.add4(r, extra, how)
	}
	return t.add6(r, extra, how)
}

// stored reduces a route to what the kernel keeps of it.
func (t *Table) stored(r plan.Route) (plan.Route, string) {
	_, extra, _ := strings.Cut(r.Raw, ";")
	r.Raw = ""
	if r.Origin == plan.Own {
		r.Protocol = ProtoOwn
	} else if r.Protocol == ProtoOwn {
		r.Origin = plan.Own // it looks like it, whoever is asked
	}
	if r.Dst.Addr().Is6() && r.Metric == 0 {
		r.Metric = 1024
	}
	if _, ok := t.groups[r.NexthopID]; ok {
		r.Type = plan.Unicast // whatever the object made it look like
		r = r.WithHops()
	}
	if rejecting(r.Type) {
		r = r.WithHops()
	}
	return r, extra
}

// admissible refuses what the kernel would refuse to add.
func (t *Table) admissible(r *plan.Route, extra string) error {
	if r.NexthopID != 0 {
		if _, ok := t.groups[r.NexthopID]; !ok {
			return ErrNexthop
		}
		return nil
	}
	if r.PrefSrc.IsValid() && !t.hasAddress(r.PrefSrc) {
		return ErrSource
	}
	if rejecting(r.Type) {
		return nil
	}
	for h := range r.Hops() {
		if err := t.reachable(h, hasWord(extra, "onlink")); err != nil {
			return err
		}
		if r.Dst.Addr().Is6() && t.link(h.Link).Mute6 {
			return ErrMute6
		}
	}
	return nil
}

func (t *Table) reachable(h plan.Hop, onlink bool) error {
	switch l := t.link(h.Link); {
	case l == nil:
		return ErrNoLink
	case !l.Up:
		return ErrLinkDown
	case !h.Via.IsValid() || onlink || h.Via.IsLinkLocalUnicast() && h.Via.Is6():
		return nil
	}
	for i := range t.rows {
		o := &t.rows[i].r
		if o.Hop.Link == h.Link && !o.Hop.Via.IsValid() && o.Type == plan.Unicast && o.Dst.Contains(h.Via) {
			return nil
		}
	}
	return ErrGateway
}

func (t *Table) add4(r plan.Route, extra string, how How) error {
	first, end := t.slot(&r)
	if first == end {
		if how == Change {
			return ErrAbsent
		}
		t.insert(first, r, extra)
		return nil
	}
	if how == Add {
		return ErrExists
	}
	twin := slices.IndexFunc(t.rows[first:end], func(o row) bool { return o.r == r && o.extra == extra })
	switch {
	case twin == 0 && (how == Replace || how == Change):
		return nil
	case twin >= 0:
		return ErrExists
	case how == Replace || how == Change:
		t.rows = slices.Delete(t.rows, first, first+1) // the victim is not announced
		t.insert(first, r, extra)
	case how == Append:
		t.insert(end, r, extra)
	default:
		t.insert(first, r, extra)
	}
	return nil
}

// add6 adds each leg as a route of its own. The whole is announced once.
func (t *Table) add6(r plan.Route, extra string, how How) error {
	first, end := t.slot(&r)
	if how == Add && first != end {
		return ErrExists
	}
	if how == Change && first == end {
		return ErrAbsent
	}
	legs := slices.Collect(r.Hops())
	if t.twin6(&r, legs) && how != Replace && how != Change {
		return ErrExists
	}
	if how == Replace || how == Change {
		t.evict6(&r)
	}
	at := -1
	for _, h := range legs {
		leg := r.WithHops(h)
		if t.twin6(&leg, []plan.Hop{h}) {
			continue
		}
		_, end = t.slot(&leg)
		t.rows = slices.Insert(t.rows, end, t.row(leg, extra))
		if at < 0 {
			at = end
		}
	}
	if at >= 0 {
		t.say(added, t.assemble(t.rows, at))
	}
	return nil
}

// twin6 reports whether every leg is there already: IPv6 knows a route by its
// place and next hop alone.
func (t *Table) twin6(r *plan.Route, legs []plan.Hop) bool {
	first, end := t.slot(r)
	for _, h := range legs {
		known := slices.ContainsFunc(t.rows[first:end], func(o row) bool {
			return o.r.Hop == h && o.r.NexthopID == r.NexthopID && rejecting(o.r.Type) == rejecting(r.Type)
		})
		if !known {
			return false
		}
	}
	return true
}

// evict6 takes out what an IPv6 replace puts its route in place of: the whole
// multipath route for one that could join it, else the first that could not.
func (t *Table) evict6(r *plan.Route) {
	first, end := t.slot(r)
	victim := slices.IndexFunc(t.rows[first:end], func(o row) bool { return merges(&o.r) == merges(r) })
	if victim < 0 {
		return
	}
	gone := t.rows[first+victim]
	t.rows = slices.DeleteFunc(t.rows, func(o row) bool {
		return o.serial == gone.serial || siblings(&o.r, &gone.r)
	})
}

func (t *Table) row(r plan.Route, extra string) row {
	t.serial++
	return row{r: r, extra: extra, serial: t.serial}
}

func (t *Table) insert(at int, r plan.Route, extra string) {
	t.rows = slices.Insert(t.rows, at, t.row(r, extra))
	t.say(added, t.assemble(t.rows, at))
}

// slot returns the range of rows that share r's place; empty, it is where r
// belongs.
func (t *Table) slot(r *plan.Route) (first, end int) {
	for first < len(t.rows) && place(&t.rows[first].r, r) < 0 {
		first++
	}
	for end = first; end < len(t.rows) && place(&t.rows[end].r, r) == 0; end++ {
	}
	return first, end
}

// place orders rows as a dump lists them: within a prefix by TOS, highest
// first, then by metric.
func place(a, b *plan.Route) int {
	return cmp.Or(
		cmp.Compare(a.Dst.Addr().BitLen(), b.Dst.Addr().BitLen()),
		a.Dst.Addr().Compare(b.Dst.Addr()),
		cmp.Compare(a.Dst.Bits(), b.Dst.Bits()),
		a.Src.Addr().Compare(b.Src.Addr()),
		cmp.Compare(a.Src.Bits(), b.Src.Bits()),
		cmp.Compare(b.TOS, a.TOS),
		cmp.Compare(a.Metric, b.Metric),
	)
}

// merges reports whether IPv6 would make r a leg of a multipath route.
func merges(r *plan.Route) bool {
	return r.Dst.Addr().Is6() && r.Type == plan.Unicast && r.Hop.Via.IsValid() && r.NexthopID == 0 && r.Expires == 0
}

func siblings(a, b *plan.Route) bool {
	return merges(a) && merges(b) && place(a, b) == 0
}

func rejecting(t plan.Type) bool {
	return t == plan.Blackhole || t == plan.Unreachable || t == plan.Prohibit || t == plan.Throw
}

// Delete deletes a route as Linux does when every attribute of it is named.
// One thing Linux cannot be told: an IPv4 metric of 0 matches any metric.
func (t *Table) Delete(r plan.Route) error {
	return t.remove(r, func(stored *plan.Route, _ string) bool {
		want, _ := t.stored(r)
		want.Dead = stored.Dead
		if want.Metric == 0 {
			want.Metric = stored.Metric
		}
		want.Expires = stored.Expires
		return want == *stored
	})
}

// DeleteExact deletes the very route or nothing.
func (t *Table) DeleteExact(r plan.Route) error {
	_, extra := t.stored(r)
	return t.remove(r, func(stored *plan.Route, e string) bool {
		want, _ := t.stored(r)
		want.Dead, want.Expires = stored.Dead, stored.Expires
		return want == *stored && (r.Raw == "" || e == extra)
	})
}

// remove deletes the first IPv4 route that matches, or the legs of an IPv6 one.
func (t *Table) remove(r plan.Route, match func(*plan.Route, string) bool) error {
	if r.Dst.Addr().Is6() && r.NexthopID == 0 {
		return t.removeLegs(r)
	}
	i := slices.IndexFunc(t.rows, func(o row) bool { return match(&o.r, o.extra) })
	if i < 0 {
		return ErrNotFound
	}
	t.drop(i)
	return nil
}

func (t *Table) removeLegs(r plan.Route) error {
	stored, _ := t.stored(r)
	err := ErrNotFound
	for h := range stored.Hops() {
		i := slices.IndexFunc(t.rows, func(o row) bool {
			return place(&o.r, &stored) == 0 && o.r.NexthopID == 0 &&
				o.r.Hop == h && rejecting(o.r.Type) == rejecting(r.Type)
		})
		if i >= 0 {
			t.drop(i)
			err = nil
		}
	}
	return err
}

// drop deletes a row and announces it: alone, also when it was a leg.
func (t *Table) drop(i int) {
	gone := t.rows[i]
	t.rows = slices.Delete(t.rows, i, i+1)
	r := gone.r
	r.Raw = strconv.Itoa(gone.serial) + ";" + gone.extra
	t.resolve(&r)
	t.say(deleted, r)
}

// WithExtra returns r carrying attributes that plan does not know, for example
// "mtu 1400". The word "onlink" spares its gateways the check.
func WithExtra(r plan.Route, extra string) plan.Route {
	r.Raw = ";" + extra
	return r
}

func hasWord(text, word string) bool { return slices.Contains(strings.Fields(text), word) }
