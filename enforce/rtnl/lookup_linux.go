package rtnl

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"golang.org/x/sys/unix"
)

// Query asks which route the kernel would take. The zero value of every field
// but Dst means that the packet has no such property.
type Query struct {
	Dst   netip.Addr
	Src   netip.Addr // an address of this host, or zero: the kernel chooses
	TOS   uint8
	Mark  uint32
	UID   uint32
	Link  string // the interface that the socket is bound to
	Proto uint8  // of udp, tcp and the two icmp; the kernel is asked about no other
	Port  uint16 // where it goes; only beside Proto
}

// Answer is the kernel's choice.
type Answer struct {
	Route plan.Route // the table entry that matched; of the packet's own cache entry, only the legs
	Table uint32
	Type  plan.Type
	Err   error // what a sender would get (unreachable, prohibited), else nil
	// OnLink: no route leads there, but IPv4 takes any destination to be on the
	// link of the interface that the socket is bound to.
	OnLink bool
}

// Lookup asks the kernel (RTM_GETROUTE) which entry of which table it would
// take for a packet of this host. A destination that cannot be reached is an
// answer; a question that the kernel refuses is an error.
func (s *System) Lookup(ctx context.Context, q Query) (Answer, error) {
	sock, err := s.ns.open()
	if err != nil {
		return Answer{}, err
	}
	defer sock.close()
	a, err := lookup(sock, q, lookupFlags(q.Dst))
	if err == nil && a.Err != nil && q.Link != "" && q.Dst.Is4() {
		return lookupOnLink(sock, q, a)
	}
	if err != nil {
		return a, err
	}
	l := legs{sock: sock}
	return a, l.fill(ctx, &a.Route)
}

// legs fills in what nexthop objects stand for: under nexthop_compat_mode=0 the
// kernel answers with their ids alone. The objects are read once, if at all.
type legs struct {
	sock *socket
	nh   nexthops
	read bool
}

func (l *legs) fill(ctx context.Context, r *plan.Route) (err error) {
	if r.NexthopID == 0 || r.Hop.Link != 0 {
		return nil
	}
	if !l.read {
		if l.nh, err = dumpNexthops(ctx, l.sock); err != nil {
			return fmt.Errorf("dump nexthop objects: %w", asInterrupted(err))
		}
		l.read = true
	}
	if hops := l.nh[r.NexthopID]; len(hops) > 0 {
		*r = r.WithHops(hops...)
	}
	return nil
}

// Ways implements enforce.Asker: all are asked on one socket.
func (s *System) Ways(ctx context.Context, to []netip.Addr) ([]enforce.Way, error) {
	if len(to) == 0 {
		return nil, nil
	}
	sock, err := s.ns.open()
	if err != nil {
		return nil, err
	}
	defer sock.close()
	out, l := make([]enforce.Way, len(to)), legs{sock: sock}
	for i, dst := range to {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		a, err := lookup(sock, Query{Dst: dst}, lookupFlags(dst))
		if isUnsupported(err) { // a kernel without the family sends nothing there
			a, err = Answer{Err: err, Type: plan.Unreachable}, nil
		}
		if err == nil {
			err = l.fill(ctx, &a.Route)
		}
		if err != nil {
			return nil, err
		}
		out[i] = enforce.Way{Route: a.Route, Table: TableName(a.Table), Err: a.Err}
		out[i].Route.Type = a.Type
	}
	return out, nil
}

var _ enforce.Asker = (*System)(nil)

// lookupFlags asks for the entry that matched, and its table. IPv6 tells the
// table of an entry without being asked, and refuses a question with any other
// flag (inet6_rtm_valid_getroute_req in net/ipv6/route.c).
func lookupFlags(dst netip.Addr) uint32 {
	if dst.Is4() {
		return unix.RTM_F_LOOKUP_TABLE | unix.RTM_F_FIB_MATCH
	}
	return unix.RTM_F_FIB_MATCH
}

// lookupOnLink asks once more for a packet that no entry matches but that leaves
// all the same by the interface that its socket is bound to.
func lookupOnLink(sock *socket, q Query, refused Answer) (Answer, error) {
	a, err := lookup(sock, q, 0)
	if err != nil || a.Err != nil {
		return refused, err
	}
	a.Table, a.OnLink = 0, true
	return a, nil
}

