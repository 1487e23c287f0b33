package enforcetest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/culvert-project/culvert/enforce/plan"
)

// Text says a route in one line, every attribute of it but Raw.
func Text(r plan.Route) string {
	var b strings.Builder
	if r.Type != plan.Unicast {
		b.WriteString(r.Type.String() + " ")
	}
	b.WriteString(r.Dst.String())
	if r.Src.IsValid() {
		b.WriteString(" from " + r.Src.String())
	}
	for h := range r.Hops() {
		if h.Via.IsValid() {
			b.WriteString(" via " + h.Via.String())
		}
		if h.Link != 0 {
			fmt.Fprintf(&b, " dev %d", h.Link)
		}
	}
	number(&b, "metric", r.Metric)
	number(&b, "tos", uint32(r.TOS))
	number(&b, "nhid", r.NexthopID)
	number(&b, "proto", uint32(r.Protocol))
	number(&b, "expires", r.Expires)
	if r.PrefSrc.IsValid() {
		b.WriteString(" src " + r.PrefSrc.String())
	}
	if r.Pref != plan.PrefMedium {
		fmt.Fprintf(&b, " pref %d", r.Pref)
	}
	if r.Dead {
		b.WriteString(" dead")
	}
	return b.String()
}

func number(b *strings.Builder, name string, n uint32) {
	if n != 0 {
		fmt.Fprintf(b, " %s %d", name, n)
	}
}

// Text says the whole table, one route a line, in the order of a dump; what
// the dump leaves out is there too. IPv6 lists the legs of a multipath route
// as its own routes and sorted, for their order is no part of what it does.
func (t *Table) Text() string {
	var b strings.Builder
	for _, r := range t.Rows() {
		_, extra, _ := strings.Cut(r.Raw, ";")
		b.WriteString(Text(canonical(r)))
		if extra != "" {
			b.WriteString(" " + extra)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// Rows returns every row, also what a dump leaves out: in order for IPv4, and for IPv6
// each leg of a multipath route by itself and sorted.
func (t *Table) Rows() []plan.Route {
	var out, six []plan.Route
	for i := range t.rows {
		r := t.rows[i].r
		r.Raw = ";" + t.rows[i].extra
		r.Dead = r.Dead || t.dead(&r)
		t.resolve(&r)
		if r.Dst.Addr().Is4() {
			out = append(out, r)
		} else {
			six = append(six, r)
		}
	}
	slices.SortFunc(six, plan.Compare)
	return append(out, six...)
}

// canonical sorts the legs of an IPv6 route.
func canonical(r plan.Route) plan.Route {
	if r.Dst.Addr().Is4() || !r.Multipath() {
		return r
	}
	hops := slices.Collect(r.Hops())
	slices.SortFunc(hops, compareHop)
	return r.WithHops(hops...)
}

func compareHop(a, b plan.Hop) int {
	if c := a.Via.Compare(b.Via); c != 0 {
		return c
	}
	return int(a.Link) - int(b.Link)
}
