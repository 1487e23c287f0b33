package pfroute

import (
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

// fakeKernel keeps a routing information base as xnu does (bsd/net/route.c and
// rtsock.c): one entry to a destination, mask and scope, additions refused
// where one stands, deletions by place alone, requests repeated to every
// listener as they were sent. It writes and reads its bytes by code of its own.
type fakeKernel struct {
	mu     sync.Mutex // guards what follows
	routes []fakeRoute
	ifs    []*fakeIf
	socks  []*fakeSocket

	// What can go wrong, nil or false for nothing.
	deleting func() // called before a deletion, the lock held
	refuse   func(m []byte) error
	failing  map[string]error // by method
	mute     bool             // deletions are not reported to their sender
	garbage  []byte           // appended to every dump
}

type fakeRoute struct {
	dst   netip.Prefix
	host  bool
	scope uint16
	gw    []byte // struct sockaddr
	flags uint32
	index uint16
	ifa   netip.Addr
	rmx   [14]uint32
}

type fakeIf struct {
	index uint16
	name  string
	flags uint32
	addrs []fakeAddr
	mtu   uint32
}

type fakeAddr struct {
	netip.Prefix
	peer netip.Addr
}

var le = binary.LittleEndian

// fakeSocket hears what happens from when it is opened. What does not fit is
// lost and nobody is told.
type fakeSocket struct {
	k        *fakeKernel
	in       chan []byte
	closed   chan struct{}
	once     sync.Once
	deadline time.Time
}

func (k *fakeKernel) open() (socket, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.failing["open"]; err != nil {
		return nil, err
	}
	s := &fakeSocket{k: k, in: make(chan []byte, 4096), closed: make(chan struct{})}
	k.socks = append(k.socks, s)
	return s, nil
}

func (s *fakeSocket) Read(b []byte) (int, error) {
	var late <-chan time.Time
	if !s.deadline.IsZero() {
		late = time.After(time.Until(s.deadline))
	}
	select {
	case m := <-s.in:
		if m == nil {
			return 0, syscall.ENOBUFS
		}
		return copy(b, m), nil
	case <-s.closed:
		return 0, os.ErrClosed
	case <-late:
		return 0, os.ErrDeadlineExceeded
	}
}

func (s *fakeSocket) Write(b []byte) (int, error) {
	if err := s.k.request(uint32(os.Getpid()), b, s); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (s *fakeSocket) SetReadDeadline(t time.Time) error { s.deadline = t; return nil }

func (s *fakeSocket) Close() error {
	s.once.Do(func() {
		close(s.closed)
		s.k.mu.Lock()
		defer s.k.mu.Unlock()
		s.k.socks = slices.DeleteFunc(s.k.socks, func(o *fakeSocket) bool { return o == s })
	})
	return nil
}

var _ io.Writer = (*fakeSocket)(nil)

func (k *fakeKernel) process(pid uint32) string {
	if pid == 1000 {
		return "route"
	}
	return ""
}

func (k *fakeKernel) uptime() (time.Duration, error) { return time.Hour, k.fail("uptime") }

func (k *fakeKernel) boot() (string, error) { return "boot-1", k.fail("boot") }

func (k *fakeKernel) fail(what string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failing[what]
}

// say sends a message to every listener. The lock is held.
func (k *fakeKernel) say(m []byte, except *fakeSocket) {
	for _, s := range k.socks {
		if s == except {
			continue
		}
		select {
		case s.in <- slices.Clone(m):
		default:
		}
	}
}

// request is route_output.
func (k *fakeKernel) request(pid uint32, in []byte, from *fakeSocket) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(in) < 92 || int(le.Uint16(in)) != len(in) || in[2] != 5 {
		return syscall.EINVAL
	}
	m := slices.Clone(in)
	le.PutUint32(m[16:], pid)
	sas := fakeAddrs(m[92:], le.Uint32(m[12:]))
	err := k.output(m, &sas)
	var report []byte
	if err == nil {
		le.PutUint32(m[8:], le.Uint32(m[8:])|0x40) // RTF_DONE
		report = m
		if m[3] == 2 {
			report = k.reported(m, &sas)
		}
	} else {
		var errno syscall.Errno
		errors.As(err, &errno)
		le.PutUint32(m[24:], uint32(errno))
		report = m
	}
	var except *fakeSocket
	if k.mute {
		except = from
	}
	k.say(report, except)
	return err
}

func (k *fakeKernel) output(m []byte, sas *[8][]byte) error {
	if k.refuse != nil {
		if err := k.refuse(m); err != nil {
			return err
		}
	}
	switch m[3] {
	case 1:
		return k.add(m, sas)
	case 2:
		return k.del(m, sas)
	case 3:
		return k.change(m, sas)
	}
	return syscall.EOPNOTSUPP
}

// fakeAddrs is rt_xaddrs.
func fakeAddrs(b []byte, bits uint32) (out [8][]byte) {
	for i := range out {
		if bits>>i&1 == 0 || len(b) == 0 {
			continue
		}
		n := int(b[0])
		if n == 0 {
			return out // "there are no more"
		}
		out[i] = b[:n]
		b = b[min((n+3)/4*4, len(b)):]
	}
	return out
}

func fakeInet(sa []byte) (a netip.Addr) {
	switch {
	case len(sa) >= 8 && sa[1] == 2:
		return netip.AddrFrom4([4]byte(sa[4:8]))
	case len(sa) >= 24 && sa[1] == 30:
		return netip.AddrFrom16([16]byte(sa[8:24]))
	}
	return a
}

func fakeSockaddr(a netip.Addr) []byte {
	if a.Is4() {
		b := a.As4()
		return []byte{16, 2, 0, 0, b[0], b[1], b[2], b[3], 0, 0, 0, 0, 0, 0, 0, 0}
	}
	b := a.As16()
	return slices.Concat([]byte{28, 30, 0, 0, 0, 0, 0, 0}, b[:], make([]byte, 4))
}

func fakeLinkAddr(index uint16, name string) []byte {
	b := slices.Concat([]byte{0, 18, byte(index), byte(index >> 8), 6, byte(len(name)), 6, 0}, []byte(name), []byte{2, 0, 0, 0, 0, byte(index)})
	b[0] = byte(max(20, len(b)))
	return append(b, make([]byte, int(b[0])-len(b))...)
}

// fakeMask cuts the mask after its last byte that is not zero, as radix.c does.
func fakeMask(p netip.Prefix) []byte {
	off := 4
	if p.Addr().Is6() {
		off = 8
	}
	b := make([]byte, off)
	for n := p.Bits(); n > 0; n -= 8 {
		b = append(b, byte(0xff<<max(0, 8-n)))
	}
	if p.Bits() == 0 {
		return []byte{0, 0, 0, 0}[:0]
	}
	b[0] = byte(len(b))
	return b
}

func fakeRead(sas *[8][]byte, flags uint32, index uint16) (r fakeRoute, ok bool) {
	dst := fakeInet(sas[0])
	if !dst.IsValid() {
		return r, false
	}
	n := dst.BitLen()
	if r.host = flags&4 != 0; !r.host && sas[2] != nil {
		n = 0
		off := 4
		if dst.Is6() {
			off = 8
		}
		for i := off; i < min(len(sas[2]), off+dst.BitLen()/8); i++ {
			n += bits.OnesCount8(sas[2][i])
		}
	}
	r.dst = netip.PrefixFrom(dst, n).Masked()
	if flags&0x1000000 != 0 {
		r.scope = index
	}
	return r, true
}

func (k *fakeKernel) find(r fakeRoute) int {
	return slices.IndexFunc(k.routes, func(o fakeRoute) bool {
		return o.dst == r.dst && o.host == r.host && o.scope == r.scope
	})
}

func (k *fakeKernel) iface(index uint16) *fakeIf {
	i := slices.IndexFunc(k.ifs, func(f *fakeIf) bool { return f.index == index })
	if i < 0 {
		return nil
	}
	return k.ifs[i]
}

// through is ifa_ifwithroute and rt_setif: the interface that an addition gets.
func (k *fakeKernel) through(sas *[8][]byte) *fakeIf {
	if ifp := sas[4]; len(ifp) >= 4 && ifp[1] == 18 {
		return k.iface(le.Uint16(ifp[2:]))
	}
	gw := sas[1]
	if gw[1] == 18 {
		return k.iface(le.Uint16(gw[2:]))
	}
	a := fakeInet(gw)
	if b := a.As16(); a.Is6() && a.IsLinkLocalUnicast() {
		return k.iface(uint16(b[2])<<8 | uint16(b[3]))
	}
	for _, f := range k.ifs {
		for _, p := range f.addrs {
			if p.peer == a || p.Contains(a) {
				return f
			}
		}
	}
	best := -1
	for i, r := range k.routes {
		if r.scope == 0 && r.dst.Contains(a) && (best < 0 || r.dst.Bits() > k.routes[best].dst.Bits()) {
			best = i
		}
	}
	if best < 0 {
		return nil
	}
	return k.iface(k.routes[best].index)
}

func (k *fakeKernel) add(m []byte, sas *[8][]byte) error {
	flags := le.Uint32(m[8:])
	r, ok := fakeRead(sas, flags, le.Uint16(m[4:]))
	if !ok || sas[1] == nil || flags&0x8000000 != 0 {
		return syscall.EINVAL
	}
	f := k.through(sas)
	if f == nil {
		return syscall.ENETUNREACH
	}
	if r.ifa = f.address(r.dst.Addr().Is4()); !r.ifa.IsValid() {
		return syscall.ENETUNREACH
	}
	if k.find(r) >= 0 {
		return syscall.EEXIST
	}
	r.gw, r.flags, r.index = slices.Clone(sas[1]), flags&^0x40|1, f.index
	r.rmx[1] = f.mtu
	r.set(m)
	k.routes = append(k.routes, r)
	return nil
}

// set is rt_setmetrics.
func (r *fakeRoute) set(m []byte) {
	inits := le.Uint32(m[32:])
	for i := range 8 {
		if inits>>i&1 != 0 {
			r.rmx[i+1] = le.Uint32(m[36+4*(i+1):])
		}
	}
	r.rmx[0] = r.rmx[0]&^inits | inits&le.Uint32(m[36:])
}

func (f *fakeIf) address(four bool) netip.Addr {
	for _, a := range f.addrs {
		if a.Addr().Is4() == four {
			return a.Addr()
		}
	}
	return netip.Addr{}
}

func (k *fakeKernel) del(m []byte, sas *[8][]byte) error {
	if k.deleting != nil {
		k.deleting()
	}
	r, ok := fakeRead(sas, le.Uint32(m[8:]), le.Uint16(m[4:]))
	if !ok {
		return syscall.EINVAL
	}
	i := k.find(r)
	if i < 0 {
		return syscall.ESRCH
	}
	gone := k.routes[i]
	k.routes = slices.Delete(k.routes, i, i+1)
	*sas = [8][]byte{fakeSockaddr(gone.dst.Addr()), gone.gw}
	if !gone.host {
		sas[2] = fakeMask(gone.dst)
	}
	le.PutUint32(m[8:], gone.flags&^1|0x2000000) // down and RTF_CONDEMNED
	le.PutUint16(m[4:], gone.index)
	for i, v := range gone.rmx {
		le.PutUint32(m[36+4*i:], v)
	}
	return nil
}

// reported is what is told of a deletion: all of the route that went.
func (k *fakeKernel) reported(m []byte, sas *[8][]byte) []byte {
	return fakeMessage(m[:92], sas)
}

func fakeMessage(header []byte, sas *[8][]byte) []byte {
	m := slices.Clone(header)
	var has uint32
	for i, sa := range sas {
		if sa == nil {
			continue
		}
		has |= 1 << i
		m = append(m, sa...)
		m = append(m, make([]byte, max(4, (len(sa)+3)/4*4)-len(sa))...)
	}
	switch m[3] {
	case 0xc, 0xd, 0xe:
		le.PutUint32(m[4:], has)
	default:
		le.PutUint32(m[12:], has)
	}
	le.PutUint16(m, uint16(len(m)))
	return m
}

func (k *fakeKernel) change(m []byte, sas *[8][]byte) error {
	r, _ := fakeRead(sas, le.Uint32(m[8:]), le.Uint16(m[4:]))
	i := k.find(r)
	if i < 0 {
		return syscall.ESRCH
	}
	if sas[1] != nil {
		f := k.through(sas)
		if f == nil {
			return syscall.ENETUNREACH
		}
		k.routes[i].gw, k.routes[i].index = slices.Clone(sas[1]), f.index
		k.routes[i].ifa = f.address(r.dst.Addr().Is4())
	}
	k.routes[i].set(m)
	return nil
}

// dump is sysctl_dumpentry for every entry. The lock is held.
func (k *fakeKernel) dump() []byte {
	var out []byte
	for _, r := range k.routes {
		h := make([]byte, 92)
		h[2], h[3] = 5, 4
		le.PutUint16(h[4:], r.index)
		le.PutUint32(h[8:], r.flags)
		for i, v := range r.rmx {
			le.PutUint32(h[36+4*i:], v)
		}
		sas := [8][]byte{fakeSockaddr(r.dst.Addr()), r.gw}
		if !r.host {
			sas[2] = fakeMask(r.dst)
		}
		if r.ifa.IsValid() {
			sas[5] = fakeSockaddr(r.ifa)
		}
		out = append(out, fakeMessage(h, &sas)...)
	}
	return out
}

type fakeRIB struct{ *fakeKernel }

func (k fakeRIB) routes() ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append(k.dump(), k.garbage...), k.failing["routes"]
}

