package winroute

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"time"
	"unicode/utf16"

	"github.com/culvert-project/culvert/enforce/plan"
)

// fakeKernel is an IP Helper API as netioapi.h's pages describe it: a route is
// known by destination, interface and next hop; creating one that is there
// fails; deleting and looking up go by the key alone; notifications come from
// another thread, serialised, with nothing but the key. It writes and reads its
// bytes by code of its own.
type fakeKernel struct {
	mu      sync.Mutex // guards what follows
	table   [][]byte
	nics    []*fakeNIC
	subs    []*subscriber
	refuse  func(call string, r []byte) error // nil: nothing is refused
	failing map[string]error                  // by method
	garbage []byte                            // appended to the table
}

type fakeNIC struct {
	luid   uint64
	index  uint32
	name   string
	up     bool
	metric [2]uint32 // IPv4, IPv6
	addrs  []netip.Prefix
}

// subscriber is one registration. Its queue has no end, as the real one has not.
type subscriber struct {
	mu     sync.Mutex
	queue  []func()
	wake   chan struct{}
	stop   chan struct{}
	ended  chan struct{}
	route  func(uint32, row)
	hinted func(string)
}

var le = binary.LittleEndian

func (s *subscriber) run() {
	defer close(s.ended)
	for {
		select {
		case <-s.stop:
			return
		case <-s.wake:
		}
		s.mu.Lock()
		queue := s.queue
		s.queue = nil
		s.mu.Unlock()
		for _, f := range queue {
			f()
		}
	}
}

func (s *subscriber) push(f func()) {
	s.mu.Lock()
	s.queue = append(s.queue, f)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (k *fakeKernel) notify(route func(uint32, row), hint func(string)) (func(), error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.failing["notify"]; err != nil {
		return nil, err
	}
	s := &subscriber{wake: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{}), route: route, hinted: hint}
	k.subs = append(k.subs, s)
	go s.run()
	return func() {
		k.mu.Lock()
		k.subs = slices.DeleteFunc(k.subs, func(o *subscriber) bool { return o == s })
		k.mu.Unlock()
		close(s.stop)
		<-s.ended
	}, nil
}

// say tells of a route by its key. The lock is held.
func (k *fakeKernel) say(change uint32, r []byte) {
	key := make([]byte, 104)
	copy(key, r[:72])
	for _, s := range k.subs {
		s.push(func() { s.route(change, key); clear(key) }) // "managed by the operating system"
	}
}

func (k *fakeKernel) hint(what string) {
	for _, s := range k.subs {
		s.push(func() { s.hinted(what) })
	}
}

// find returns where the row with r's key is, or -1.
func (k *fakeKernel) find(r []byte) int {
	return slices.IndexFunc(k.table, func(o []byte) bool {
		return slices.Equal(o[:8], r[:8]) && slices.Equal(o[12:41], r[12:41]) && slices.Equal(o[44:68], r[44:68])
	})
}

func (k *fakeKernel) allowed(call string, r []byte) error {
	if k.refuse != nil {
		return k.refuse(call, r)
	}
	return nil
}

func (k *fakeKernel) create(r row) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.allowed("create", r); err != nil {
		return err
	}
	nic := k.nic(le.Uint64(r))
	switch {
	case nic == nil:
		return errNotFound
	case le.Uint32(r[80:]) > le.Uint32(r[76:]): // PreferredLifetime beyond ValidLifetime
		return errInvalidParameter
	case k.find(r) >= 0:
		return errObjectExists
	}
	n := slices.Clone([]byte(r))
	le.PutUint32(n[8:], nic.index)
	le.PutUint64(n[96:], 0) // Age and Origin are ignored
	k.table = append(k.table, n)
	k.say(1, n)
	return nil
}

func (k *fakeKernel) delete(r row) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.allowed("delete", r); err != nil {
		return err
	}
	i := k.find(r)
	if i < 0 {
		return errNotFound
	}
	k.say(2, k.table[i])
	k.table = slices.Delete(k.table, i, i+1)
	return nil
}

// set is SetIpForwardEntry2.
func (k *fakeKernel) set(r row) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := k.find(r)
	if i < 0 {
		return errNotFound
	}
	copy(k.table[i][72:], r[72:96])
	k.say(0, r)
	return nil
}

func (k *fakeKernel) entry(r row) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.allowed("entry", r); err != nil {
		return err
	}
	i := k.find(r)
	if i < 0 {
		return errNotFound
	}
	copy(r, k.table[i])
	return nil
}

func (k *fakeKernel) routes() ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append(slices.Concat(k.table...), k.garbage...), k.failing["routes"]
}

func (k *fakeKernel) nic(luid uint64) *fakeNIC {
	i := slices.IndexFunc(k.nics, func(n *fakeNIC) bool { return n.luid == luid })
	if i < 0 {
		return nil
	}
	return k.nics[i]
}

func (k *fakeKernel) byIndex(index uint32) *fakeNIC {
	i := slices.IndexFunc(k.nics, func(n *fakeNIC) bool { return n.index == index })
	if i < 0 {
		return nil
	}
	return k.nics[i]
}

func (k *fakeKernel) links() ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []byte
	for _, n := range k.nics {
		b := make([]byte, 1352)
		le.PutUint64(b, n.luid)
		le.PutUint32(b[8:], n.index)
		for i, c := range utf16.Encode([]rune(n.name)) {
			le.PutUint16(b[28+2*i:], c)
		}
		le.PutUint32(b[1056:], 6)
		copy(b[1060:], []byte{2, 0, 0, 0, 0, byte(n.index)})
		le.PutUint32(b[1156:], 2) // IfOperStatusDown
		if n.up {
			le.PutUint32(b[1156:], 1)
		}
		out = append(out, b...)
	}
	return out, k.failing["links"]
}

