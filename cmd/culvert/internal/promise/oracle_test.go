//go:build linux

package promise

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/testenv"
)

// class is what the policy says of an address or of a route's destination.
type class int

const (
	unlisted class = iota
	protected
	excluded
	ignored
)

// never lists what is never touched.
var never = testenv.Prefixes("127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32",
	"::1/128", "fe80::/10", "ff00::/8")

func covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// classify finds the longest prefix of the policy that contains p, by trying
// them all.
func (w *world) classify(p netip.Prefix) (c class, tunnel string, by netip.Prefix) {
	if slices.ContainsFunc(never, func(n netip.Prefix) bool { return covers(n, p) }) {
		return ignored, "", netip.Prefix{}
	}
	longest := -1
	try := func(q netip.Prefix, as class, t string) {
		if covers(q, p) && q.Bits() >= longest {
			longest, c, tunnel, by = q.Bits(), as, t, q
		}
	}
	for _, s := range w.sessions {
		for _, q := range s.Protect {
			try(q, protected, s.Tunnel)
		}
		for _, q := range s.Exclude {
			try(q, excluded, "")
		}
	}
	for _, s := range w.servers() {
		try(netip.PrefixFrom(s, s.BitLen()), excluded, "")
	}
	return c, tunnel, by
}

func (w *world) servers() (out []netip.Addr) {
	for _, s := range w.sessions {
		for _, srv := range s.Servers {
			out = append(out, srv.Addr.Addr())
		}
	}
	return out
}

// pinhole returns the interface by which an address may be reached although it
// is protected: a gateway's, when a server may be behind it, or an excluded route
// goes by it.
func (w *world) pinhole(a netip.Addr) string {
	for _, d := range devices {
		if !w.enforced(d.name) && (d.gate4 == a || d.gate6 == a) && (len(w.servers()) > 0 || w.leans[a]) {
			return d.name
		}
	}
	return ""
}

var gateways = regexp.MustCompile(`via ([0-9a-f.:]+) dev (\w+)`)

// readGateways learns the gateways of the excluded routes in a table.
func (l *lab) readGateways(w *world, table string) {
	w.leans = map[netip.Addr]bool{}
	for _, e := range entries(table) {
		if c, _, _ := w.classify(destination(e)); c != excluded {
			continue
		}
		for _, m := range gateways.FindAllStringSubmatch(e, -1) {
			w.leans[netip.MustParseAddr(m[1])] = true
		}
		for _, m := range objectID.FindAllStringSubmatch(e, -1) {
			for _, name := range l.objects[number(m[1])] {
				w.leans[deviceNamed(name).gate(isV6(e))] = true
			}
		}
	}
}

// enforced reports whether an interface is the tunnel of a session.
func (w *world) enforced(name string) bool {
	return slices.ContainsFunc(w.sessions, func(s enforce.Session) bool { return s.Tunnel == name })
}

// isOwn reports whether the table local, which nobody touches, has a say.
func (w *world) isOwn(a netip.Addr) bool {
	return slices.Contains(w.more, a) || slices.ContainsFunc(devices, func(d device) bool {
		return a == d.addr4.Addr() || a == d.addr6.Addr() || a == last(d.addr4)
	})
}

// isLowest reports whether a is the lowest address of a subnet of the host.
func (w *world) isLowest(a netip.Addr) bool {
	return slices.Contains(w.lowest, a) || slices.ContainsFunc(devices, func(d device) bool { return a == d.addr4.Masked().Addr() })
}

func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// boundaries are the first and last addresses of every prefix in the policy
// and in the texts, and their neighbours.
func boundaries(sessions []enforce.Session, texts ...string) []netip.Addr {
	set := map[netip.Addr]bool{}
	add := func(p netip.Prefix) {
		first, last := p.Masked().Addr(), last(p)
		for _, a := range []netip.Addr{first, last, first.Prev(), last.Next()} {
			if a.IsValid() && !a.IsUnspecified() {
				set[a] = true
			}
		}
	}
	for _, s := range sessions {
		for _, p := range slices.Concat(s.Protect, s.Exclude, never) {
			add(p)
		}
		for _, srv := range s.Servers {
			add(netip.PrefixFrom(srv.Addr.Addr(), srv.Addr.Addr().BitLen()))
		}
	}
	for _, p := range prefixesIn(texts...) {
		add(p)
	}
	return slices.SortedFunc(maps.Keys(set), netip.Addr.Compare)
}

var addressText = regexp.MustCompile(`(?:^|[ \t\n])([0-9a-f]*[:.][0-9a-f:.]+)(/\d+)?`)

// prefixesIn returns everything in the texts that reads like an address or a
// prefix.
func prefixesIn(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		for _, m := range addressText.FindAllStringSubmatch(text, -1) {
			if a, err := netip.ParseAddr(m[1]); err == nil && m[2] == "" {
				out = append(out, netip.PrefixFrom(a, a.BitLen()))
			} else if p, err := netip.ParsePrefix(m[1] + m[2]); err == nil {
				out = append(out, p.Masked())
			}
		}
	}
	return out
}

// questions are what is asked of the kernel: every boundary, for every TOS
// (IPv4) or source (IPv6).
func questions(addrs []netip.Addr) (out []question) {
	for _, a := range addrs {
		out = append(out, question{dst: a})
		if a.Is4() {
			for _, tos := range tosValues {
				out = append(out, question{dst: a, tos: tos})
			}
			continue
		}
		for _, src := range sourceAddrs {
			out = append(out, question{dst: a, src: src})
		}
	}
	return out
}