// interfaces is sysctl_iflist.
func (k *fakeKernel) interfaces() ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []byte
	for _, f := range k.ifs {
		h := make([]byte, 112)
		h[2], h[3] = 5, 0xe
		le.PutUint32(h[8:], f.flags)
		le.PutUint16(h[12:], f.index)
		out = append(out, fakeMessage(h, &[8][]byte{4: fakeLinkAddr(f.index, f.name)})...)
		for _, a := range f.addrs {
			out = append(out, f.addressMessage(0xc, a)...)
		}
	}
	return out, k.failing["interfaces"]
}

func (f *fakeIf) addressMessage(typ byte, a fakeAddr) []byte {
	h := make([]byte, 20)
	h[2], h[3] = 5, typ
	le.PutUint16(h[12:], f.index)
	sas := [8][]byte{2: fakeMask(a.Prefix), 5: fakeSockaddr(a.Addr())}
	if a.peer.IsValid() {
		sas[7] = fakeSockaddr(a.peer)
	}
	return fakeMessage(h, &sas)
}

func (f *fakeIf) message() []byte {
	h := make([]byte, 112)
	h[2], h[3] = 5, 0xe
	le.PutUint32(h[8:], f.flags)
	le.PutUint16(h[12:], f.index)
	return fakeMessage(h, &[8][]byte{})
}

