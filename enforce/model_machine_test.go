package enforce_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// machine is a world in one of its states: culvert over a kernel, and the same table
// without culvert, its twin, to which the same happens.
type machine struct {
	w        *world
	k        *kernel
	s        *enforce.Stepper // nil: the process is dead
	twin     *enforcetest.Table
	seen     map[plan.Route]fate // of the twin's routes
	open     map[string]opened   // the sessions that were asked for, by tunnel
	serial   int                 // of the sessions
	links    map[string]uint32   // the tunnels, by name
	fault    string              // what was found wrong while an operation ran
	unnoted  map[plan.Route]bool // culvert's own that it could not note before it died
	placed   map[plan.Route]bool // whose place is where their owners put them anew, while culvert did not see it
	free     map[plan.Route]bool // whose fate nobody can know: another took the place of one that is out
	flapped  map[plan.Route]bool // held when the kernel dropped them, and the table was not read since
	lost     bool                // an announcement was lost without a sign: the slow timer finds what it said
	changing bool                // a session is being opened or closed
	silent   bool                // the last session was closed, and said that all is restored
}

// opened is a session as it was asked for last.
type opened struct {
	enforce.Session
	serial int // of the session: a change keeps it
}

// fate is what a route of the twin's is to culvert.
type fate struct {
	rogue    bool // it came while connected and conflicted: it need not come back, and must not
	serial   int  // of the session that it conflicted with
	pardoned bool // that session was changed and lets it stand
	tunnel   bool // it is the VPN's
}

func newMachine(w *world) *machine {
	t := newWorldTable()
	m := &machine{w: w, k: newKernel(t), twin: t.Clone(), seen: map[plan.Route]fate{}, open: map[string]opened{}, links: maps.Clone(linkNames), free: map[plan.Route]bool{}, placed: map[plan.Route]bool{}, unnoted: map[plan.Route]bool{}, flapped: map[plan.Route]bool{}}
	m.k.echo = w.echo
	m.note()
	m.start()
	m.settle()
	for _, op := range opsOf(w.before) {
		if _, ok := m.do(op); !ok {
			panic("world " + w.name + " cannot begin with " + op)
		}
	}
	return m
}

func opsOf(text string) []string {
	var out []string
	for _, op := range strings.Split(text, ";") {
		if op = strings.TrimSpace(op); op != "" {
			out = append(out, op)
		}
	}
	return out
}

// start begins a process.
func (m *machine) start() {
	if m.w.process == nil {
		k := newKernel(&enforcetest.Table{})
		m.w.process = enforce.NewStepper(k, &k.store, m.w.opt)
	}
	m.s = m.w.process.Clone(m.k, &m.k.store) // to make one takes longer
	if err := m.s.Load(context.Background()); err != nil && !m.k.dead {
		m.fault = "start: " + err.Error()
	}
	m.k.watch = true
	m.level()
}

func (m *machine) clone() *machine {
	c := *m
	c.k, c.twin = m.k.clone(), m.twin.Clone()
	c.seen, c.open, c.links = maps.Clone(m.seen), maps.Clone(m.open), maps.Clone(m.links)
	c.unnoted = maps.Clone(m.unnoted)
	c.free, c.flapped, c.placed = maps.Clone(m.free), maps.Clone(m.flapped), maps.Clone(m.placed)
	if m.s != nil {
		c.s = m.s.Clone(c.k, &c.k.store)
	}
	return &c
}

// mostPasses bounds what settling may take.
const mostPasses = 8

// settle lets everything happen that follows by itself, but for the slow timer.
func (m *machine) settle() {
	for passes := 0; m.s != nil && !m.k.dead; {
		switch {
		case len(m.k.queue) > 0:
			m.k.serve(m.s)
		case m.s.Told() > 0:
			m.s.Event(context.Background())
		case m.s.Wanted() && m.k.full && passes > 1: // it tries again each second
			return
		case m.s.Wanted():
			if passes++; passes > mostPasses {
				m.fault = fmt.Sprintf("LIVELOCK: after %d readings another is wanted still", mostPasses)
				return
			}
			m.level()
		default:
			return
		}
	}
}

// level reads the table and makes it right.
func (m *machine) level() {
	before := maps.Clone(m.flapped)
	m.s.Level(context.Background())
	for leg := range before {
		if !m.k.dead {
			delete(m.flapped, leg)
		}
	}
	m.lost = false
}

