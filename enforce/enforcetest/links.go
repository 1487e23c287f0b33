package enforcetest

import (
	"net/netip"
	"slices"

	"github.com/culvert-project/culvert/enforce/plan"
)

// Links returns the interfaces with their addresses.
func (t *Table) Links() []plan.Link {
	out := slices.Clone(t.links)
	for i := range out {
		out[i].Addrs = slices.Clone(out[i].Addrs)
	}
	return out
}

func (t *Table) link(index uint32) *plan.Link {
	i := slices.IndexFunc(t.links, func(l plan.Link) bool { return l.Index == index })
	if i < 0 {
		return nil
	}
	return &t.links[i]
}

func (t *Table) hasAddress(a netip.Addr) bool {
	return slices.ContainsFunc(t.links, func(l plan.Link) bool {
		return slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
	})
}

// AddLink makes an interface. Its connected routes appear if it is up.
func (t *Table) AddLink(l plan.Link) {
	addrs := l.Addrs
	l.Addrs = nil
	t.links = append(t.links, l)
	t.hurry("link added")
	for _, a := range addrs {
		_ = t.AddAddress(l.Index, a)
	}
}

// DeleteLink takes an interface away with all that depends on it.
func (t *Table) DeleteLink(index uint32) error {
	i := slices.IndexFunc(t.links, func(l plan.Link) bool { return l.Index == index })
	if i < 0 {
		return ErrNoLink
	}
	t.flush(index, true)
	t.links = slices.Delete(t.links, i, i+1)
	t.hurry("link deleted")
	return nil
}

// SetUp takes an interface up or down. Down flushes its routes: IPv4's in
// silence, IPv6's one by one, along with its IPv6 addresses. Up brings back
// what follows from its addresses and nothing else.
func (t *Table) SetUp(index uint32, up bool) error {
	l := t.link(index)
	if l == nil {
		return ErrNoLink
	}
	if l.Up == up {
		return nil
	}
	l.Up = up
	if up {
		for i, a := range l.Addrs {
			if !slices.ContainsFunc(l.Addrs[:i], func(o netip.Prefix) bool { return o.Masked() == a.Masked() }) {
				t.connect(index, a)
			}
		}
	} else {
		l.Addrs = slices.DeleteFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() })
		t.flush(index, false)
	}
	t.hurry("link changed")
	return nil
}

// SetMute6 switches IPv6 off on an interface, which takes its IPv6 addresses and
// routes, or on again, which brings none back.
func (t *Table) SetMute6(index uint32, off bool) error {
	l := t.link(index)
	if l == nil {
		return ErrNoLink
	}
	if l.Mute6 = off; off {
		l.Addrs = slices.DeleteFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() })
		for i := len(t.rows) - 1; i >= 0; i-- {
			if r := &t.rows[i].r; r.Dst.Addr().Is6() && !rejecting(r.Type) && uses(r, index) {
				t.drop(i)
			}
		}
	}
	t.hint("address removed")
	return nil
}

// Rename gives an interface another name; nothing else changes.
func (t *Table) Rename(index uint32, name string) error {
	l := t.link(index)
	if l == nil {
		return ErrNoLink
	}
	l.Name = name
	t.hurry("link changed")
	return nil
}

// flush takes out the routes of a link that is down or going. A multipath
// route stays as long as one leg lives, unless the link is going for good.
func (t *Table) flush(index uint32, going bool) {
	for id, nh := range t.groups {
		if slices.ContainsFunc(nh.hops, func(h plan.Hop) bool { return h.Link == index }) {
			t.DeleteNexthop(id)
		}
	}
	for i := len(t.rows) - 1; i >= 0; i-- {
		r := &t.rows[i].r
		if rejecting(r.Type) || !uses(r, index) {
			continue
		}
		if r.Multipath() && !going && !t.dead(r) {
			continue
		}
		t.lose(i)
	}
}

func uses(r *plan.Route, index uint32) bool {
	for h := range r.Hops() {
		if h.Link == index {
			return true
		}
	}
	return false
}