// connect adds the route that follows from an address, and tells. IPv4's has
// RTF_STATIC, as configd leaves it.
func (k *fakeKernel) connect(f *fakeIf, a netip.Prefix) {
	r := fakeRoute{dst: a.Masked(), gw: fakeLinkAddr(f.index, "")[:20], flags: 0x101, index: f.index, ifa: a.Addr()}
	if a.Addr().Is4() {
		r.flags |= 0x800
	}
	r.rmx[1] = f.mtu
	if k.find(r) < 0 {
		k.routes = append(k.routes, r)
		k.announce(1, r)
	}
}

// announce is the route part of rt_newaddrmsg.
func (k *fakeKernel) announce(typ byte, r fakeRoute) {
	h := make([]byte, 92)
	h[2], h[3] = 5, typ
	le.PutUint16(h[4:], r.index)
	le.PutUint32(h[8:], r.flags)
	k.say(fakeMessage(h, &[8][]byte{fakeSockaddr(r.dst.Addr()), r.gw, fakeMask(r.dst)}), nil)
}

func (k *fakeKernel) setUp(index uint16, up bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.iface(index)
	if f == nil {
		return syscall.ENXIO
	}
	f.flags &^= 1
	if up {
		f.flags |= 1
		for _, a := range f.addrs {
			k.connect(f, a.Prefix)
		}
	} else {
		// in_ifadown: silent, and static routes stay.
		k.routes = slices.DeleteFunc(k.routes, func(r fakeRoute) bool { return r.index == index && r.flags&0x800 == 0 })
	}
	k.say(f.message(), nil)
	return nil
}