// do carries out one operation. It is false where the operation cannot be done.
func (m *machine) do(op string) (died, ok bool) {
	base, at, acts := strings.Cut(op, "@")
	base, kill, kills := strings.Cut(base, "!")
	m.k.steps, m.k.kill, m.k.spots, m.k.spot = 0, 0, 0, 0
	if kills {
		m.k.kill, _ = strconv.Atoi(kill)
	}
	refused := false
	if acts {
		spot, inner, _ := strings.Cut(at, "=")
		m.k.spot, _ = strconv.Atoi(spot)
		m.k.act = func() {
			inner, served := strings.CutSuffix(inner, "^")
			if own := m.k.own; inner != "none" {
				m.k.own = false
				refused = !m.others(inner)
				m.k.own = own
			}
			for served && len(m.k.queue) > 0 {
				m.k.serve(m.s)
			}
		}
	}
	if !m.others(base) && !m.culverts(base) || refused || m.k.act != nil {
		m.k.act = nil
		return false, false
	}
	if !m.w.micro {
		m.settle()
	}
	m.k.kill, m.k.spot = 0, 0
	if m.k.dead {
		m.die()
		return true, true
	}
	m.note()
	return false, true
}

func (m *machine) die() {
	list, _ := rows(m.k.table)
	for _, r := range list {
		if r.Origin == plan.Own && !m.k.store.marks[enforce.Mark{Dst: r.Dst, Link: r.Hop.Link}] {
			m.unnoted[r] = true
		}
	}
	m.s, m.open, m.silent, m.lost = nil, map[string]opened{}, false, false
	m.k.dead, m.k.watch, m.k.queue, m.k.own, m.k.done = false, false, nil, false, enforce.Totals{}
	m.note()
}

// culverts carries out an operation of culvert's own.
func (m *machine) culverts(op string) bool {
	ctx := context.Background()
	verb, arg, _ := strings.Cut(op, ":")
	if m.s == nil {
		if verb == "recover" {
			m.start()
		}
		return verb == "recover"
	}
	switch verb {
	case "open":
		return m.openSession(worldSessions[arg])
	case "close":
		return m.closeSession(arg)
	case "serve":
		if len(m.k.queue) == 0 {
			return false
		}
		m.k.serve(m.s)
	case "event":
		if m.s.Told() == 0 {
			return false
		}
		m.s.Event(ctx)
	case "level":
		m.level()
	case "overrun": // the socket's buffer ran over: what waited there is lost, and that is known
		if len(m.k.queue) == 0 {
			return false
		}
		m.k.queue = nil
		m.s.Hint("overrun", false)
	case "lose": // an announcement is lost without a sign
		if len(m.k.queue) == 0 {
			return false
		}
		m.k.queue, m.lost = m.k.queue[1:], true
	case "twice": // an announcement comes twice
		if len(m.k.queue) == 0 || len(m.k.queue) > 3 {
			return false
		}
		m.k.queue = slices.Insert(m.k.queue, 1, m.k.queue[0])
	case "kill":
		m.die()
	case "stop":
		if err := m.s.Finish(ctx); err != nil && len(m.k.store.entries) == 0 && !m.k.dead {
			m.fault = "STOP: " + err.Error()
		}
		if !m.k.dead {
			m.die()
		}
	case "full":
		m.k.full = !m.k.full
	case "broken":
		m.k.broken = 2
	default:
		return false
	}
	return true
}

func (m *machine) openSession(s enforce.Session) bool {
	o, was := m.open[s.Tunnel]
	if was && sameSession(o.Session, s) {
		return false
	}
	if !was {
		m.serial++
		o.serial = m.serial
	}
	m.changing = true
	status, err := m.s.Open(context.Background(), s)
	m.changing = false
	var input *enforce.InputError
	if errors.As(err, &input) {
		return false
	}
	if err != nil && !m.k.dead {
		m.fault = fmt.Sprintf("OPEN: %v, %+v", err, status)
	}
	o.Session = s
	m.open[s.Tunnel] = o
	m.silent = false
	return true
}

func sameSession(a, b enforce.Session) bool {
	return slices.Equal(a.Protect, b.Protect) && slices.Equal(a.Exclude, b.Exclude) && slices.Equal(a.Servers, b.Servers) &&
		slices.Equal(a.ExcludeInterfaces, b.ExcludeInterfaces) && a.Rearm == b.Rearm
}

func (m *machine) closeSession(tunnel string) bool {
	m.changing = true
	status, err := m.s.Close(context.Background(), tunnel)
	m.changing = false
	if errors.Is(err, enforce.ErrNoSession) {
		return false
	}
	if err != nil && !m.k.dead {
		m.fault = fmt.Sprintf("CLOSE: %v", err)
	}
	delete(m.open, tunnel)
	m.silent = status.State == enforce.Restored && status.Error == "" && len(status.Held) == 0
	return true
}