func (k *fakeKernel) addresses() ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []byte
	for _, n := range k.nics {
		for _, a := range n.addrs {
			b := make([]byte, 80)
			fakeSockaddr(b, a.Addr())
			le.PutUint64(b[32:], n.luid)
			le.PutUint32(b[40:], n.index)
			b[60] = byte(a.Bits())
			out = append(out, b...)
		}
	}
	return out, k.failing["addresses"]
}

func (k *fakeKernel) interfaces() ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []byte
	for _, n := range k.nics {
		for i, family := range []uint16{2, 23} {
			b := make([]byte, 168)
			le.PutUint16(b, family)
			le.PutUint64(b[8:], n.luid)
			le.PutUint32(b[16:], n.index)
			le.PutUint32(b[148:], n.metric[i])
			out = append(out, b...)
		}
	}
	return out, k.failing["interfaces"]
}

func (k *fakeKernel) uptime() time.Duration { return time.Hour }

func (k *fakeKernel) boot() (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return "boot-1", k.failing["boot"]
}

func fakeSockaddr(b []byte, a netip.Addr) {
	if a.Is4() {
		le.PutUint16(b, 2)
		copy(b[4:], a.AsSlice())
		return
	}
	le.PutUint16(b, 23)
	copy(b[8:], a.AsSlice())
}

// fakeRow makes a row as netsh would, the metric an offset.
func (k *fakeKernel) fakeRow(r plan.Route, protocol uint32) row {
	b := make(row, 104)
	nic := k.byIndex(r.Hop.Link)
	if nic != nil {
		le.PutUint64(b, nic.luid)
		six := 0
		if r.Dst.Addr().Is6() {
			six = 1
		}
		le.PutUint32(b[84:], r.Metric-min(r.Metric, nic.metric[six]))
	}
	le.PutUint32(b[8:], r.Hop.Link)
	fakeSockaddr(b[12:], r.Dst.Addr())
	b[40] = byte(r.Dst.Bits())
	via := r.Hop.Via
	if !via.IsValid() {
		via = netip.IPv4Unspecified()
		if r.Dst.Addr().Is6() {
			via = netip.IPv6Unspecified()
		}
	}
	fakeSockaddr(b[44:], via)
	le.PutUint32(b[76:], 0xffffffff)
	if r.Expires != 0 {
		le.PutUint32(b[76:], r.Expires)
	}
	copy(b[80:84], b[76:80])
	le.PutUint32(b[88:], protocol)
	b[92], b[93], b[95] = 0, 1, 1
	return b
}

// local adds a row that follows from an address: metric offset 256, protocol
// MIB_IPPROTO_LOCAL, on the link.
func (k *fakeKernel) local(n *fakeNIC, dst netip.Prefix) {
	r := k.fakeRow(plan.Route{Dst: dst, Hop: plan.Hop{Link: n.index}}, 2)
	le.PutUint32(r[84:], 256)
	if k.find(r) < 0 {
		k.table = append(k.table, r)
		k.say(1, r)
	}
}

// keep adds the rows that Windows keeps for an address.
func (k *fakeKernel) keep(n *fakeNIC, a netip.Prefix) {
	k.local(n, a.Masked())
	k.local(n, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
	if !a.Addr().Is4() {
		k.local(n, netip.MustParsePrefix("ff00::/8"))
		return
	}
	k.local(n, netip.MustParsePrefix("224.0.0.0/4"))
	k.local(n, netip.MustParsePrefix("255.255.255.255/32"))
	last := a.Masked().Addr().As4()
	for i := a.Bits(); i < 32; i++ {
		last[i/8] |= 1 << (7 - i%8)
	}
	k.local(n, netip.PrefixFrom(netip.AddrFrom4(last), 32))
}

func (k *fakeKernel) drop(gone func(r []byte) bool) {
	k.table = slices.DeleteFunc(k.table, func(r []byte) bool {
		if gone(r) {
			k.say(2, r)
			return true
		}
		return false
	})
}

func (k *fakeKernel) setUp(index uint32, up bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.byIndex(index)
	n.up = up
	if up {
		for _, a := range n.addrs {
			k.keep(n, a)
		}
	} else {
		k.drop(func(r []byte) bool { return le.Uint64(r) == n.luid })
	}
	k.hint("interface changed")
	return nil
}

func (k *fakeKernel) addAddress(index uint32, a netip.Prefix) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.byIndex(index)
	n.addrs = append(n.addrs, a)
	k.keep(n, a)
	k.hint("address changed")
	return nil
}

func (k *fakeKernel) removeAddress(index uint32, a netip.Prefix) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.byIndex(index)
	n.addrs = slices.DeleteFunc(n.addrs, func(o netip.Prefix) bool { return o == a })
	k.drop(func(r []byte) bool {
		p, _ := row(r).key()
		return le.Uint64(r) == n.luid && (p.dst == a.Masked() || p.dst.Addr() == a.Addr())
	})
	k.hint("address changed")
	return nil
}

func (k *fakeKernel) setMetric(index uint32, metric uint32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.byIndex(index).metric[0] = metric
	k.hint("interface changed")
}
