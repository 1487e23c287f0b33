package pfroute

import (
	"net/netip"
	"slices"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

// message is one routing message.
type message []byte

// next splits off the first message. It is false at the end, and where the
// bytes are no message.
func next(b []byte) (m message, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := int(native.Uint16(b))
	if n < 4 || n > len(b) {
		return nil, nil, false
	}
	return message(b[:n:n]), b[n:], true
}

func (m message) typ() byte { return m[offType] }

// isRoute reports whether the message has the header of a route.
func (m message) isRoute() bool { return len(m) >= headerLen && m[offVersion] == rtmVersion }

func (m message) flags() uint32 { return native.Uint32(m[offFlags:]) }
func (m message) errno() uint32 { return native.Uint32(m[offErrno:]) }
func (m message) pid() uint32   { return native.Uint32(m[offPID:]) }
func (m message) seq() uint32   { return native.Uint32(m[offSeq:]) }

// own reports whether the message is of a route with culvert's mark.
func (m message) own() bool {
	return m.flags()&flagProto1 != 0 && native.Uint32(m[offHops:]) == OwnHops
}

// entry is one route of the table with what plan does not know of it.
type entry struct {
	plan.Route
	host bool       // RTF_HOST: another place than the full mask's
	ifa  netip.Addr // the interface address that the kernel chose for it, or invalid
}

// at reports whether e takes the place of o.
func (e *entry) at(o *entry) bool { return e.Dst == o.Dst && e.host == o.host }

// outcome is what reading a route message came to.
type outcome uint8

const (
	parsed outcome = iota
	skipped
	unreadable
)

// parseEntry reads a route message into e. Its Raw is left to the caller, its
// origin is settled by [links.place], which knows the addresses.
func parseEntry(m message, e *entry, now time.Time) outcome {
	if !m.isRoute() {
		return unreadable
	}
	flags := m.flags()
	if flags&noEntry != 0 || (flags&flagLLInfo != 0 && !m.own()) {
		return skipped
	}
	addrs, ok := sockaddrs(m[headerLen:], native.Uint32(m[offAddrs:]))
	if !ok {
		return unreadable
	}
	*e = entry{host: flags&flagHost != 0, ifa: addrs[rtaIfa].addr()}
	if !addrs[rtaDst].addr().IsValid() {
		return skipped // another protocol's
	}
	if e.Dst, ok = prefix(&addrs, e.host); !ok {
		return unreadable
	}
	e.Hop = hop(m, &addrs)
	e.Type, e.Protocol, e.Origin = kind(flags), protocol(m), plan.Foreign
	if m.own() {
		e.Origin = plan.Own
	}
	if e.Type != plan.Unicast {
		e.Hop = plan.Hop{}
	}
	if at := int64(native.Uint32(m[offExpire:])); at != 0 {
		e.Expires = uint32(max(1, at-now.Unix()))
	}
	return parsed
}

// prefix is the destination. A mask that is not there is a full one.
func prefix(addrs *[rtaMax]sockaddr, host bool) (netip.Prefix, bool) {
	dst := addrs[rtaDst].addr()
	n := dst.BitLen()
	if mask := addrs[rtaNetmask]; mask != nil && !host {
		var ok bool
		if n, ok = mask.maskBits(n); !ok {
			return netip.Prefix{}, false
		}
	}
	return netip.PrefixFrom(dst, n).Masked(), true
}

// hop is where the route leads. A request repeated to its listeners has no
// index unless its sender gave one; the interface may be told otherwise.
func hop(m message, addrs *[rtaMax]sockaddr) plan.Hop {
	h := plan.Hop{Link: uint32(native.Uint16(m[offIndex:]))}
	if h.Link == 0 {
		h.Link = addrs[rtaIfp].link()
	}
	if m.flags()&flagGateway != 0 {
		h.Via = addrs[rtaGateway].addr()
	}
	if l := addrs[rtaGateway].link(); l != 0 && h.Link == 0 {
		h.Link = l
	}
	return h
}

func kind(flags uint32) plan.Type {
	switch {
	case flags&flagBlackhole != 0:
		return plan.Blackhole
	case flags&flagReject != 0:
		return plan.Unreachable
	}
	return plan.Unicast
}

func protocol(m message) uint8 {
	switch flags := m.flags(); {
	case m.own():
		return ProtoOwn
	case flags&flagDynamic != 0:
		return ProtoRedirect
	case flags&flagStatic != 0:
		return ProtoStatic
	}
	return ProtoOther
}

// begin starts a message of which the addresses follow.
func begin(typ byte, flags, seq uint32) message {
	m := make(message, headerLen, headerLen+rtaMax*lenLink)
	m[offVersion], m[offType] = rtmVersion, typ
	native.PutUint32(m[offFlags:], flags)
	native.PutUint32(m[offSeq:], seq)
	return m
}

// end fills in what is known when all addresses are there.
func (m message) end(present uint32) message {
	native.PutUint32(m[offAddrs:], present)
	native.PutUint16(m[offLen:], uint16(len(m)))
	return m
}

// buildOwn makes the request that adds a route of ours. On an interface that
// resolves neighbours it is a cloning one with a full mask, as the system's own
// route to its router is: a host route would become a neighbour's entry itself.
func buildOwn(r *plan.Route, l *link, seq uint32) message {
	flags := uint32(flagUp | flagStatic | flagProto1)
	switch {
	case r.Hop.Via.IsValid():
		flags |= flagGateway
	case l.flags&(ifPoint|ifLoopback) == 0:
		flags |= flagCloning
	}
	m := begin(rtmAdd, flags, seq)
	native.PutUint32(m[offInits:], rtvHops)
	native.PutUint32(m[offHops:], OwnHops)
	m = appendAddr(m, r.Dst.Addr())
	if r.Hop.Via.IsValid() {
		m = appendAddr(m, scoped(r.Hop.Via, r.Hop.Link))
	} else {
		m = appendLink(m, r.Hop.Link)
	}
	m = appendMask(m, r.Dst)
	m = appendLink(m, r.Hop.Link)
	return m.end(1<<rtaDst | 1<<rtaGateway | 1<<rtaNetmask | 1<<rtaIfp)
}

// scoped puts the interface into a link-local address, as the kernel keeps it.
func scoped(a netip.Addr, link uint32) netip.Addr {
	if !scopedAddr(a) || a.Is4() {
		return a
	}
	b := a.As16()
	b[2], b[3] = byte(link>>8), byte(link)
	return netip.AddrFrom16(b)
}

// buildAdd makes the request that adds a route again as it was read: flags,
// gateway, masks, interface and its address, metrics and their locks. Its
// lifetime ends at the given calendar time, or never.
func buildAdd(raw message, seq, expire uint32) (message, bool) {
	var e entry
	addrs, ok := sockaddrs(raw[min(headerLen, len(raw)):], present(raw))
	if !raw.isRoute() || !ok || parseEntry(raw, &e, time.Time{}) != parsed {
		return nil, false
	}
	m := begin(rtmAdd, raw.flags()&replayed, seq)
	copy(m[offLocks:], raw[offLocks:headerLen])
	native.PutUint32(m[offExpire:], expire)
	native.PutUint32(m[offInits:], inits(m))
	has := uint32(0)
	for i, s := range addrs[:rtaAuthor] {
		switch {
		case i == rtaNetmask && !e.host:
			m = appendMask(m, e.Dst)
		case i == rtaIfp && s == nil && native.Uint16(raw[offIndex:]) != 0:
			m = appendLink(m, uint32(native.Uint16(raw[offIndex:])))
		case len(s) == 0 || i == rtaNetmask:
			continue
		default:
			m = appendPadded(m, s)
		}
		has |= 1 << i
	}
	return m.end(has), true
}

func present(m message) uint32 {
	if !m.isRoute() {
		return 0
	}
	return native.Uint32(m[offAddrs:])
}

// inits says which metrics to set: a dump tells their values and not which of
// them were set.
func inits(m message) uint32 {
	bits := native.Uint32(m[offLocks:])
	for _, f := range metrics {
		if native.Uint32(m[f.at:]) != 0 {
			bits |= f.bit
		}
	}
	return bits
}

// buildDelete makes the request that deletes what is at a place: the kernel
// looks at destination and mask alone.
func buildDelete(e *entry, seq uint32) message {
	flags, has := uint32(flagUp), uint32(1<<rtaDst)
	if e.host {
		flags |= flagHost
	}
	m := appendAddr(begin(rtmDelete, flags, seq), e.Dst.Addr())
	if !e.host {
		m = appendMask(m, e.Dst)
		has |= 1 << rtaNetmask
	}
	return message(m).end(has)
}

// entries reads a dump.
func entries(rib []byte, ls links, now time.Time) ([]entry, bool) {
	out := make([]entry, 0, len(rib)/128)
	whole := string(rib)
	var e entry
	for at := 0; at < len(rib); {
		m, _, ok := next(rib[at:])
		if !ok {
			return out, false
		}
		if parseEntry(m, &e, now) == parsed && ls.place(&e, m.flags()) {
			e.Raw = whole[at : at+len(m)]
			out = append(out, e)
		}
		at += len(m)
	}
	return out, true
}

// find returns the entry that is the route, or nil.
func find(list []entry, is func(*entry) bool) *entry {
	i := slices.IndexFunc(list, func(e entry) bool { return is(&e) })
	if i < 0 {
		return nil
	}
	return &list[i]
}