// others carries out an operation of somebody else's, in the kernel and in its twin. It
// is no operation where culvert's kernel refuses what the twin's does, or has nothing to
// delete where the twin has: its owner is told of that, and what he does then is not known.
func (m *machine) others(op string) bool {
	verb, arg, _ := strings.Cut(op, ":")
	act := m.act(verb, arg)
	if act == nil {
		return false
	}
	try := m.k.table.Clone()
	err, twinErr := act(try), act(m.twin.Clone())
	if err != nil {
		return false
	}
	if verb == "del" && twinErr != nil {
		return false
	}
	named := worldRoutes[arg]
	r := m.routed(&named)
	_, stands := rows(m.k.table)
	was, _ := rows(m.twin)
	if verb == "rep" && !m.sameVictim(act) {
		return false
	}
	if verb == "add" || verb == "rep" {
		m.forgetRogue(r, stands)
		for leg := range legs(r) {
			if _, ok := m.seen[leg]; ok && (m.s == nil || m.w.micro) {
				m.placed[leg] = true
			}
		}
	}
	_ = act(m.twin)
	_ = act(m.k.table)
	m.follow(verb, arg)
	switch verb {
	case "rep":
		m.replaced(was, stands, r)
	case "del":
		if m.inJournal(r) { // culvert cannot know whether its owner took it away, or it itself
			m.free[known(*r)] = true
		}
	case "addr-", "down", "gone":
		m.flap(was)
	case "addr+", "up":
		for leg := range m.flapped { // away and back with nobody looking
			m.free[leg] = true
		}
	}
	m.note()
	return true
}

// forgetRogue takes a route out of the twin that culvert has taken out for good: whoever
// adds it now adds it anew. What culvert holds is not out for good: it was let stand by a
// change and taken out again, so a newer copy of it keeps its place, as of any held route.
func (m *machine) forgetRogue(r *plan.Route, stands map[plan.Route]bool) {
	for leg := range legs(r) {
		if f, ok := m.seen[leg]; ok && f.rogue && !stands[leg] && !(f.pardoned && m.inJournal(&leg)) {
			_ = m.twin.DeleteExact(leg)
			delete(m.seen, leg)
		}
		delete(m.k.gone, leg)
		if !m.inJournal(r) { // else the newer copy has the place of the older
			delete(m.k.behind, leg)
		}
	}
}

// sameVictim reports whether a replacement takes the place of the same route with culvert
// and without, or of a route of culvert's own.
func (m *machine) sameVictim(act func(*enforcetest.Table) error) bool {
	victims := func(t *enforcetest.Table) (out []plan.Route) {
		was, _ := rows(t)
		after := t.Clone()
		_ = act(after)
		_, has := rows(after)
		return slices.DeleteFunc(was, func(r plan.Route) bool { return has[r] })
	}
	real, twin := victims(m.k.table), victims(m.twin)
	return slices.Equal(real, twin) || !slices.ContainsFunc(real, func(r plan.Route) bool { return r.Origin != plan.Own })
}

// inJournal reports whether a route is held, by a process that is dead too.
func (m *machine) inJournal(r *plan.Route) bool {
	return slices.ContainsFunc(m.k.store.entries, func(e enforce.Entry) bool {
		for leg := range legs(&e.Route) {
			if leg == known(*r) {
				return true
			}
		}
		return false
	})
}

// flap notes the held routes that the kernel would have dropped with an address or link.
func (m *machine) flap(was []plan.Route) {
	_, has := rows(m.twin)
	for _, r := range was {
		if !has[r] && m.inJournal(&r) {
			m.flapped[r] = true
		}
	}
}

// replaced notes what took the place of a route that is out: its owner may have made it
// anew, and another may have, and the kernel's answer is the same.
func (m *machine) replaced(was []plan.Route, stands map[plan.Route]bool, by *plan.Route) {
	_, has := rows(m.twin)
	_, real := rows(m.k.table)
	for _, r := range was {
		if !has[r] && (!stands[r] || real[r] || m.inJournal(&r)) {
			m.free[r] = true
			for leg := range legs(by) {
				m.free[leg] = true
			}
		}
	}
}

// routed is a named route by the links as they are now.
func (m *machine) routed(r *plan.Route) *plan.Route {
	var hops []plan.Hop
	for hop := range r.Hops() {
		for name, index := range linkNames {
			if hop.Link == index {
				hop.Link = m.links[name]
				break
			}
		}
		hops = append(hops, hop)
	}
	out := r.WithHops(hops...)
	return &out
}

