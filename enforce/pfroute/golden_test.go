package pfroute

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// unhex reads bytes written in groups, a comment after each line's semicolon.
func unhex(t testing.TB, lines string) []byte {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(lines) {
		line, _, _ = strings.Cut(line, ";")
		b.WriteString(strings.Join(strings.Fields(line), ""))
	}
	out, err := hex.DecodeString(b.String())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The layouts are struct rt_msghdr and struct rt_metrics of xnu's
// bsd/net/route.h, struct sockaddr_in of bsd/netinet/in.h, sockaddr_in6 of
// bsd/netinet6/in6.h and sockaddr_dl of bsd/net/if_dl.h. Masks are cut as
// rn_addmask (bsd/net/radix.c) cuts them.
const (
	goldenDefault = `
9000 05 04 0400 0000    ; msglen 144, version 5, RTM_GET, index 4, padding
03080000                ; flags UP GATEWAY STATIC
27000000                ; addrs DST GATEWAY NETMASK IFA
00000000 00000000 00000000 07000000 ; pid, seq, errno, use
00000000                ; inits
00000000 dc050000 00000000 00000000 ; locks, mtu 1500, hopcount, expire
00000000 00000000 00000000 00000000 00000000 00000000 ; recvpipe sendpipe ssthresh rtt rttvar pksent
00000000 00000000 00000000 00000000 ; filler
10 02 0000 00000000 0000000000000000 ; 0.0.0.0
10 02 0000 c0a80101 0000000000000000 ; 192.168.1.1
00000000                ; netmask of length 0
10 02 0000 c0a8012a 0000000000000000 ; 192.168.1.42`

	goldenConnected = `
8800 05 04 0400 0000
01090000                ; flags UP CLONING STATIC
07000000                ; addrs DST GATEWAY NETMASK
00000000 00000000 00000000 00000000
00000000
00000000 dc050000 00000000 00000000
00000000 00000000 00000000 00000000 00000000 00000000
00000000 00000000 00000000 00000000
10 02 0000 c0a80100 0000000000000000 ; 192.168.1.0
14 12 0400 06 00 00 00 000000000000000000000000 ; link#4
07 00 0000 ffffff 00    ; netmask of length 7, filled up`

	goldenSix = `
a400 05 01 0000 0000    ; RTM_ADD as its sender made it: no index
03080000 07000000       ; flags UP GATEWAY STATIC, addrs DST GATEWAY NETMASK
e8030000 05000000 00000000 00000000 ; pid 1000, seq 5
01000000
00000000 14050000 00000000 00000000 ; mtu 1300
00000000 00000000 00000000 00000000 00000000 00000000
00000000 00000000 00000000 00000000
1c 1e 0000 00000000 20010db8000900000000000000000007 00000000 ; 2001:db8:9::7
1c 1e 0000 00000000 fe800004000000000000000000000001 00000000 ; fe80::1, scope 4 in its second group
0e ff 0000 00000000 ffffffffffff 0000 ; a /48 of length 14; the family byte means nothing`
)

func TestParseGolden(t *testing.T) {
	ls, _ := newSystem(fakeRIB{ground()}).links()
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"default":   {unhex(t, goldenDefault), "0.0.0.0/0 via 192.168.1.1 dev 4 proto 2"},
		"connected": {unhex(t, goldenConnected), "192.168.1.0/24 dev 4 proto 1"},
		"request":   {unhex(t, goldenSix), "2001:db8:9::/48 via fe80::1 proto 2"},
	} {
		var e entry
		m, rest, ok := next(c.b)
		if !ok || len(rest) != 0 {
			t.Errorf("%s: no message, or %d bytes left", name, len(rest))
			continue
		}
		if got := parseEntry(m, &e, time.Now()); got != parsed || !ls.place(&e, m.flags()) {
			t.Errorf("%s: outcome %d", name, got)
		}
		if got := enforcetest.Text(e.Route); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestBuildGolden(t *testing.T) {
	own := plan.Route{Dst: netip.MustParsePrefix("10.0.0.0/8"), Hop: plan.Hop{Link: 16}, Origin: plan.Own}
	utun, en0 := &link{flags: ifUp | ifPoint}, &link{flags: ifUp}
	e := entry{Route: own}
	const rmx = `75000000 00000000
00000000 00000000 00000000 00000000 00000000 00000000
00000000 00000000 00000000 00000000
10 02 0000 0a000000 0000000000000000
14 12 1000 00 00 00 00 000000000000000000000000
10 02 0000 ff000000 0000000000000000
14 12 1000 00 00 00 00 000000000000000000000000`
	for name, c := range map[string]struct {
		got  message
		want string
	}{
		"on a tunnel": {buildOwn(&own, utun, 9), `a400 05 01 0000 0000 01880000 17000000
00000000 09000000 00000000 00000000 02000000 00000000 00000000 ` + rmx},
		"on Ethernet": {buildOwn(&own, en0, 9), `a400 05 01 0000 0000 01890000 17000000
00000000 09000000 00000000 00000000 02000000 00000000 00000000 ` + rmx},
		"delete": {buildDelete(&e, 7), `7c00 05 02 0000 0000 01000000 05000000
00000000 07000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
00000000 00000000 00000000 00000000 00000000 00000000
00000000 00000000 00000000 00000000
10 02 0000 0a000000 0000000000000000
10 02 0000 ff000000 0000000000000000`},
	} {
		if want := unhex(t, c.want); !slices.Equal(c.got, want) {
			t.Errorf("%s:\n%x, want\n%x", name, c.got, want)
		}
	}
}

// TestBuildAddGolden gives back the default route: the mask whole, since the
// kernel takes one of length 0 for the end, the interface named, the MTU set.
func TestBuildAddGolden(t *testing.T) {
	got, ok := buildAdd(unhex(t, goldenDefault), 3, 0)
	want := unhex(t, `b000 05 01 0000 0000 03080000 37000000
00000000 03000000 00000000 00000000 01000000
00000000 dc050000 00000000 00000000
00000000 00000000 00000000 00000000 00000000 00000000
00000000 00000000 00000000 00000000
10 02 0000 00000000 0000000000000000
10 02 0000 c0a80101 0000000000000000
10 02 0000 00000000 0000000000000000
14 12 0400 00 00 00 00 000000000000000000000000
10 02 0000 c0a8012a 0000000000000000`)
	if !ok || !slices.Equal(got, want) {
		t.Errorf("%v\n%x, want\n%x", ok, got, want)
	}
	if _, ok := buildAdd(nil, 1, 0); ok {
		t.Error("a request was made of nothing")
	}
}

func TestMask(t *testing.T) {
	for in, want := range map[string]int{
		"": 0, "00": 0, "05000000ff": 8, "06000000ff80": 9, "08ff0000ffffffff": 32,
		"07000000ff00ff": -1, "05000000fd": -1, "0a000000ffffff000000": 24,
	} {
		b, _ := hex.DecodeString(in)
		n, ok := sockaddr(b).maskBits(32)
		if ok != (want >= 0) || (ok && n != want) {
			t.Errorf("%s: %d, %v; want %d", in, n, ok, want)
		}
	}
	long := slices.Concat([]byte{24, 0, 0, 0, 0, 0, 0, 0}, slices.Repeat([]byte{255}, 16))
	if n, ok := sockaddr(long).maskBits(128); !ok || n != 128 {
		t.Errorf("IPv6: %d, %v", n, ok)
	}
}

func TestLinks(t *testing.T) {
	k := ground()
	ls, err := newSystem(fakeRIB{k}).links()
	if err != nil {
		t.Fatal(err)
	}
	if got := ls.by(4); got.Name != "en0" || got.HW != "02:00:00:00:00:04" || len(got.Addrs) != 2 || !got.Up {
		t.Errorf("en0 is %+v", got)
	}
	for gw, want := range map[string]uint32{"10.8.0.1": 16, "192.168.2.9": 6, "2001:db8:1::9": 4, "203.0.113.1": 0} {
		if got := ls.toward(netip.MustParseAddr(gw)); got != want {
			t.Errorf("toward %s: %d, want %d", gw, got, want)
		}
	}
	b, _ := k.interfaces()
	for n := range len(b) {
		if _, ok := parseLinks(b[:n]); ok && n != 0 && !boundary(b, n) {
			t.Errorf("cut at %d of %d and not noticed", n, len(b))
		}
	}
}

// boundary reports whether a message ends at n.
func boundary(b []byte, n int) bool {
	for at := 0; at < len(b); at += int(le.Uint16(b[at:])) {
		if at == n {
			return true
		}
	}
	return false
}

func TestProtocolName(t *testing.T) {
	if ProtocolName(ProtoOwn) != "culvert" || ProtocolName(200) != "other" {
		t.Error("protocol names are wrong")
	}
}
