package rtnl

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"unsafe"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"golang.org/x/sys/unix"
)

// Table streams the main table. Each dump has a socket of its own, so that one
// that is given up half-way leaves nothing behind.
func (s *System) Table(ctx context.Context) iter.Seq2[plan.Route, error] {
	return func(yield func(plan.Route, error) bool) {
		d := tableDump{yield: yield, ns: s.ns}
		if err := d.run(ctx); err != nil {
			yield(plan.Route{}, err)
		}
	}
}

type tableDump struct {
	yield   func(plan.Route, error) bool
	ns      *namespace
	nh      nexthops
	stopped bool
	missing bool // a route named a nexthop object that the dump of those lacked
}

func (d *tableDump) run(ctx context.Context) error {
	sock, err := d.ns.open()
	if err != nil {
		return err
	}
	defer sock.close()
	if d.nh, err = dumpNexthops(ctx, sock); err != nil {
		return fmt.Errorf("dump nexthop objects: %w", asInterrupted(err))
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if err := d.family(ctx, sock, family); err != nil {
			return fmt.Errorf("dump main table: %w", asInterrupted(err))
		}
		if d.stopped {
			return nil
		}
	}
	if d.missing {
		return fmt.Errorf("dump main table: nexthop objects changed meanwhile: %w", enforce.ErrInterrupted)
	}
	return nil
}

func asInterrupted(err error) error {
	if errors.Is(err, errInterrupted) {
		return enforce.ErrInterrupted
	}
	return err
}

func (d *tableDump) family(ctx context.Context, sock *socket, family uint8) error {
	sock.begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
	sock.out = append(sock.out, family, 0, 0, 0, unix.RT_TABLE_MAIN, 0, 0, 0, 0, 0, 0, 0)
	sock.out = appendUint32(sock.out, unix.RTA_TABLE, unix.RT_TABLE_MAIN)
	err := sock.dump(ctx, d.take)
	switch {
	case errors.Is(err, unix.ENOENT): // no route was ever added to the table
		return nil
	case family == unix.AF_INET6 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)):
		return nil // a kernel without IPv6
	}
	return err
}

func (d *tableDump) take(m *message) bool {
	var r plan.Route
	switch parseRoute(m.body, &r, d.nh) {
	case parsed:
		// A view of the receive buffer, not a copy: of a million routes a few
		// are kept, and whoever keeps one copies it (enforce.System.Table).
		r.Raw = unsafe.String(unsafe.SliceData(m.body), len(m.body))
		d.stopped = !d.yield(r, nil)
	case unresolved:
		d.missing = true
	}
	return !d.stopped
}

// Nexthop objects: include/uapi/linux/nexthop.h.
const (
	rtmNewNexthop = 104
	rtmDelNexthop = 105
	rtmGetNexthop = 106
	nhmLen        = 8 // struct nhmsg

	nhaID        = 1
	nhaGroup     = 2
	nhaBlackhole = 4
	nhaOIF       = 5
	nhaGateway   = 6
	nhGrpLen     = 8 // struct nexthop_grp
)

// dumpNexthops reads every nexthop object; a kernel without them has none.
func dumpNexthops(ctx context.Context, sock *socket) (nexthops, error) {
	sock.begin(rtmGetNexthop, unix.NLM_F_DUMP)
	sock.out = append(sock.out, make([]byte, nhmLen)...)
	c := newNexthopCache()
	err := sock.dump(ctx, func(m *message) bool {
		c.add(m.body)
		return true
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	return c.hops, err
}

// nexthopCache follows the nexthop objects by their announcements.
type nexthopCache struct {
	hops   nexthops
	groups map[uint32][]uint32
}

func newNexthopCache() *nexthopCache {
	return &nexthopCache{hops: nexthops{}, groups: map[uint32][]uint32{}}
}

// add takes in an object, new or replaced, and the groups it is a member of.
func (c *nexthopCache) add(body []byte) {
	id, hops, group, ok := parseNexthop(body)
	if !ok {
		return
	}
	delete(c.groups, id)
	if c.hops[id] = hops; len(group) > 0 {
		c.groups[id] = group
	}
	c.regroup()
}

// regroup gives the groups the hops of their members.
func (c *nexthopCache) regroup() {
	for g := range c.groups {
		c.hops[g] = c.members(g)
	}
}

func (c *nexthopCache) members(group uint32) []plan.Hop {
	var hops []plan.Hop
	for _, id := range c.groups[group] {
		hops = append(hops, c.hops[id]...)
	}
	return hops
}

func (c *nexthopCache) remove(body []byte) {
	if id, _, _, ok := parseNexthop(body); ok {
		delete(c.hops, id)
		delete(c.groups, id)
		c.regroup()
	}
}

// flush drops the objects by a link that went down, lost its carrier or is gone, as the
// kernel does without a word about them (nexthop_flush_dev in net/ipv4/nexthop.c).
func (c *nexthopCache) flush(link uint32) {
	gone := false
	for id, hops := range c.hops {
		if c.groups[id] == nil && len(hops) == 1 && hops[0].Link == link {
			delete(c.hops, id)
			gone = true
		}
	}
	if gone {
		c.regroup()
	}
}

// parseLinkState reads of struct ifinfomsg which link it is and whether it can carry
// packets still.
func parseLinkState(typ uint16, body []byte) (link uint32, carries bool) {
	if len(body) < unix.SizeofIfInfomsg {
		return 0, true
	}
	flags := u32(body[8:])
	const carrier = unix.IFF_RUNNING | unix.IFF_LOWER_UP
	return u32(body[4:]), typ != unix.RTM_DELLINK && flags&unix.IFF_UP != 0 && flags&carrier != 0
}

// parseNexthop reads struct nhmsg and its attributes. A blackhole has no legs.
func parseNexthop(body []byte) (id uint32, hops []plan.Hop, group []uint32, ok bool) {
	if len(body) < nhmLen {
		return 0, nil, nil, false
	}
	var hop plan.Hop
	blackhole := false
	for b := body[nhmLen:]; len(b) > 0; {
		a, rest, ok := nextAttr(b)
		if !ok {
			return 0, nil, nil, false
		}
		switch b = rest; a.typ {
		case nhaID:
			id = u32(a.value)
		case nhaBlackhole:
			blackhole = true
		case nhaOIF:
			hop.Link = u32(a.value)
		case nhaGateway:
			hop.Via = addr(a.value)
		case nhaGroup:
			for g := a.value; len(g) >= nhGrpLen; g = g[nhGrpLen:] {
				group = append(group, u32(g))
			}
		}
	}
	if !blackhole && len(group) == 0 {
		hops = []plan.Hop{hop}
	}
	return id, hops, group, id != 0
}