// goes says in which way the kernel's answer to a question is wrong, or "".
// A protected address must be sent by the tunnel alone: the chosen leg, and
// every leg of the matching route.
func (l *lab) goes(t testing.TB, w *world, q question, tunnel string) string {
	t.Helper()
	m := l.ask.match(t, q)
	if w.isOwn(q.dst) || l.zero && w.isLowest(q.dst) {
		return ""
	}
	if q.dst.Is6() && m.refused == unix.ENETUNREACH && l.orphans && l.arrives(t, q, tunnel) {
		return ""
	}
	legs := m.devices
	if m.nexthop != 0 && legs == nil { // the object alone is named
		legs = l.objects[m.nexthop]
	}
	wrong := func(name string) bool { return name != tunnel && name != w.pinhole(q.dst) }
	if m.refused != nil || m.typ != unix.RTN_UNICAST || len(legs) == 0 || slices.ContainsFunc(legs, wrong) {
		return fmt.Sprintf("%v must leave by %s, matches %v", q, tunnel, m)
	}
	if q.src.IsValid() {
		return ""
	}
	hop, err := l.fib.Lookup(q.dst, q.tos)
	if err != nil || wrong(hop.Device) || hop.Type != unix.RTN_UNICAST {
		return fmt.Sprintf("%v must leave by %s, is sent %+v, %v", q, tunnel, hop, err)
	}
	return ""
}

// arrives sends a packet and reports whether it comes out of the tunnel. The
// source is the kernel's choice: the questions name ones that the host lacks.
func (l *lab) arrives(t testing.TB, q question, tunnel string) bool {
	t.Helper()
	c := l.tuns[tunnel].Count(testenv.Filter{Dst: netip.PrefixFrom(q.dst, q.dst.BitLen())})
	defer c.Stop() //nolint:errcheck // it has counted
	sent, err := l.ns.Blast(t.Context(), testenv.Blast{Dst: netip.AddrPortFrom(q.dst, 9), Count: 1})
	return err == nil && sent.Packets == 1 && c.Wait(1, time.Second).Packets == 1
}

// violations asks about every protected address and returns what is wrong.
func (l *lab) violations(t testing.TB, w *world, asked []question) (out []string, of int) {
	t.Helper()
	for _, q := range asked {
		c, tunnel, _ := w.classify(netip.PrefixFrom(q.dst, q.dst.BitLen()))
		if c != protected {
			continue
		}
		of++
		if wrong := l.goes(t, w, q, tunnel); wrong != "" {
			out = append(out, wrong)
		}
	}
	return out, of
}

// answers are the matches of the questions about addresses that the tunnel may
// not take.
func (l *lab) answers(t testing.TB, w *world, asked []question) map[question]match {
	t.Helper()
	out := map[question]match{}
	for _, q := range asked {
		if c, _, _ := w.classify(netip.PrefixFrom(q.dst, q.dst.BitLen())); c != protected {
			out[q] = l.ask.match(t, q)
		}
	}
	return out
}

// bystanders compares the answers about addresses that are not protected with
// those of before. They may differ where the route of before was a conflict
// itself, or where a protected prefix around the address got the tunnel route
// that it lacked.
func (l *lab) bystanders(t testing.TB, w *world, before map[question]match) (out []string, of int) {
	t.Helper()
	for q, was := range before {
		is := l.ask.match(t, q)
		of++
		if is.same(was) || w.mayDiffer(q, was, is) {
			continue
		}
		out = append(out, fmt.Sprintf("%v went by %v, goes by %v", q, was, is))
	}
	return out, of
}

func (w *world) mayDiffer(q question, was, is match) bool {
	if orphaned(was, is) || orphaned(is, was) || takeTurns(was, is) {
		return true
	}
	if was.refused != nil || (was.nexthop != 0 && q.dst.Is6()) {
		// Which entry refused is not told; and the one told of an IPv6 nexthop
		// object may be any that uses it.
		return w.underProtected(q.dst)
	}
	if c, _, _ := w.classify(was.dst); c == protected {
		return true
	}
	if slices.Contains(w.servers(), q.dst) { // its host route may have been added
		return slices.Equal(was.devices, is.devices) || !slices.ContainsFunc(is.devices, w.enforced)
	}
	if hole := w.pinhole(q.dst); hole != "" && slices.Equal(is.devices, []string{hole}) {
		return true // a gateway that no server is behind has no hole, and is judged like others
	}
	return w.coveredByPut(q.dst, was, is)
}

// orphaned reports an answer that tells of no route: Linux keeps one cached entry
// per IPv6 nexthop object, and when the route that it was made for goes, refuses
// to say what it is, while packets still follow it.
func orphaned(one, other match) bool {
	return one.nexthop != 0 && one.dst.Addr().Is6() && other.refused == unix.ENETUNREACH
}

// takeTurns reports that several IPv4 default routes stand, of which Linux
// chooses by what it knows of their gateways (fib_select_default).
func takeTurns(was, is match) bool {
	default4 := func(m match) bool { return m.refused == nil && m.dst == netip.PrefixFrom(netip.IPv4Unspecified(), 0) }
	return default4(was) && default4(is)
}

// coveredByPut reports whether the address now matches the tunnel route of a
// protected prefix that contains it and had none.
func (w *world) coveredByPut(a netip.Addr, was, is match) bool {
	for _, s := range w.sessions {
		if slices.Contains(s.Protect, is.dst) && is.dst.Contains(a) && slices.Equal(is.devices, []string{s.Tunnel}) {
			return was.dst.Bits() <= is.dst.Bits()
		}
	}
	return false
}

func (w *world) underProtected(a netip.Addr) bool {
	return slices.ContainsFunc(w.sessions, func(s enforce.Session) bool {
		return slices.ContainsFunc(s.Protect, func(p netip.Prefix) bool { return p.Contains(a) })
	})
}
