package witness

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/culvert-project/culvert/loader"
)

func never(string) bool  { return false }
func always(string) bool { return true }

// lineOf is the class of a prefix in a policy, and whether it drops.
func lineOf(t *testing.T, p policy, prefix string) loader.Prefix {
	t.Helper()
	for _, x := range p.config.Prefixes {
		if x.Prefix == netip.MustParsePrefix(prefix) {
			return x
		}
	}
	t.Fatalf("%s has no line", prefix)
	return loader.Prefix{}
}

// TestIgnoredIsTold: what nobody touches is let be by the witness too, inside a full tunnel, and whoever excludes it.
func TestIgnoredIsTold(t *testing.T) {
	full := protected("tun0", 7, "0.0.0.0/0", "::/0")
	full.Exclude = plan.IgnoredRanges()
	p := compile(enforce.Protection{Sessions: []enforce.ProtectedSession{full}}, Rules{Drop: true}, never)
	for _, r := range plan.IgnoredRanges() {
		if x := lineOf(t, p, r.String()); x.Class != loader.Ignored || x.Drop {
			t.Errorf("%s: %+v", r, x)
		}
	}
}

// TestFirstLineCounts: of a prefix that is named twice the first class holds, and the first tunnel.
func TestFirstLineCounts(t *testing.T) {
	a, b := protected("tun0", 7, "10.0.0.0/8"), protected("wg0", 9, "10.0.0.0/8", "10.1.0.0/16")
	a.Exclude = pfx("10.1.0.0/16")
	p := compile(enforce.Protection{Sessions: []enforce.ProtectedSession{b, a}}, Rules{}, never)
	if x := lineOf(t, p, "10.0.0.0/8"); x.Tunnel != 7 || p.owners[x.ID].tunnel != "tun0" {
		t.Errorf("10.0.0.0/8: %+v", x)
	}
	if x := lineOf(t, p, "10.1.0.0/16"); x.Class != loader.Excluded {
		t.Errorf("10.1.0.0/16: %+v", x)
	}
}

// TestFreedIsForAway: a guard that has lasted its time frees tunnels that are away, no other.
func TestFreedIsForAway(t *testing.T) {
	for link, want := range map[uint32]bool{0: false, 7: true} {
		s := protected("tun0", link, "10.0.0.0/8")
		s.Reject = pfx("2000::/3")
		p := compile(enforce.Protection{Sessions: []enforce.ProtectedSession{s}}, Rules{Guard: true}, always)
		for _, x := range []string{"10.0.0.0/8", "2000::/3"} {
			if got := lineOf(t, p, x).Drop; got != want {
				t.Errorf("link %d: %s drops %t", link, x, got)
			}
		}
	}
}

// TestIDsAreTheirOwn: what else is open changes no ID, and a host inside a prefix has its own.
func TestIDsAreTheirOwn(t *testing.T) {
	s := server(protected("tun0", 7, "10.0.0.0/8", "10.9.0.1/32"), "10.1.2.3:1194/udp", "10.9.0.1:1194/udp")
	alone := compile(enforce.Protection{Sessions: []enforce.ProtectedSession{s}}, Rules{}, never)
	others := []enforce.ProtectedSession{protected("aaa", 3, "172.16.0.0/12", "fd00::/8"), s, protected("zzz", 4, "192.168.0.0/16")}
	among := compile(enforce.Protection{Sessions: others}, Rules{}, never)
	for _, x := range []string{"10.0.0.0/8", "10.1.2.3/32", "10.9.0.1/32"} {
		a, b := lineOf(t, alone, x).ID, lineOf(t, among, x).ID
		if a != b {
			t.Errorf("%s: %d alone, %d among others", x, a, b)
		}
		if own := alone.owners[a]; own != (owner{"tun0", netip.MustParsePrefix(x), 7}) {
			t.Errorf("%s is put down to %+v", x, own)
		}
	}
	seen := map[owner]bool{}
	for _, own := range alone.owners {
		if seen[own] {
			t.Errorf("%+v has two IDs", own)
		}
		seen[own] = true
	}
}

// TestTransportsThatFit: as many transports as a rule has room for are all kept, in an order that does not change.
func TestTransportsThatFit(t *testing.T) {
	var words []string
	for port := range loader.MaxTransports {
		words = append(words, fmt.Sprintf("10.1.2.3:%d/udp", loader.MaxTransports-port))
	}
	ports := func(words []string) (out []uint16) {
		p := compile(enforce.Protection{Sessions: []enforce.ProtectedSession{server(protected("tun0", 7, "10.0.0.0/8"), words...)}}, Rules{}, never)
		for _, x := range p.config.Prefixes {
			if x.Class == loader.Server {
				out = append(out, x.Port)
			}
		}
		return out
	}
	want := []uint16{1, 2, 3, 4, 5, 6, 7, 8}
	if got := ports(append(words, words...)); !slices.Equal(got, want) {
		t.Errorf("ports %v", got)
	}
	if got := ports(append(words, "10.1.2.3:9/udp")); !slices.Equal(got, []uint16{0}) {
		t.Errorf("ports %v of one too many", got)
	}
}

// TestTransportsAndSenders: where there are too many, their ports are given up before who sends them, whatever their order.
func TestTransportsAndSenders(t *testing.T) {
	s := protected("tun0", 7, "10.0.0.0/8")
	s.ServerFrom = []string{"uid:0", "uid:7"}
	for port := range 5 {
		s = server(s, fmt.Sprintf("10.1.2.3:%d/udp", port+1))
	}
	p := compile(enforce.Protection{Sessions: []enforce.ProtectedSession{s}}, Rules{}, never)
	if got, want := shown(p), "10.0.0.0/8 protected of tun0 by 7\n10.1.2.3/32 server of tun0 0/17 by 7 from uid\n10.1.2.3/32 server of tun0 0/17 by 7 from uid 7\n"; got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestConfigOf: a guard is one of sessions, and tunnels are those that are there.
func TestConfigOf(t *testing.T) {
	if compile(enforce.Protection{}, Rules{Guard: true}, never).config.Guard {
		t.Error("a guard of nothing")
	}
	p := compile(enforce.Protection{Sessions: []enforce.ProtectedSession{protected("tun0", 7, "10.0.0.0/8"), protected("wg0", 0, "10.1.0.0/16")}}, Rules{Guard: true}, never)
	if !p.config.Guard || !slices.Equal(p.config.Tunnels, []int{7}) {
		t.Errorf("guard %t, tunnels %v", p.config.Guard, p.config.Tunnels)
	}
}
