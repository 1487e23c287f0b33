package rtnl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"golang.org/x/sys/unix"
)

// otherKept bounds what is kept of one other table.
const otherKept = 1024

// otherTables reads the rules, and of the tables that are asked before main what
// could take traffic.
func (s *System) otherTables(ctx context.Context, f *enforce.Facts, rules []Rule) error {
	f.Tables = map[string]enforce.Content{}
	before := map[uint32]bool{unix.RT_TABLE_LOCAL: true}
	mainSeen := map[uint8]bool{}
	for _, r := range rules {
		if r.goesOn || r.Text == "" {
			continue
		}
		rule := r.Rule()
		f.Rules = append(f.Rules, rule)
		if rule.AsksMain() {
			mainSeen[r.Family] = true
		}
		if r.Table != 0 && r.Table != unix.RT_TABLE_MAIN && !mainSeen[r.Family] {
			before[r.Table] = true
		}
	}
	s.before.Store(&before)
	sock, err := s.ns.open()
	if err != nil {
		return err
	}
	defer sock.close()
	nh, err := dumpNexthops(ctx, sock)
	if err != nil {
		return fmt.Errorf("dump nexthop objects: %w", asInterrupted(err))
	}
	for id := range before {
		if id == unix.RT_TABLE_LOCAL {
			f.Local, err = s.foreignLocal(ctx, f.Links)
		} else {
			f.Tables[TableName(id)], err = s.content(ctx, id, nh)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Rule is a rule as the Enforcer takes it.
func (r Rule) Rule() enforce.Rule {
	out := enforce.Rule{Family: int(r.Family), Dst: r.Dst, Selects: r.Selects, Suppress: r.Suppress, Text: r.Text}
	if r.Table != 0 {
		out.Table = TableName(r.Table)
	}
	return out
}

// content reads the routes of a table of both families, as far as they are kept.
func (s *System) content(ctx context.Context, table uint32, nh nexthops) (enforce.Content, error) {
	var c enforce.Content
	err := s.dumpOther(ctx, table, nh, func(r *plan.Route) bool {
		if c.Cut = len(c.Routes) == otherKept; !c.Cut {
			c.Routes = append(c.Routes, *r)
		}
		return !c.Cut
	})
	return c, err
}

// foreignLocal reads the routes of table local that no address of this host made.
func (s *System) foreignLocal(ctx context.Context, links []plan.Link) ([]plan.Route, error) {
	own := ownRoutes(links)
	var out []plan.Route
	err := s.dumpOther(ctx, unix.RT_TABLE_LOCAL, nil, func(r *plan.Route) bool {
		if r.Type != plan.Anycast && r.Type != plan.Multicast && !own[r.Dst] && !plan.InIgnored(r.Dst) && len(out) < otherKept {
			out = append(out, *r)
		}
		return true
	})
	return out, err
}

// ownRoutes are the destinations that the kernel puts into table local for the
// addresses of the interfaces: the addresses and the ends of their networks, which
// are broadcast addresses. Loopback's network is local as a whole.
func ownRoutes(links []plan.Link) map[netip.Prefix]bool {
	own := map[netip.Prefix]bool{}
	for _, l := range links {
		for _, p := range l.Addrs {
			own[netip.PrefixFrom(p.Addr(), p.Addr().BitLen())] = true
			if p.Addr().Is4() {
				first := p.Masked().Addr()
				own[netip.PrefixFrom(first, 32)] = true
				own[netip.PrefixFrom(last4(p), 32)] = true
			}
		}
	}
	return own
}

// last4 is the last address of an IPv4 network.
func last4(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(a)
}

// dumpOther reads a table other than main. It has a socket of its own, for the
// reading may be given up half-way.
func (s *System) dumpOther(ctx context.Context, table uint32, nh nexthops, each func(*plan.Route) bool) error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		more, err := s.dumpFamily(ctx, table, family, nh, each)
		if err != nil {
			return fmt.Errorf("dump table %s: %w", TableName(table), asInterrupted(err))
		}
		if !more {
			return nil
		}
	}
	return nil
}

func (s *System) dumpFamily(ctx context.Context, table uint32, family uint8, nh nexthops, each func(*plan.Route) bool) (more bool, err error) {
	sock, err := s.ns.open()
	if err != nil {
		return false, err
	}
	defer sock.close()
	sock.begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
	sock.out = append(sock.out, family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	sock.out[len(sock.out)-8] = tableByte(table)
	sock.out = appendUint32(sock.out, unix.RTA_TABLE, table)
	more = true
	err = sock.dump(ctx, func(m *message) bool {
		if len(m.body) < rtmLen || tableOf(m.body) != table {
			return true // a kernel that does not filter dumps
		}
		setTable(m.body, unix.RT_TABLE_MAIN)
		var r plan.Route
		if status := parseRoute(m.body, &r, nh); status == parsed || status == unresolved {
			r.Raw = ""
			more = each(&r)
		}
		return more
	})
	if errors.Is(err, unix.ENOENT) || isUnsupported(err) {
		err = nil // no route was ever added there, or a kernel without the family
	}
	return more, err
}

// tableByte is a table's number where it fits the header, else what says that an
// attribute has it.
func tableByte(table uint32) uint8 {
	if table > 255 {
		return unix.RT_TABLE_COMPAT
	}
	return uint8(table)
}
