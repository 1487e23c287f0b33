package rtnl

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/culvert-project/culvert/enforce/plan"
	"golang.org/x/sys/unix"
)

// Query asks which route the kernel would take. The zero value of every field
// but Dst means that the packet has no such property.
type Query struct {
	Dst  netip.Addr
	TOS  uint8
	Mark uint32
	UID  uint32
	Link string // the interface that the socket is bound to
}

// Answer is the kernel's choice.
type Answer struct {
	Route plan.Route // the table entry that matched; of the packet's own cache entry, only the legs
	Table uint32
	Type  plan.Type
	Err   error // what a sender would get (unreachable, prohibited), else nil
}

// Lookup asks the kernel (RTM_GETROUTE) which entry of which table it would
// take for a packet of this host. A destination that cannot be reached is an
// answer, not an error.
func (s *System) Lookup(_ context.Context, q Query) (Answer, error) {
	sock, err := s.ns.open()
	if err != nil {
		return Answer{}, err
	}
	defer sock.close()
	if err := beginLookup(sock, q); err != nil {
		return Answer{}, err
	}
	var a Answer
	err = sock.do(func(hdr unix.NlMsghdr, body []byte) {
		if hdr.Type == unix.RTM_NEWROUTE && len(body) >= rtmLen {
			a = parseAnswer(body)
		}
	})
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH),
		errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		return Answer{Err: err, Type: plan.Unreachable}, nil
	case err != nil:
		return Answer{}, fmt.Errorf("look up %v: %w", q.Dst, err)
	}
	return a, nil
}

func beginLookup(s *socket, q Query) error {
	family := uint8(unix.AF_INET6)
	if q.Dst.Is4() {
		family = unix.AF_INET
	}
	s.begin(unix.RTM_GETROUTE, unix.NLM_F_ACK)
	s.out = append(s.out, family, uint8(q.Dst.BitLen()), 0, q.TOS, 0, 0, 0, 0)
	s.out = native.AppendUint32(s.out, unix.RTM_F_LOOKUP_TABLE|unix.RTM_F_FIB_MATCH)
	s.out = appendAttr(s.out, unix.RTA_DST, q.Dst.AsSlice())
	if q.Mark != 0 {
		s.out = appendUint32(s.out, unix.RTA_MARK, q.Mark)
	}
	if q.UID != 0 {
		s.out = appendUint32(s.out, unix.RTA_UID, q.UID)
	}
	if q.Link != "" {
		l, err := net.InterfaceByName(q.Link)
		if err != nil {
			return fmt.Errorf("look up %v from %s: %w", q.Dst, q.Link, err)
		}
		s.out = appendUint32(s.out, unix.RTA_OIF, uint32(l.Index))
	}
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
