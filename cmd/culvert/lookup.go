package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// errNoWay: no route of the table covers the address.
var errNoWay = errors.New("no route")

// lookupIn answers from the table as it is read: where a system has one table
// and no rules, the longest prefix that covers the address decides.
func lookupIn(ctx context.Context, sys enforce.System, q query) (answer, error) {
	facts, err := sys.Facts(ctx)
	if err != nil {
		return answer{}, err
	}
	if l, ok := ownerOf(facts.Links, q.dst); ok {
		own := plan.Route{Dst: netip.PrefixFrom(q.dst, q.dst.BitLen()), Hop: plan.Hop{Link: l}, Type: plan.Local}
		return answer{route: own, table: "the host's own addresses"}, nil
	}
	r, ok, err := longest(sys.Table(ctx), q.dst)
	switch {
	case err != nil:
		return answer{}, fmt.Errorf("read routes: %w", err)
	case !ok:
		return answer{refused: errNoWay}, nil
	}
	return answer{route: r, table: "as read by culvert; the longest prefix decides"}, nil
}

// ownerOf returns the interface that an address belongs to.
func ownerOf(links []plan.Link, a netip.Addr) (uint32, bool) {
	for _, l := range links {
		for _, p := range l.Addrs {
			if p.Addr() == a {
				return l.Index, true
			}
		}
	}
	return 0, false
}

// longest returns the route that a packet takes: of those that cover the
// address and can carry it, the longest; of these the one of the lowest metric;
// of these the first.
func longest(table iter.Seq2[plan.Route, error], dst netip.Addr) (best plan.Route, found bool, err error) {
	for r, err := range table {
		if err != nil {
			return best, false, err
		}
		if r.Dead || !r.Dst.Contains(dst) {
			continue
		}
		if !found || r.Dst.Bits() > best.Dst.Bits() || r.Dst.Bits() == best.Dst.Bits() && r.Metric < best.Metric {
			best, found = r.Clone(), true
		}
	}
	return best, found, nil
}
