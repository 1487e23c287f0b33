package rtnl

import (
	"errors"
	"slices"

	"github.com/culvert-project/culvert/enforce/plan"
)

// CheckRoute says what is wrong with a route that came from a file: its bytes
// must be a route of the main table, and the one that the other fields describe.
// Some of the legs may be missing, for of an IPv6 multipath route only those
// outside the tunnel are removed, and its lifetime may be another. What earlier
// versions did not write is read from the bytes.
func (s *System) CheckRoute(r *plan.Route) error {
	var d plan.Route
	if status := parseRoute([]byte(r.Raw), &d, nil); status != parsed && status != unresolved {
		return errors.New("its bytes are no route of the main table")
	}
	legs := slices.Collect(d.Hops())
	if r.NexthopID == 0 || d.Hop.Link != 0 {
		for h := range r.Hops() {
			if !slices.Contains(legs, h) {
				return errors.New("its bytes name other legs")
			}
		}
	}
	d.Hop, d.More = r.Hop, r.More
	r.Origin, r.AnyGateway = d.Origin, d.AnyGateway
	if !d.Same(*r) {
		return errors.New("its bytes are another route's")
	}
	return nil
}
