package rtnl

import (
	"iter"
	"slices"

	"github.com/culvert-project/culvert/enforce/plan"
	"golang.org/x/sys/unix"
)

// The builders append to b the body of a request (struct rtmsg and attributes)
// that names the route raw: the kernel's own bytes of it.

// appendDelete names every attribute of the route, so that as few others as
// can be match.
func appendDelete(b, raw []byte, r *plan.Route) []byte {
	start := len(b)
	if raw[0] == unix.AF_INET && r.NexthopID == 0 && r.Hop.Link != 0 && !hasAttr(raw, unix.RTA_MULTIPATH) && !hasAttr(raw, unix.RTA_ENCAP) {
		// A leg named by itself also fits multipath routes that begin with it
		// (fib_nh_match); as a list of one leg it fits no longer list.
		b = appendCopy(b, raw, r, func(a attr) bool { return namesRoute(raw, a) && !isLeg(a.typ) })
		return appendOneLeg(appendMetrics(b, raw), raw, r)
	}
	b = appendCopy(b, raw, r, func(a attr) bool { return namesRoute(raw, a) })
	if raw[0] == unix.AF_INET {
		b = appendMetrics(b, raw)
	}
	if r.NexthopID != 0 && r.Type == plan.Blackhole {
		// Routes of a nexthop object that was turned into a blackhole are
		// announced as blackhole and stored as unicast: leave the type open.
		b[start+7] = unix.RTN_UNSPEC
	}
	return b
}

// namesRoute reports whether a delete names the route by an attribute as it is.
func namesRoute(raw []byte, a attr) bool {
	return a.typ != unix.RTA_CACHEINFO && (a.typ != unix.RTA_METRICS || raw[0] != unix.AF_INET)
}

// The kernel's own metrics of a route (RTAX_* of rtnetlink.h): all numbers but the
// congestion control's name.
const (
	rtaxMax    = 17
	rtaxCCAlgo = 16
)

// appendMetrics names every metric of the route (MTU and such), also those that it
// does not have: a metric of 0 fits none that has it (fib_metrics_match in net/ipv4),
// and one that is not named fits any. A congestion control that it does not have
// cannot be named so.
func appendMetrics(b, raw []byte) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	native.PutUint16(b[start+2:], unix.RTA_METRICS)
	var has [rtaxMax + 1]bool
	for rest := raw[rtmLen:]; len(rest) > 0; {
		a, next, ok := nextAttr(rest)
		if !ok {
			break
		}
		if rest = next; a.typ != unix.RTA_METRICS {
			continue
		}
		b = pad(append(b, a.value...))
		for value := a.value; len(value) > 0; {
			m, next, ok := nextAttr(value)
			if !ok {
				break
			}
			if value = next; int(m.typ) < len(has) {
				has[m.typ] = true
			}
		}
	}
	for typ := uint16(1); typ <= rtaxMax; typ++ {
		if !has[typ] && typ != rtaxCCAlgo {
			b = appendUint32(b, typ, 0)
		}
	}
	native.PutUint16(b[start:], uint16(len(b)-start))
	return b
}

// appendAdd names the route as it was, less what only the kernel may say; age
// is how many seconds of its lifetime have passed since.
func appendAdd(b, raw []byte, r *plan.Route, age uint32) []byte {
	start := len(b)
	b = appendCopy(b, raw, r, func(a attr) bool {
		return a.typ != unix.RTA_CACHEINFO && a.typ != unix.RTA_EXPIRES
	})
	if r.NexthopID != 0 && r.Type == plan.Blackhole {
		b[start+7] = unix.RTN_UNICAST
	}
	if r.Expires > age {
		b = appendUint32(b, unix.RTA_EXPIRES, r.Expires-age)
	}
	return b
}

// appendCopy copies the message with the flags that may be written, and the
// attributes that keep lets through. A nexthop id stands for the legs.
func appendCopy(b, raw []byte, r *plan.Route, keep func(attr) bool) []byte {
	start := len(b)
	b = append(b, raw[:rtmLen]...)
	native.PutUint32(b[start+8:], native.Uint32(raw[8:])&hopFlags)
	for rest := raw[rtmLen:]; len(rest) > 0; {
		a, next, ok := nextAttr(rest)
		if !ok {
			break
		}
		switch rest = next; {
		case !keep(a), a.typ == unix.RTA_IIF, r.NexthopID != 0 && isLeg(a.typ):
		case a.typ == unix.RTA_MULTIPATH:
			b = appendLegs(b, a.value, r)
		default:
			b = pad(append(b, a.bytes...))
		}
	}
	return b
}

// appendDeleteLeg names one leg of an IPv6 multipath route. Its protocol is left
// open: the legs may have been added with different ones, of which a dump
// shows the first.
func appendDeleteLeg(b, raw []byte, r *plan.Route) []byte {
	start := len(b)
	b = appendCopy(b, raw, r, func(a attr) bool { return a.typ != unix.RTA_CACHEINFO && !isLeg(a.typ) })
	b[start+5] = unix.RTPROT_UNSPEC
	b = appendUint32(b, unix.RTA_OIF, r.Hop.Link)
	return appendGateway(b, r)
}

