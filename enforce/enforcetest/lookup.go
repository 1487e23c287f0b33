package enforcetest

import (
	"net/netip"
	"slices"

	"github.com/culvert-project/culvert/enforce/plan"
)

// Lookup says which route takes a packet to addr with the given TOS, and from
// src when that is valid. It is false when the packet finds no route in this
// table: there is none, or a throw sends it on to other tables.
//
// It searches every row for every prefix length, as slow and plain as it can
// be, in the order of fib_table_lookup (IPv4) and of fib6_node_lookup_1,
// find_rr_leaf and fib6_backtrack (IPv6).
func (t *Table) Lookup(addr netip.Addr, tos uint8, src netip.Addr) (plan.Route, bool) {
	i := -1
	if addr.Is4() {
		i = t.lookup4(addr, tos)
	} else {
		i = t.lookup6(addr, src)
	}
	if i < 0 || t.rows[i].r.Type == plan.Throw {
		return plan.Route{}, false
	}
	return t.assemble(t.rows, i), true
}

// lookup4 returns the row that takes the packet, or -1.
func (t *Table) lookup4(addr netip.Addr, tos uint8) int {
	lengths := t.lengths(addr)
	for bits := addr.BitLen(); bits >= 0; bits-- {
		if !lengths[bits] {
			continue
		}
		at := netip.PrefixFrom(addr, bits).Masked()
		for i := range t.rows {
			r := &t.rows[i].r
			if r.Dst != at || (r.TOS != 0 && r.TOS != tos) {
				continue
			}
			if rejecting(r.Type) || !t.skipped(i) {
				return i
			}
		}
	}
	return -1
}

// lengths marks the prefix lengths that contain addr somewhere: the others
// need not be searched.
func (t *Table) lengths(addr netip.Addr) (has [129]bool) {
	for i := range t.rows {
		if d := t.rows[i].r.Dst; d.Contains(addr) {
			has[d.Bits()] = true
		}
	}
	return has
}

// skipped reports whether lookups pass over the row.
func (t *Table) skipped(i int) bool {
	r := t.rows[i].r
	t.resolve(&r)
	return r.Dead || t.dead(&r)
}

// lookup6 walks from the longest prefix to the shorter ones. A prefix that has
// routes for source prefixes is entered through those alone when the walk
// begins there; its other routes are seen only when the walk comes back to it
// from routes that could not be used. The default route's are always seen, for
// a walk that finds nothing ends at the root.
func (t *Table) lookup6(addr, src netip.Addr) int {
	if !src.IsValid() {
		src = netip.IPv6Unspecified()
	}
	backtracking, lengths := false, t.lengths(addr)
	for bits := addr.BitLen(); bits >= 0; bits-- {
		if !lengths[bits] {
			continue
		}
		at := netip.PrefixFrom(addr, bits).Masked()
		plain, sourced := t.node6(at, src)
		if len(sourced) == 0 && len(plain) == 0 {
			continue
		}
		if !backtracking && bits > 0 && len(sourced) == 0 && t.hasSourced(at) {
			continue
		}
		for _, leaf := range append(sourced, plain) {
			if i := t.select6(leaf); i >= 0 {
				return i
			}
		}
		backtracking = true
	}
	return -1
}

// node6 returns the rows of one destination prefix: those for any source, and
// those for each source prefix that contains src, longest first.
func (t *Table) node6(at netip.Prefix, src netip.Addr) (plain []int, sourced [][]int) {
	if !t.hasSourced(at) {
		return t.rowsOf(at, netip.Prefix{}), nil
	}
	for bits := src.BitLen(); bits >= 0; bits-- {
		from := netip.PrefixFrom(src, bits).Masked()
		if leaf := t.rowsOf(at, from); len(leaf) > 0 {
			sourced = append(sourced, leaf)
		}
	}
	return t.rowsOf(at, netip.Prefix{}), sourced
}

func (t *Table) rowsOf(dst, src netip.Prefix) (out []int) {
	for i := range t.rows {
		if t.rows[i].r.Dst == dst && t.rows[i].r.Src == src {
			out = append(out, i)
		}
	}
	return out
}

func (t *Table) hasSourced(dst netip.Prefix) bool {
	return slices.ContainsFunc(t.rows, func(o row) bool { return o.r.Dst == dst && o.r.Src.IsValid() })
}

// select6 returns the row of a leaf that wins: the best router preference of
// the lowest metric; when all of that metric are dead, the best preference of
// all the others, whatever their metric.
func (t *Table) select6(leaf []int) int {
	if len(leaf) == 0 {
		return -1
	}
	lowest := t.rows[leaf[0]].r.Metric
	cut := slices.IndexFunc(leaf, func(i int) bool { return t.rows[i].r.Metric != lowest })
	if cut < 0 {
		return t.best6(leaf)
	}
	if i := t.best6(leaf[:cut]); i >= 0 {
		return i
	}
	return t.best6(leaf[cut:])
}

func (t *Table) best6(rows []int) int {
	best := -1
	for _, i := range rows {
		if !rejecting(t.rows[i].r.Type) && t.skipped(i) {
			continue
		}
		if best < 0 || t.rows[i].r.Pref > t.rows[best].r.Pref {
			best = i
		}
	}
	return best
}
