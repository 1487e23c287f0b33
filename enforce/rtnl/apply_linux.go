package rtnl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"golang.org/x/sys/unix"
)

// Apply implements enforce.System. Once the kernel has left one change without an answer
// the others are not asked for: each would wait as long.
func (s *System) Apply(ctx context.Context, actions []plan.Action) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := make([]error, len(actions))
	var mute error
	for i := range actions {
		if errs[i] = cmp.Or(ctx.Err(), mute); errs[i] == nil {
			errs[i] = s.apply(&actions[i])
		}
		if mute == nil && errors.Is(errs[i], errNoAnswer) {
			mute = fmt.Errorf("not asked for, after another change: %w", errNoAnswer)
		}
	}
	return errs
}

func (s *System) apply(a *plan.Action) error {
	switch a.Kind {
	case plan.Put:
		return addRoute(s.changes, &a.Route, a.First, 0)
	case plan.Restore:
		if done, err := s.restoreAdvertised(&a.Route, a.Age); done && (err == nil || errors.Is(err, enforce.ErrAlready)) {
			return err
		}
		return restoreRoute(s.changes, &a.Route, a.First, a.Age)
	case plan.Remove, plan.Lift, plan.Withdraw:
		return deleteRoute(s.changes, []byte(a.Route.Raw), &a.Route)
	}
	return nil
}

// addRoute adds the route. First puts it ahead of an IPv4 slot's others; IPv6
// has no such order, and merges gatewayed routes of one metric as before.
func addRoute(s *socket, r *plan.Route, first bool, age uint32) error {
	beginAdd(s, first)
	s.out = appendBody(s.out, r, age)
	return addError(s.do(nil), r)
}

func beginAdd(s *socket, first bool) {
	flags := uint16(unix.NLM_F_ACK | unix.NLM_F_CREATE)
	if !first {
		flags |= unix.NLM_F_APPEND
	}
	s.begin(unix.RTM_NEWROUTE, flags)
}

func appendBody(b []byte, r *plan.Route, age uint32) []byte {
	if r.Raw == "" {
		return appendOwn(b, r)
	}
	return appendAdd(b, []byte(r.Raw), r, age)
}

// restoreRoute adds a route that stood before. What the route leaned on may
// still be out, or may have gone meanwhile: then it comes back as near to what
// it was as the kernel lets it.
func restoreRoute(s *socket, r *plan.Route, first bool, age uint32) error {
	if r.Expires != 0 && age >= r.Expires {
		return nil // its lifetime ended: the kernel would have dropped it
	}
	err := addBack(s, r, first, age)
	if err == nil || errors.Is(err, enforce.ErrAlready) || errors.Is(err, enforce.ErrGone) || errors.Is(err, enforce.ErrNotNow) || errors.Is(err, unix.EPERM) ||
		errors.Is(err, errNoAnswer) {
		return err
	}
	if err := addScaffolded(s, r, first, age); err == nil || errors.Is(err, enforce.ErrAlready) {
		return err // a route that stands is refused for its gateway before it is found there
	}
	for _, amend := range amendments(r) {
		beginAdd(s, first)
		s.out = append(s.out, amend(appendBody(nil, r, age))...)
		if err := addError(s.do(nil), r); err == nil || errors.Is(err, enforce.ErrAlready) {
			return err
		}
	}
	if r.NexthopID != 0 && !nexthopExists(s, r.NexthopID) {
		return fmt.Errorf("nexthop object %d: %w", r.NexthopID, enforce.ErrGone)
	}
	if errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) {
		// The way to its gateway is still out.
		return fmt.Errorf("%w: %w", enforce.ErrNotNow, err)
	}
	return err
}

// addBack adds a route that stood before. The legs of an IPv6 multipath route are
// deleted one by one, and a crash in between leaves the others: then the kernel
// refuses the whole because of those. What stands of it is taken out and the whole
// added, so that the legs have their order.
func addBack(s *socket, r *plan.Route, first bool, age uint32) error {
	err := addRoute(s, r, first, age)
	if !errors.Is(err, enforce.ErrAlready) || r.Dst.Addr().Is4() || !r.Multipath() || r.NexthopID != 0 || r.Raw == "" {
		return err
	}
	lacked := false
	for hop := range r.Hops() {
		leg := r.WithHops(hop)
		switch err := addRoute(s, &leg, false, age); {
		case err == nil:
			lacked = true
		case !errors.Is(err, enforce.ErrAlready):
			return err
		}
	}
	if !lacked {
		return err
	}
	if err := deleteRoute(s, []byte(r.Raw), r); err != nil {
		return err
	}
	return addRoute(s, r, first, age)
}

