package enforce_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// The invariants. A state is judged at rest: once all that follows by itself has happened.

// check returns what is wrong with a state.
func (m *machine) check() []string {
	rest := m.clone()
	rest.settle()
	if rest.lost && rest.s != nil {
		rest.level() // the slow timer
		rest.settle()
	}
	return append(rest.atRest(), rest.atEnd()...)
}

// atRest judges what must hold while sessions are open, or none is.
func (m *machine) atRest() (out []string) {
	if m.fault != "" {
		return []string{m.fault}
	}
	if m.s == nil {
		return nil
	}
	for _, f := range []func() string{m.promise, m.kept, m.transport, m.told, m.counted} {
		if wrong := f(); wrong != "" {
			out = append(out, wrong)
		}
	}
	return out
}

// probes are addresses of every part of the worlds that routes tell apart.
var probes = func() (out []netip.Addr) {
	for _, a := range strings.Fields("10.0.0.5 10.64.0.9 10.64.0.1 10.200.0.5 203.0.113.9 20.0.0.5 198.51.100.9 203.0.113.7 fd00::5 fd40::9 fd40::1 fdc0::5") {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}()

// promise: every protected address goes into its owner's tunnel, whatever its TOS. While
// the tunnel cannot carry it, no conflict does.
func (m *machine) promise() string {
	if m.k.full {
		return "" // what cannot be written down stays, as README says
	}
	p := m.s.Policy()
	for _, a := range probes {
		class, e := p.Lookup(a)
		if class != plan.Protected {
			continue
		}
		for _, tos := range []uint8{0, 4} {
			r, found := m.k.table.Lookup(a, tos, netip.Addr{})
			up := p.Spec().Sessions[e.Session].TunnelUp
			switch {
			case up && !found:
				return fmt.Sprintf("PROMISE: nothing takes %v tos %d", a, tos)
			case !found:
			case up && !m.carries(&r, e):
				return fmt.Sprintf("PROMISE: %v tos %d goes by %s", a, tos, enforcetest.Text(r))
			case !up && m.conflicts(&r):
				return fmt.Sprintf("PROMISE: the tunnel is down, and %v tos %d goes by %s, a conflict", a, tos, enforcetest.Text(r))
			}
		}
	}
	return ""
}

// carries reports whether a route takes an entry's packets where they must or may go.
func (m *machine) carries(r *plan.Route, e *plan.Entry) bool {
	if r.Type == plan.Blackhole {
		return m.w.opt.KeepUnreachable
	}
	for hop := range r.Hops() {
		if hop.Link != e.Tunnel && !e.Keeps(hop.Link) {
			return false
		}
	}
	return r.Type == plan.Unicast
}

// rows returns a table's rows as they are known again.
func rows(t *enforcetest.Table) (list []plan.Route, has map[plan.Route]bool) {
	has = map[plan.Route]bool{}
	for _, r := range t.Rows() {
		for leg := range legs(&r) {
			list, has[leg] = append(list, leg), true
		}
	}
	return list, has
}

// kept: what does not conflict stands, with a session open too.
func (m *machine) kept() string {
	_, has := rows(m.k.table)
	for r, f := range m.seen {
		if !has[r] && !f.rogue && !m.free[r] && !m.conflicts(&r) && !m.isHeld(&r) && !m.left(&r) {
			return fmt.Sprintf("LOST: %s does not conflict, and is neither there nor held", enforcetest.Text(r))
		}
	}
	return ""
}

// left: "nor do routes of a network that was left" come back (README, What it promises).
// IPv4 drops them with the last address; IPv6 keeps them, and culvert does not.
func (m *machine) left(r *plan.Route) bool {
	if r.Dst.Addr().Is4() || !r.Hop.Via.IsValid() {
		return false
	}
	return !slices.ContainsFunc(m.twin.Links(), func(l plan.Link) bool {
		return l.Index == r.Hop.Link && slices.ContainsFunc(l.Addrs, func(a netip.Prefix) bool { return a.Contains(r.Hop.Via) })
	})
}

func (m *machine) isHeld(r *plan.Route) bool {
	return slices.ContainsFunc(m.s.Held(), func(h plan.Route) bool {
		for leg := range legs(&h) {
			if leg == known(*r) {
				return true
			}
		}
		return false
	})
}

// counted: the numbers are what was done, and no session has more than there is.
func (m *machine) counted() string {
	all := m.s.Totals()
	if all != m.k.done {
		return fmt.Sprintf("COUNT: counted %+v, done %+v", all, m.k.done)
	}
	var sum enforce.Totals
	for _, st := range m.s.Status().Sessions {
		n := st.Totals()
		sum = enforce.Totals{Removed: sum.Removed + n.Removed, Readded: sum.Readded + n.Readded, Restored: sum.Restored + n.Restored, Withdrawn: sum.Withdrawn + n.Withdrawn}
	}
	if sum.Removed > all.Removed || sum.Readded > all.Readded || sum.Restored > all.Restored || sum.Withdrawn > all.Withdrawn {
		return fmt.Sprintf("COUNT: the sessions have %+v, in all there is %+v", sum, all)
	}
	return ""
}

// transport: a server is reached as it would be without the tunnel.
func (m *machine) transport() string {
	if len(m.free) > 0 {
		return "" // one of these may be a way that the twin does not have
	}
	for _, o := range m.open {
		for _, srv := range o.Servers {
			if wrong := m.leans(srv.Addr.Addr()); wrong != "" {
				return wrong
			}
			want, ok := m.wayOut(srv.Addr.Addr())
			if !ok {
				continue
			}
			got, found := m.k.table.Lookup(srv.Addr.Addr(), 0, netip.Addr{})
			if !found || got.Hop != want.Hop {
				return fmt.Sprintf("TRANSPORT: server %v goes by %s, and its way is %s", srv.Addr.Addr(), enforcetest.Text(got), enforcetest.Text(want))
			}
		}
	}
	return ""
}

// leans: the gateway of culvert's own route to a server is reached on the link itself, or a
// strict reverse-path filter stops answering for it.
func (m *machine) leans(server netip.Addr) string {
	r, found := m.k.table.Lookup(server, 0, netip.Addr{})
	if !found || r.Origin != plan.Own || !r.Hop.Via.IsValid() {
		return ""
	}
	via, found := m.k.table.Lookup(r.Hop.Via, 0, netip.Addr{})
	if found && via.Hop.Link != r.Hop.Link {
		return fmt.Sprintf("TRANSPORT: %s leans on a gateway that is looked for by %s", enforcetest.Text(r), enforcetest.Text(via))
	}
	return ""
}

// wayOut is the way to an address by what the twin has that is no tunnel's and no rogue's.
func (m *machine) wayOut(a netip.Addr) (plan.Route, bool) {
	t := m.twin.Clone()
	for r, f := range m.seen {
		if f.tunnel || f.rogue {
			_ = t.DeleteExact(r)
		}
	}
	r, ok := t.Lookup(a, 0, netip.Addr{})
	return r, ok && r.Type == plan.Unicast && !m.isTunnel(&r)
}

// told: a close that says "restored" has restored.
func (m *machine) told() string {
	if len(m.open) == 0 && m.silent && len(m.s.Held()) > 0 && !m.k.full {
		return "UNTOLD: the session was closed as restored, and " + enforcetest.Text(m.s.Held()[0]) + " is held still"
	}
	return ""
}

// atEnd judges what is left when every session is closed and the process has ended.
func (m *machine) atEnd() (out []string) {
	e := m.clone()
	e.k.full, e.k.broken = false, 0
	if e.s == nil {
		e.start()
		e.settle()
	}
	for tunnel := range e.open {
		e.closeSession(tunnel)
		e.settle()
		e.note()
	}
	if len(m.open) > 0 || m.s == nil {
		for _, wrong := range e.atRest() {
			out = append(out, wrong+" (once closed)")
		}
	}
	err := e.s.Finish(context.Background())
	e.note()
	return append(out, e.identity(err)...)
}

// identity: connect and disconnect together change nothing but what conflicted and came
// while connected.
func (m *machine) identity(finish error) (out []string) {
	real, has := rows(m.k.table)
	twin, hasTwin := rows(m.twin)
	for _, r := range twin {
		f := m.seen[r]
		if m.free[r] {
			continue
		}
		if !has[r] && !f.rogue && !(finish != nil && m.isHeld(&r)) && !m.left(&r) {
			out = append(out, "LOST: "+enforcetest.Text(r))
		}
		if has[r] && f.rogue && !f.pardoned && m.k.gone[r] {
			out = append(out, "RETURNED: "+enforcetest.Text(r))
		}
	}
	for _, r := range real {
		switch {
		case r.Origin == plan.Own && m.unnoted[r]: // as README has it: "one put while the disk is full stays after a kill"
		case r.Origin == plan.Own:
			out = append(out, "LEFT BEHIND: "+enforcetest.Text(r))
		case !hasTwin[r] && !m.isTunnel(&r) && !m.free[r]:
			out = append(out, "INVENTED: "+enforcetest.Text(r))
		}
	}
	if n := len(m.k.store.entries); n > 0 && finish == nil {
		out = append(out, fmt.Sprintf("JOURNAL: %d entries are left, the first of %s", n, enforcetest.Text(m.k.store.entries[0].Route)))
	}
	if wrong := m.order(real, twin, has, hasTwin); wrong != "" {
		out = append(out, wrong)
	}
	return out
}

// order: IPv4 routes of one place stand in the order that they have without culvert.
func (m *machine) order(real, twin []plan.Route, has, hasTwin map[plan.Route]bool) string {
	both := func(list []plan.Route, in map[plan.Route]bool) []plan.Route {
		return slices.DeleteFunc(slices.Clone(list), func(r plan.Route) bool {
			return !in[r] || r.Dst.Addr().Is6() || m.free[r] || m.placed[r] || m.seen[r].pardoned || m.isTunnel(&r) && !*modelVPNOrder || m.behind(&r)
		})
	}
	if wrong := m.orderBehind(real, twin); wrong != "" {
		return wrong
	}
	r, t := both(real, hasTwin), both(twin, has)
	for i := range r {
		if i < len(t) && r[i] != t[i] {
			return fmt.Sprintf("ORDER: %s stands where %s did", enforcetest.Text(r[i]), enforcetest.Text(t[i]))
		}
	}
	return ""
}

// behind: "only one that stood behind one that stayed (--exclude-interface) comes back
// behind all that stands there then" (README, Known limits).
func (m *machine) behind(r *plan.Route) bool { return m.k.behind[*r] }

// orderBehind: such a route is behind those that it stood behind, all the same.
func (m *machine) orderBehind(real, twin []plan.Route) string {
	skip := func(o plan.Route) bool {
		return m.free[o] || m.placed[o] || m.seen[o].pardoned || m.isTunnel(&o) || m.k.behind[o]
	}
	for i, r := range twin {
		at := slices.Index(real, r)
		if !m.k.behind[r] || at < 0 || m.free[r] || m.placed[r] || r.Dst.Addr().Is6() {
			continue
		}
		for _, o := range twin[:i] {
			if o.Slot() == r.Slot() && !skip(o) && slices.Index(real, o) > at {
				return fmt.Sprintf("ORDER: %s stands ahead of %s", enforcetest.Text(r), enforcetest.Text(o))
			}
		}
	}
	return ""
}