func (k *fakeKernel) addAddress(index uint16, a netip.Prefix) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.iface(index)
	f.addrs = append(f.addrs, fakeAddr{Prefix: a})
	k.say(f.addressMessage(0xc, fakeAddr{Prefix: a}), nil)
	k.connect(f, a)
	return nil
}

func (k *fakeKernel) removeAddress(index uint16, a netip.Prefix) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.iface(index)
	f.addrs = slices.DeleteFunc(f.addrs, func(o fakeAddr) bool { return o.Prefix == a })
	k.routes = slices.DeleteFunc(k.routes, func(r fakeRoute) bool { return r.ifa == a.Addr() })
	k.say(f.addressMessage(0xd, fakeAddr{Prefix: a}), nil)
	return nil
}

// route8 makes the request that route(8) would: no index, the gateway by
// address or by its interface's link-level address.
func route8(typ byte, r plan.Route) []byte {
	h := make([]byte, 92)
	h[2], h[3] = 5, typ
	flags := uint32(0x801)
	sas := [8][]byte{fakeSockaddr(r.Dst.Addr()), nil, fakeSockaddr(maskAddr(r.Dst))}
	switch {
	case r.Type == plan.Blackhole, r.Type == plan.Unreachable:
		sas[1] = fakeSockaddr(netip.MustParseAddr("127.0.0.1"))
		flags |= map[plan.Type]uint32{plan.Blackhole: 0x1000, plan.Unreachable: 8}[r.Type] | 2
	case r.Hop.Via.IsValid():
		sas[1] = fakeSockaddr(r.Hop.Via)
		flags |= 2
	default:
		sas[1] = fakeLinkAddr(uint16(r.Hop.Link), "en")
	}
	if typ == 2 {
		sas[1] = nil
	}
	le.PutUint32(h[8:], flags)
	if r.Expires != 0 {
		le.PutUint32(h[32:], 4)
		le.PutUint32(h[48:], uint32(time.Now().Unix())+r.Expires)
	}
	return fakeMessage(h, &sas)
}

func maskAddr(p netip.Prefix) netip.Addr {
	b := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// other sends a request as process 1000.
func (k *fakeKernel) other(m []byte) error { return k.request(1000, m, nil) }