func lookup(sock *socket, q Query, flags uint32) (Answer, error) {
	if err := beginLookup(sock, q, flags); err != nil {
		return Answer{}, err
	}
	var a Answer
	answered := false
	err := sock.do(func(hdr unix.NlMsghdr, body []byte) {
		if hdr.Type == unix.RTM_NEWROUTE && len(body) >= rtmLen {
			a, answered = parseAnswer(body), true
		}
	})
	switch typ, no := noWay(err); {
	case err != nil && len(sock.said) > 0: // the kernel says what is wrong with the question
		return Answer{}, fmt.Errorf("look up %v: %w: %s", q.Dst, err, sock.said)
	case no:
		return Answer{Err: err, Type: typ}, nil
	case err != nil:
		return Answer{}, fmt.Errorf("look up %v: %w", q.Dst, err)
	case !answered:
		return Answer{}, fmt.Errorf("look up %v: the kernel gave no answer", q.Dst)
	}
	return a, nil
}

// noWay tells the errors that are answers: those that routes and rules of a type
// other than unicast give to a sender (fib_props in net/ipv4/fib_semantics.c,
// ip6_rt_type_to_error in net/ipv6/route.c). The kernel has no words for them.
func noWay(err error) (plan.Type, bool) {
	switch {
	case errors.Is(err, unix.EINVAL):
		return plan.Blackhole, true
	case errors.Is(err, unix.EACCES):
		return plan.Prohibit, true
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return plan.Unreachable, true
	}
	return 0, false
}

// What RTM_GETROUTE can be told besides (include/uapi/linux/rtnetlink.h).
const (
	rtaIPProto = 0x1b
	rtaDport   = 0x1d
)

func beginLookup(s *socket, q Query, flags uint32) error {
	family, srcLen := uint8(unix.AF_INET6), 0
	if q.Dst.Is4() {
		family = unix.AF_INET
	}
	if q.Src.IsValid() {
		srcLen = q.Src.BitLen()
	}
	s.begin(unix.RTM_GETROUTE, unix.NLM_F_ACK)
	s.out = append(s.out, family, uint8(q.Dst.BitLen()), uint8(srcLen), q.TOS, 0, 0, 0, 0)
	s.out = native.AppendUint32(s.out, flags)
	s.out = appendAttr(s.out, unix.RTA_DST, q.Dst.AsSlice())
	if srcLen > 0 {
		s.out = appendAttr(s.out, unix.RTA_SRC, q.Src.AsSlice())
	}
	if q.Mark != 0 {
		s.out = appendUint32(s.out, unix.RTA_MARK, q.Mark)
	}
	if q.UID != 0 {
		s.out = appendUint32(s.out, unix.RTA_UID, q.UID)
	}
	s.appendTransport(q)
	return s.appendLink(q)
}

// appendTransport tells the protocol where the kernel knows it as a transport
// (rtm_getroute_parse_ip_proto in net/ipv4/ip_output.c knows four).
func (s *socket) appendTransport(q Query) {
	switch q.Proto {
	case unix.IPPROTO_UDP, unix.IPPROTO_TCP:
		s.out = appendAttr(s.out, rtaIPProto, []byte{q.Proto})
		if q.Port != 0 {
			s.out = appendAttr(s.out, rtaDport, []byte{byte(q.Port >> 8), byte(q.Port)})
		}
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		s.out = appendAttr(s.out, rtaIPProto, []byte{q.Proto})
	}
}

func (s *socket) appendLink(q Query) error {
	if q.Link == "" {
		return nil
	}
	l, err := net.InterfaceByName(q.Link)
	if err != nil {
		return fmt.Errorf("look up %v from %s: %w", q.Dst, q.Link, err)
	}
	s.out = appendUint32(s.out, unix.RTA_OIF, uint32(l.Index))
	return nil
}

// parseAnswer reads the matched entry, whichever table it is in. Host
// addresses may be answered with table 254 although they are in local: the
// type tells them.
func parseAnswer(body []byte) Answer {
	b := append([]byte(nil), body...)
	a := Answer{Table: tableOf(b)}
	setTable(b, unix.RT_TABLE_MAIN)
	native.PutUint32(b[8:], native.Uint32(b[8:])&^unix.RTM_F_CLONED)
	parseRoute(b, &a.Route, nil)
	a.Type = a.Route.Type
	if a.Type == plan.Local {
		a.Table = unix.RT_TABLE_LOCAL
	}
	return a
}

func tableOf(b []byte) uint32 {
	for rest := b[rtmLen:]; len(rest) > 0; {
		a, next, ok := nextAttr(rest)
		if !ok {
			break
		}
		if rest = next; a.typ == unix.RTA_TABLE {
			return u32(a.value)
		}
	}
	return uint32(b[4])
}

func setTable(b []byte, table uint32) {
	b[4] = byte(table)
	for rest := b[rtmLen:]; len(rest) > 0; {
		a, next, ok := nextAttr(rest)
		if !ok {
			return
		}
		if rest = next; a.typ == unix.RTA_TABLE && len(a.value) >= 4 {
			native.PutUint32(a.value, table)
		}
	}
}
