//go:build linux

package promise

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

const rtaNHID = 30 // RTA_NH_ID, include/uapi/linux/rtnetlink.h

// asker asks the kernel which entry of its tables takes a packet, all legs of
// it: an answer of [testenv.FIB] names the one leg that was chosen this time.
type asker struct {
	fd    int
	seq   uint32
	names map[uint32]string
	buf   []byte
}

// question is a packet to ask about.
type question struct {
	dst, src netip.Addr // src may be invalid
	tos      uint8
}

func (q question) String() string {
	s := fmt.Sprintf("%v tos %#x", q.dst, q.tos)
	if q.src.IsValid() {
		s += " from " + q.src.String()
	}
	return s
}

// match is the entry that the kernel chose.
type match struct {
	refused error // instead of it
	dst     netip.Prefix
	typ     uint8
	tos     uint8
	metric  uint32
	nexthop uint32
	legs    []string // interface and gateway
	devices []string // interfaces alone
}

func (m match) String() string {
	if m.refused != nil {
		return m.refused.Error()
	}
	return fmt.Sprintf("type %d %v tos %#x metric %d nhid %d %q", m.typ, m.dst, m.tos, m.metric, m.nexthop, m.legs)
}

// same reports whether both send a packet the same way.
func (m match) same(o match) bool {
	return m.refused == o.refused && m.typ == o.typ && slices.Equal(m.legs, o.legs)
}

func newAsker(t *testing.T, ns *testenv.NS) *asker {
	t.Helper()
	a := &asker{fd: -1, names: map[uint32]string{}, buf: make([]byte, 1<<16)}
	ns.Run(t, func() {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		a.fd = fd
	})
	t.Cleanup(func() { _ = unix.Close(a.fd) })
	return a
}

// match asks for the entry with all its legs. Linux keeps one cached answer per
// IPv6 nexthop object and may name any route that uses the object: for those it
// is asked for the chosen leg instead.
func (a *asker) match(t testing.TB, q question) match {
	t.Helper()
	m := a.exchange(t, q, unix.RTM_F_FIB_MATCH)
	if m.nexthop == 0 || q.dst.Is4() {
		return m
	}
	chosen := a.exchange(t, q, 0)
	chosen.nexthop = m.nexthop
	return chosen
}

func (a *asker) exchange(t testing.TB, q question, flags uint32) match {
	t.Helper()
	a.seq++
	req := a.request(q, flags)
	if _, err := unix.Write(a.fd, req); err != nil {
		t.Fatalf("ask for %v: %v", q, err)
	}
	n, err := unix.Read(a.fd, a.buf)
	if err != nil || n < unix.NLMSG_HDRLEN+4 {
		t.Fatalf("answer for %v: %d bytes, %v", q, n, err)
	}
	body := a.buf[unix.NLMSG_HDRLEN:n]
	if typ := binary.NativeEndian.Uint16(a.buf[4:]); typ == unix.NLMSG_ERROR {
		return match{refused: unix.Errno(-int32(binary.NativeEndian.Uint32(body)))}
	}
	return a.parse(body)
}

func (a *asker) request(q question, flags uint32) []byte {
	e := binary.NativeEndian
	b := e.AppendUint32(nil, 0)
	b = e.AppendUint16(b, unix.RTM_GETROUTE)
	b = e.AppendUint16(b, unix.NLM_F_REQUEST)
	b = e.AppendUint32(b, a.seq)
	b = e.AppendUint32(b, 0)
	family := byte(unix.AF_INET)
	if q.dst.Is6() {
		family = unix.AF_INET6
	}
	srcLen := byte(0)
	if q.src.IsValid() {
		srcLen = byte(q.src.BitLen())
	}
	b = append(b, family, byte(q.dst.BitLen()), srcLen, q.tos, 0, 0, 0, 0)
	b = e.AppendUint32(b, flags)
	b = appendAttr(b, unix.RTA_DST, q.dst.AsSlice())
	if q.src.IsValid() {
		b = appendAttr(b, unix.RTA_SRC, q.src.AsSlice())
	}
	e.PutUint32(b, uint32(len(b)))
	return b
}

func appendAttr(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...) // addresses: no padding needed
	return b
}

func (a *asker) parse(b []byte) (m match) {
	e := binary.NativeEndian
	m.typ, m.tos = b[7], b[3]
	base := netip.IPv4Unspecified()
	if b[0] == unix.AF_INET6 {
		base = netip.IPv6Unspecified()
	}
	var gate netip.Addr
	var link uint32
	eachAttr(b[unix.SizeofRtMsg:], func(typ uint16, v []byte) {
		switch typ {
		case unix.RTA_DST:
			base, _ = netip.AddrFromSlice(v)
		case unix.RTA_PRIORITY:
			m.metric = e.Uint32(v)
		case unix.RTA_OIF:
			link = e.Uint32(v)
		case unix.RTA_GATEWAY:
			gate, _ = netip.AddrFromSlice(v)
		case rtaNHID:
			m.nexthop = e.Uint32(v)
		case unix.RTA_MULTIPATH:
			a.legs(v, &m)
		}
	})
	m.dst = netip.PrefixFrom(base, int(b[1]))
	if m.legs == nil && link != 0 {
		a.leg(&m, link, gate)
	}
	slices.Sort(m.legs) // an IPv6 answer begins with the leg chosen this time
	return m
}

func (a *asker) legs(v []byte, m *match) {
	for len(v) >= unix.SizeofRtNexthop {
		n := int(binary.NativeEndian.Uint16(v))
		var gate netip.Addr
		eachAttr(v[unix.SizeofRtNexthop:n], func(typ uint16, v []byte) {
			if typ == unix.RTA_GATEWAY {
				gate, _ = netip.AddrFromSlice(v)
			}
		})
		a.leg(m, binary.NativeEndian.Uint32(v[4:]), gate)
		v = v[min((n+3)&^3, len(v)):]
	}
}

func (a *asker) leg(m *match, link uint32, gate netip.Addr) {
	name := a.names[link]
	if name == "" {
		name = fmt.Sprint("link ", link)
	}
	m.devices = append(m.devices, name)
	m.legs = append(m.legs, fmt.Sprint(name, " ", gate))
}

func eachAttr(b []byte, f func(typ uint16, value []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&0x3fff, b[unix.SizeofRtAttr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}