// act returns what an operation does to a table, or nil where it is none of these.
func (m *machine) act(verb, arg string) func(*enforcetest.Table) error {
	named := worldRoutes[arg]
	r := *m.routed(&named)
	a := worldAddrs[arg]
	link := m.links[arg]
	switch verb {
	case "add":
		return func(t *enforcetest.Table) error { return t.Add(r, enforcetest.Append) }
	case "rep":
		return func(t *enforcetest.Table) error { return t.Add(r, enforcetest.Replace) }
	case "del":
		return func(t *enforcetest.Table) error { return t.DeleteExact(r) }
	case "addr+":
		return func(t *enforcetest.Table) error { return t.AddAddress(a.link, a.addr) }
	case "addr-":
		return func(t *enforcetest.Table) error { return t.RemoveAddress(a.link, a.addr) }
	case "down":
		return func(t *enforcetest.Table) error { return setUp(t, link, false) }
	case "up":
		return func(t *enforcetest.Table) error { return setUp(t, link, true) }
	case "gone":
		return func(t *enforcetest.Table) error { return t.DeleteLink(link) }
	case "new":
		return func(t *enforcetest.Table) error {
			if slices.ContainsFunc(t.Links(), func(l plan.Link) bool { return l.Name == arg }) {
				return enforcetest.ErrExists
			}
			if link > 3*later {
				return enforcetest.ErrExists // often enough
			}
			t.AddLink(plan.Link{Index: link + later, Name: arg, Kind: plan.KindTunnel, Up: true})
			return nil
		}
	}
	return nil
}

var errNoChange = errors.New("it is so already")

func setUp(t *enforcetest.Table, link uint32, up bool) error {
	for _, l := range t.Links() {
		if l.Index == link && l.Up == up {
			return errNoChange
		}
	}
	return t.SetUp(link, up)
}

// follow notes what an operation changed of the names.
func (m *machine) follow(verb, arg string) {
	if verb == "new" {
		m.links[arg] += later
	}
}

// note brings what is known of the twin's routes up to the twin.
func (m *machine) note() {
	stands := map[plan.Route]bool{}
	_, real := rows(m.k.table)
	for _, r := range m.twin.Rows() {
		for leg := range legs(&r) {
			stands[leg] = true
			if f, ok := m.seen[leg]; ok {
				if f.rogue && m.tunnelOf(f.serial) == "" && !m.changing && real[leg] {
					f.rogue = false // it outlived the session: it stands before the next
					m.seen[leg] = f
				}
				if f.rogue && !f.pardoned && !m.conflicts(&r) && m.open[m.tunnelOf(f.serial)].serial == f.serial {
					f.pardoned = true
					m.seen[leg] = f
				}
				continue
			}
			f := fate{tunnel: m.isTunnel(&r)}
			if m.conflicts(&r) && !m.mustReturn(&r) {
				f.pardoned = m.changing // it came as the session began or ended
				f.rogue, f.serial = true, m.serialOn(m.around(r.Dst).Tunnel)
			}
			m.seen[leg] = f
		}
	}
	m.noteBehind(real)
	maps.DeleteFunc(m.seen, func(r plan.Route, _ fate) bool { return !stands[r] })
}

// noteBehind notes the routes that are out and stood behind one of their place that stays.
func (m *machine) noteBehind(real map[plan.Route]bool) {
	twin, _ := rows(m.twin)
	for i, r := range twin {
		stays := func(o plan.Route) bool { return o.Slot() == r.Slot() && real[o] && !m.isTunnel(&o) }
		if m.k.gone[r] && !real[r] && slices.ContainsFunc(twin[:i], stays) {
			m.k.behind[r] = true
		}
	}
}

func (m *machine) tunnelOf(serial int) string {
	for name, o := range m.open {
		if o.serial == serial {
			return name
		}
	}
	return ""
}

func (m *machine) serialOn(link uint32) int {
	for name, o := range m.open {
		if m.links[name] == link {
			return o.serial
		}
	}
	return 0
}

func (m *machine) isTunnel(r *plan.Route) bool {
	for hop := range r.Hops() {
		if at := hop.Link % later; at != tunA && at != tunB {
			return false
		}
	}
	return true
}

// mustReturn reports whether a route comes back although it came while connected.
func (m *machine) mustReturn(r *plan.Route) bool {
	return m.w.opt.RestoreAll || r.Connected() || r.Origin == plan.Leased && r.OnLink()
}