// addScaffolded adds a route whose gateways' on-link routes are still out. The
// kernel asks for those only while it adds the route, so host routes stand in
// for them that long: the route comes back without an onlink flag that it never
// had, and IPv6 refuses that flag where another interface leads to the gateway.
// A crash in between leaves routes of our own, which are withdrawn.
func addScaffolded(s *socket, r *plan.Route, first bool, age uint32) error {
	var standing []plan.Route
	if r.NexthopID == 0 {
		for hop := range r.Hops() {
			if host, ok := hostRoute(hop); ok && addNew(s, &host) == nil {
				standing = append(standing, host)
			}
		}
	}
	if len(standing) == 0 {
		return enforce.ErrNotNow
	}
	err := addBack(s, r, first, age)
	for i := range standing {
		if e := deleteRoute(s, nil, &standing[i]); e != nil && !errors.Is(e, enforce.ErrAlready) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// hostRoute leads to a gateway on its link, where it has a gateway that needs it.
func hostRoute(hop plan.Hop) (plan.Route, bool) {
	via := hop.Via
	if !via.IsValid() || (via.Is6() && via.IsLinkLocalUnicast()) {
		return plan.Route{}, false
	}
	r := plan.Route{Dst: netip.PrefixFrom(via, via.BitLen()), Hop: plan.Hop{Link: hop.Link}, Origin: plan.Own}
	if via.Is6() {
		r.Metric = 1 // 0 would read as the default
	}
	return r, true
}

// addNew adds a route where no other has its place.
func addNew(s *socket, r *plan.Route) error {
	s.begin(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	s.out = appendOwn(s.out, r)
	return s.do(nil)
}

// amendments are the ways to bring back a route that the kernel refuses as it
// was: its gateway's on-link route is still out, or (IPv6) its source address
// is gone, which the kernel would have cleared.
func amendments(r *plan.Route) []func([]byte) []byte {
	var out []func([]byte) []byte
	if r.NexthopID == 0 {
		out = append(out, withOnlink)
	}
	if r.Dst.Addr().Is6() && r.PrefSrc.IsValid() {
		out = append(out, func(b []byte) []byte { return without(b, unix.RTA_PREFSRC) })
	}
	return out
}

func nexthopExists(s *socket, id uint32) bool {
	s.begin(rtmGetNexthop, unix.NLM_F_ACK)
	s.out = append(s.out, make([]byte, nhmLen)...)
	s.out = appendUint32(s.out, nhaID, id)
	return !errors.Is(s.do(nil), unix.ENOENT)
}

// addError is ErrAlready for a route that is there.
func addError(err error, r *plan.Route) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		return enforce.ErrAlready
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("add %v: %w: %w", r.Dst, enforce.ErrGone, err)
	case errors.Is(err, unix.ENETDOWN), r.Dst.Addr().Is6() && (errors.Is(err, unix.EACCES) || isUnsupported(err)):
		// The interface is down, or IPv6 is off on it or in the kernel.
		return fmt.Errorf("add %v: %w: %w", r.Dst, enforce.ErrNotNow, err)
	}
	return fmt.Errorf("add %v: %w", r.Dst, err)
}

// deleteRoute deletes the route that raw, the kernel's own bytes, names. Gone
// already is success.
//
// However much a delete names, the kernel takes what is absent for "any": an
// IPv4 metric of 0, gateway and source address (fib_table_delete, fib_nh_match in
// net/ipv4), an IPv6 gateway and nexthop id (ip6_route_del in net/ipv6), and
// deletes the first route that fits. So it is asked to echo what it deleted; a
// wrong one is set aside, the delete made again, and what was set aside put
// back. A crash in between loses it unless it was written down, which the
// Enforcer's loop does with those that it sees may be taken, and the edge path leaves
// to the loop what may take a route of its own place. So one is lost only if the
// conflict went by itself, a route of a higher metric fits, and the process is killed,
// all within some microseconds.
func deleteRoute(s *socket, raw []byte, r *plan.Route) error {
	if len(raw) == 0 || r.Dst.Addr().Is4() || r.NexthopID != 0 || !hasAttr(raw, unix.RTA_MULTIPATH) {
		return deleteOne(s, raw, r, appendDelete)
	}
	var errs error
	idle := enforce.ErrAlready
	for hop := range r.Hops() {
		leg := r.WithHops(hop)
		switch err := deleteOne(s, raw, &leg, appendDeleteLeg); {
		case err == nil:
			idle = nil
		case !errors.Is(err, enforce.ErrAlready):
			errs = errors.Join(errs, err)
		}
	}
	return cmp.Or(errs, idle)
}

func deleteOne(s *socket, raw []byte, r *plan.Route, body func(b, raw []byte, r *plan.Route) []byte) (err error) {
	var aside []string
	defer func() { err = displaced(s, aside, err) }()
	for {
		s.echo = s.echo[:0]
		s.begin(unix.RTM_DELROUTE, unix.NLM_F_ACK|unix.NLM_F_ECHO)
		if len(raw) == 0 {
			s.out = appendOwn(s.out, r)
		} else {
			s.out = body(s.out, raw, r)
		}
		err := s.do(nil)
		if err != nil || len(s.echo) == 0 || isVictim(s.echo, r) {
			return deleteError(err, r)
		}
		aside = append(aside, string(s.echo))
	}
}

// isVictim reports whether the deleted route is the one that was meant, in
// what a delete cannot name for certain.
func isVictim(deleted []byte, r *plan.Route) bool {
	var d plan.Route
	parseRoute(deleted, &d, nil)
	return d.Metric == r.Metric && d.PrefSrc == r.PrefSrc && d.NexthopID == r.NexthopID &&
		(r.NexthopID != 0 || (d.Hop == r.Hop && d.More == r.More && d.Type == r.Type))
}

// displaced puts back what was deleted by mistake, ahead of its slot's others, as
// it had been found ahead of the one that was meant. What cannot be put back now is
// named in the error, beside what became of the delete itself.
func displaced(s *socket, aside []string, deleted error) error {
	var out []plan.Route
	var errs error
	for _, raw := range slices.Backward(aside) {
		var r plan.Route
		parseRoute([]byte(raw), &r, nil)
		r.Raw = raw
		if err := restoreRoute(s, &r, true, 0); err != nil && !errors.Is(err, enforce.ErrAlready) {
			out, errs = append(out, r), errors.Join(errs, err)
		}
	}
	if len(out) == 0 {
		return deleted
	}
	return &enforce.DisplacedError{Routes: out, Why: errs, Result: deleted}
}

func deleteError(err error, r *plan.Route) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOENT):
		return enforce.ErrAlready
	}
	return fmt.Errorf("delete %v: %w", r.Dst, err)
}