// lose takes out a row without anybody asking: IPv6 says so, IPv4 does not.
func (t *Table) lose(i int) {
	if t.rows[i].r.Dst.Addr().Is6() {
		t.drop(i)
		return
	}
	t.rows = slices.Delete(t.rows, i, i+1)
}

// AddAddress gives an interface an address and the route that follows from it.
func (t *Table) AddAddress(index uint32, a netip.Prefix) error {
	l := t.link(index)
	if l == nil {
		return ErrNoLink
	}
	if slices.Contains(l.Addrs, a) {
		return ErrExists
	}
	l.Addrs = append(l.Addrs, a)
	if l.Up && sameSubnet(l, a) == 1 {
		t.connect(index, a)
	}
	t.hint("address added")
	return nil
}

// sameSubnet counts the link's addresses in the subnet of a: only the first of
// a subnet has a route.
func sameSubnet(l *plan.Link, a netip.Prefix) (n int) {
	for _, o := range l.Addrs {
		if o.Masked() == a.Masked() {
			n++
		}
	}
	return n
}

// connect adds the route that follows from an address.
func (t *Table) connect(index uint32, a netip.Prefix) {
	if !a.IsSingleIP() {
		_ = t.Add(ConnectedRoute(index, a), Append)
	}
}

// ConnectedRoute returns the route that the kernel derives from an address.
func ConnectedRoute(index uint32, a netip.Prefix) plan.Route {
	r := plan.Route{Dst: a.Masked(), Hop: plan.Hop{Link: index}, Origin: plan.Kernel, Protocol: ProtoKernel}
	if a.Addr().Is4() {
		r.PrefSrc = a.Addr()
	} else {
		r.Metric = 256
	}
	return r
}

// RemoveAddress takes an address away. Its connected route goes and is
// announced; IPv4 routes that prefer it as their source go in silence, and
// after the last IPv4 address all of the interface's do.
func (t *Table) RemoveAddress(index uint32, a netip.Prefix) error {
	l := t.link(index)
	if l == nil || !slices.Contains(l.Addrs, a) {
		return ErrNoLink
	}
	l.Addrs = slices.DeleteFunc(l.Addrs, func(o netip.Prefix) bool { return o == a })
	_ = t.DeleteExact(ConnectedRoute(index, a))
	if i := slices.IndexFunc(l.Addrs, func(o netip.Prefix) bool { return o.Masked() == a.Masked() }); i >= 0 && l.Up {
		t.connect(index, l.Addrs[i]) // the next address of the subnet is promoted
	}
	if a.Addr().Is4() {
		t.forsake(l, a.Addr())
	}
	t.hint("address removed")
	return nil
}

func (t *Table) forsake(l *plan.Link, a netip.Addr) {
	last := !slices.ContainsFunc(l.Addrs, func(o netip.Prefix) bool { return o.Addr().Is4() })
	t.rows = slices.DeleteFunc(t.rows, func(o row) bool {
		r := &o.r
		return r.Dst.Addr().Is4() && (r.PrefSrc == a || last && !rejecting(r.Type) && uses(r, l.Index))
	})
}

// SetNexthop makes a nexthop object or replaces what it says; without hops it
// is a blackhole. Its routes follow at once and nobody is told more than that
// something changed.
func (t *Table) SetNexthop(id uint32, hops ...plan.Hop) {
	if t.groups == nil {
		t.groups = map[uint32]nexthop{}
	}
	t.groups[id] = nexthop{hops: slices.Clone(hops)}
	t.hint("nexthop changed")
}

// DeleteNexthop deletes a nexthop object and every route that uses it.
func (t *Table) DeleteNexthop(id uint32) {
	for i := len(t.rows) - 1; i >= 0; i-- {
		if t.rows[i].r.NexthopID == id && id != 0 {
			t.lose(i)
		}
	}
	delete(t.groups, id)
	t.hint("nexthop deleted")
}