// around searches the entries for the longest that contains a destination.
func (m *machine) around(dst netip.Prefix) (best *plan.Entry) {
	for e := range m.s.Policy().Entries() {
		if e.Prefix.Bits() <= dst.Bits() && e.Prefix.Contains(dst.Addr()) && (best == nil || e.Prefix.Bits() > best.Prefix.Bits()) {
			best = e
		}
	}
	return best
}

// conflicts is the contract's verdict (SEMANTICS: "Verdict for a route R"), written anew:
// by the tunnel's route as it stands in the table now.
func (m *machine) conflicts(r *plan.Route) bool {
	if m.s == nil || r.Origin == plan.Own {
		return false
	}
	e := m.around(r.Dst)
	if e == nil || e.Class != plan.Protected {
		return false
	}
	ours, kept := true, r.Type == plan.Unicast
	for hop := range r.Hops() {
		ours = ours && (hop.Link == e.Tunnel || hop.Link == m.tunnelFor(e.Prefix))
		kept = kept && (hop.Link == e.Tunnel || e.Keeps(hop.Link))
	}
	switch {
	case r.Type == plan.Unicast && ours, kept:
		return false
	case m.w.opt.KeepUnreachable && r.Type == plan.Blackhole:
		return false
	}
	return r.Dst.Bits() > e.Prefix.Bits() || r.TOS != 0 || r.Metric <= m.tunnelMetric(e)
}

// tunnelFor is the tunnel of the session that protects a prefix, as its interface is now.
func (m *machine) tunnelFor(p netip.Prefix) uint32 {
	for name, o := range m.open {
		if slices.Contains(o.Protect, p) {
			return m.links[name]
		}
	}
	return 0
}

// tunnelMetric is the metric of the tunnel's route for a protected prefix, as it stands or
// as it was seen last.
func (m *machine) tunnelMetric(e *plan.Entry) uint32 {
	metric, stands := e.Route.Metric, false
	for r := range m.k.table.Routes() {
		if r.Dst == e.Prefix && r.Hop.Link == e.Tunnel && !r.Multipath() && r.TOS == 0 && r.Type == plan.Unicast && (!stands || r.Metric < metric) {
			metric, stands = r.Metric, true
		}
	}
	return metric
}

// key is the state as bytes: what is equal in it goes on equally.
func (m *machine) key() []byte {
	b := make([]byte, 0, 4096)
	b = appendTable(b, m.k.table)
	b = append(appendTable(append(b, '|'), m.twin), '|')
	for _, a := range m.k.queue {
		b = append(b, byte(a.change), byte(len(a.hint)))
		b = enforce.AppendRoute(b, &a.route)
	}
	b = fmt.Append(b, '|', m.k.full, m.k.broken, m.k.watch, m.silent && len(m.k.store.entries) > 0, m.lost, len(m.k.store.entries))
	if m.s == nil {
		for i := range m.k.store.entries {
			e := &m.k.store.entries[i]
			b = enforce.AppendRoute(b, &e.Route)
			b = fmt.Append(b, e.Links, e.First, e.Nets)
		}
	} else {
		b = m.s.AppendKey(b)
	}
	var seen []string
	for r, f := range m.seen {
		_, gone := m.k.gone[r]
		if f.rogue {
			seen = append(seen, fmt.Sprint(string(enforce.AppendRoute(nil, &r)), f.serial == m.serial, m.tunnelOf(f.serial) != "", f.pardoned, gone))
		}
	}
	for r := range m.flapped {
		seen = append(seen, "flapped"+string(enforce.AppendRoute(nil, &r)))
	}
	for r := range m.k.behind {
		seen = append(seen, "behind"+string(enforce.AppendRoute(nil, &r)))
	}
	for r := range m.unnoted {
		seen = append(seen, "unnoted"+string(enforce.AppendRoute(nil, &r)))
	}
	for r := range m.placed {
		seen = append(seen, "placed"+string(enforce.AppendRoute(nil, &r)))
	}
	for r := range m.free {
		seen = append(seen, "free"+string(enforce.AppendRoute(nil, &r)))
	}
	slices.Sort(seen)
	for _, s := range seen {
		b = append(b, s...)
	}
	return b
}

func appendTable(b []byte, t *enforcetest.Table) []byte {
	for _, r := range t.Rows() {
		b = enforce.AppendRoute(b, &r)
	}
	for _, l := range t.Links() {
		b = append(b, byte(l.Index))
		if l.Up {
			b = append(b, 'u')
		}
		for _, a := range l.Addrs {
			b = append(b, a.String()...)
		}
	}
	return b
}