func hasAttr(raw []byte, typ uint16) bool {
	for rest := raw[rtmLen:]; len(rest) > 0; {
		a, next, ok := nextAttr(rest)
		if !ok {
			break
		}
		if rest = next; a.typ == typ {
			return true
		}
	}
	return false
}

// appendOneLeg appends RTA_MULTIPATH with the route's only leg.
func appendOneLeg(b, raw []byte, r *plan.Route) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	native.PutUint16(b[start+2:], unix.RTA_MULTIPATH)
	b = append(b, 0, 0, 0, 0)
	b = native.AppendUint32(b, r.Hop.Link)
	for rest := raw[rtmLen:]; len(rest) > 0; {
		a, next, ok := nextAttr(rest)
		if !ok {
			break
		}
		if rest = next; a.typ == unix.RTA_GATEWAY || a.typ == unix.RTA_VIA {
			b = pad(append(b, a.bytes...))
		}
	}
	native.PutUint16(b[start+attrLen:], uint16(len(b)-start-attrLen))
	native.PutUint16(b[start:], uint16(len(b)-start))
	return b
}

func isLeg(typ uint16) bool {
	switch typ {
	case unix.RTA_OIF, unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH,
		unix.RTA_ENCAP, unix.RTA_ENCAP_TYPE:
		return true
	}
	return false
}

// appendLegs copies those legs that r still has: of an IPv6 multipath route
// only the legs outside the tunnel are removed, and come back.
func appendLegs(b, value []byte, r *plan.Route) []byte {
	start := len(b)
	b = append(b, 0, 0, byte(unix.RTA_MULTIPATH), 0)
	native.PutUint16(b[start+2:], unix.RTA_MULTIPATH)
	eachLeg(value, func(leg []byte) {
		if h, _ := parseLeg(leg); !hasHop(r.Hops(), h) {
			return
		}
		at := len(b)
		b = pad(append(b, leg...))
		b[at+2] &= hopFlags
	})
	native.PutUint16(b[start:], uint16(len(b)-start))
	return b
}

func hasHop(hops iter.Seq[plan.Hop], want plan.Hop) bool {
	for h := range hops {
		if h == want {
			return true
		}
	}
	return false
}

// appendOwn builds a route that no kernel ever told us: a pinhole, or a tunnel
// route that was never seen. It carries our protocol number.
func appendOwn(b []byte, r *plan.Route) []byte {
	family, scope, flags := uint8(unix.AF_INET6), uint8(unix.RT_SCOPE_UNIVERSE), uint32(0)
	if r.Dst.Addr().Is4() {
		family, scope = unix.AF_INET, unix.RT_SCOPE_LINK
	}
	if r.Hop.Via.IsValid() {
		// The route to the gateway may itself be out: say that it is on the link.
		scope, flags = unix.RT_SCOPE_UNIVERSE, unix.RTNH_F_ONLINK
	}
	typ := uint8(unix.RTN_UNICAST)
	if r.Type == plan.Unreachable {
		scope, typ = unix.RT_SCOPE_UNIVERSE, unix.RTN_UNREACHABLE
	}
	b = append(b, family, uint8(r.Dst.Bits()), 0, r.TOS,
		unix.RT_TABLE_MAIN, OwnProtocol, scope, typ)
	b = native.AppendUint32(b, flags)
	b = appendAttr(b, unix.RTA_DST, r.Dst.Addr().AsSlice())
	if r.Hop.Link != 0 {
		b = appendUint32(b, unix.RTA_OIF, r.Hop.Link)
	}
	b = appendGateway(b, r)
	if r.Metric != 0 {
		b = appendUint32(b, unix.RTA_PRIORITY, r.Metric)
	}
	if r.PrefSrc.IsValid() {
		b = appendAttr(b, unix.RTA_PREFSRC, r.PrefSrc.AsSlice())
	}
	return b
}

func appendGateway(b []byte, r *plan.Route) []byte {
	switch gw := r.Hop.Via; {
	case !gw.IsValid():
		return b
	case gw.Is6() && r.Dst.Addr().Is4():
		return appendAttr(b, unix.RTA_VIA, append(native.AppendUint16(nil, unix.AF_INET6), gw.AsSlice()...))
	default:
		return appendAttr(b, unix.RTA_GATEWAY, gw.AsSlice())
	}
}

// withOnlink returns the request body with RTNH_F_ONLINK set, on every leg.
func withOnlink(body []byte) []byte {
	b := slices.Clone(body)
	for rest := b[rtmLen:]; len(rest) > 0; {
		a, next, ok := nextAttr(rest)
		if !ok {
			break
		}
		if rest = next; a.typ == unix.RTA_MULTIPATH {
			eachLeg(a.value, func(leg []byte) { leg[2] |= unix.RTNH_F_ONLINK })
			return b
		}
	}
	native.PutUint32(b[8:], native.Uint32(b[8:])|unix.RTNH_F_ONLINK)
	return b
}

// without returns the request body less one attribute.
func without(body []byte, typ uint16) []byte {
	b := slices.Clone(body[:rtmLen])
	for rest := body[rtmLen:]; len(rest) > 0; {
		a, next, ok := nextAttr(rest)
		if !ok {
			break
		}
		if rest = next; a.typ != typ {
			b = pad(append(b, a.bytes...))
		}
	}
	return b
}
