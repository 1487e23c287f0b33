package winroute

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

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

// The layout is MIB_IPFORWARD_ROW2 of netioapi.h, with SOCKADDR_INET of
// ws2ipdef.h, field by field.
const (
	goldenDefault = `
0000000100000600 07000000 ; InterfaceLuid, InterfaceIndex 7
0200 0000 00000000 0000000000000000000000000000000000000000 ; DestinationPrefix.Prefix 0.0.0.0
00 000000                 ; PrefixLength 0
0200 0000 c0a80101 0000000000000000000000000000000000000000 ; NextHop 192.168.1.1
00 000000                 ; SitePrefixLength
ffffffff ffffffff         ; ValidLifetime, PreferredLifetime
0a000000 03000000         ; Metric 10, Protocol MIB_IPPROTO_NETMGMT
00 01 00 01               ; Loopback AutoconfigureAddress Publish Immortal
3c000000 02000000         ; Age 60, Origin NlroDHCP`

	goldenRA = `
0000000100000600 07000000
1700 0000 00000000 20010db8000900000000000000000000 00000000 ; 2001:db8:9::
30 000000                 ; /48
1700 0000 00000000 fe800000000000000000000000000001 07000000 ; fe80::1 of scope 7
00 000000
08070000 08070000         ; 1800 s
00010000 03000000 00 01 00 01 05000000 03000000 ; Metric 256, Origin NlroRouterAdvertisement`

	goldenOwn = `
0000000100003500 15000000 ; the tunnel
0200 0000 0a000000 0000000000000000000000000000000000000000
08 000000
0200 0000 00000000 0000000000000000000000000000000000000000 ; on the link
00 000000
ffffffff ffffffff
00000000 0c000000         ; Metric 0, Protocol MIB_IPPROTO_BBN
00 00 00 00 00000000 00000000`
)

func TestParseGolden(t *testing.T) {
	sc, err := newSystem(ground()).scene()
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		goldenDefault: "0.0.0.0/0 via 192.168.1.1 dev 7 metric 35 proto 3",
		goldenRA:      "2001:db8:9::/48 via fe80::1 dev 7 metric 282 proto 3 expires 1800",
		goldenOwn:     "10.0.0.0/8 dev 21 metric 5 proto 12",
	} {
		r := row(unhex(t, in))
		if len(r) != rowLen {
			t.Fatalf("the golden row has %d bytes", len(r))
		}
		got, ok := sc.parse(r)
		if text := enforcetest.Text(got); !ok || text != want {
			t.Errorf("%v %s, want %s", ok, text, want)
		}
		if isOwn := got.Origin == plan.Own; isOwn != (in == goldenOwn) {
			t.Errorf("%s has origin %v", want, got.Origin)
		}
	}
}

func TestBuildGolden(t *testing.T) {
	sc, _ := newSystem(ground()).scene()
	own := plan.Route{Dst: netip.MustParsePrefix("10.0.0.0/8"), Hop: plan.Hop{Link: 21}, Origin: plan.Own}
	got, ok := sc.build(&own, sc.by(21))
	if want := unhex(t, goldenOwn); !ok || !slices.Equal(got, want) {
		t.Errorf("%v\n%x, want\n%x", ok, got, want)
	}
	back, ok := again(string(unhex(t, goldenDefault)))
	want := unhex(t, goldenDefault)
	clear(want[96:]) // Age and Origin are the system's
	if !ok || !slices.Equal(back, want) {
		t.Errorf("given back as\n%x, want\n%x", back, want)
	}
	pin := plan.Route{Dst: netip.MustParsePrefix("2001:db8::7/128"), Hop: plan.Hop{Link: 7, Via: netip.MustParseAddr("fe80::1")}, Metric: 1}
	got, _ = sc.build(&pin, sc.by(7))
	if text := hex.EncodeToString(got[44:72]); text != "1700000000000000fe80000000000000000000000000000107000000" {
		t.Errorf("next hop is %s", text)
	}
}

func TestProtocol(t *testing.T) {
	for in, want := range map[uint32]string{3: "netmgmt", 12: "culvert", 10006: "nt-static", 10002: "nt-autostatic", 77: "77", 70000: "unknown"} {
		if got := ProtocolName(protocolByte(in)); got != want {
			t.Errorf("protocol %d is %s, want %s", in, got, want)
		}
	}
}

func TestSum(t *testing.T) {
	if sum(infinite, 25) != infinite || sum(3, 4) != 7 {
		t.Error("metrics do not add up")
	}
}

func TestScene(t *testing.T) {
	sc, err := newSystem(ground()).scene()
	if err != nil {
		t.Fatal(err)
	}
	l := sc.by(9)
	if l == nil || l.Name != "WLAN für Gäste" || l.HW != "02:00:00:00:00:09" || !l.Up || len(l.Addrs) != 2 {
		t.Errorf("interface 9 is %+v", l)
	}
	if _, ok := parseScene(make([]byte, linkLen+1), nil, nil); ok {
		t.Error("a row too short was accepted")
	}
	for p, want := range map[string]string{"192.168.1.42/24": "192.168.1.255", "10.0.0.1/30": "10.0.0.3"} {
		if got := broadcast(netip.MustParsePrefix(p)); got.String() != want {
			t.Errorf("broadcast of %s is %v", p, got)
		}
	}
	for _, p := range []string{"10.0.0.1/31", "10.0.0.1/32", "2001:db8::1/64"} {
		if got := broadcast(netip.MustParsePrefix(p)); got.IsValid() {
			t.Errorf("broadcast of %s is %v", p, got)
		}
	}
}
