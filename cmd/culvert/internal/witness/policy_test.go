package witness

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/loader"
)

func pfx(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func protected(tunnel string, link uint32, list ...string) enforce.ProtectedSession {
	return enforce.ProtectedSession{Session: enforce.Session{Tunnel: tunnel, Protect: pfx(list...)}, Link: link}
}

func server(s enforce.ProtectedSession, list ...string) enforce.ProtectedSession {
	for _, text := range list {
		addr, proto, _ := strings.Cut(text, "/")
		s.Servers = append(s.Servers, enforce.Server{Addr: netip.MustParseAddrPort(addr), Proto: proto})
	}
	return s
}

// shown writes the lines of a policy that are not ignored ranges.
func shown(p policy) string {
	var b strings.Builder
	names := map[loader.Class]string{loader.Protected: "protected", loader.Excluded: "excluded", loader.Server: "server", loader.Gateway: "gateway"}
	for _, x := range p.config.Prefixes {
		if x.Class == loader.Ignored {
			continue
		}
		fmt.Fprintf(&b, "%s %s", x.Prefix, names[x.Class])
		if own, ok := p.owners[x.ID]; ok {
			fmt.Fprintf(&b, " of %s", own.tunnel)
		}
		if x.Class == loader.Protected || x.Class == loader.Gateway {
			fmt.Fprintf(&b, " by %d", x.Tunnel)
		}
		if x.Class == loader.Server {
			fmt.Fprintf(&b, " %d/%d by %d", x.Port, x.Proto, x.Tunnel)
			if from := []string{"", " from host", " from kernel", " from uid", " from mark"}[x.From]; from != "" {
				b.WriteString(from)
				if x.Who != 0 {
					fmt.Fprintf(&b, " %d", x.Who)
				}
			}
		}
		if x.Exempt != nil {
			fmt.Fprintf(&b, " but not %d", x.Exempt)
		}
		if x.Drop {
			b.WriteString(" drop")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// from is a session of a full tunnel of a kind, whose server's packets certain senders send.
func from(kind string, words ...string) enforce.ProtectedSession {
	s := server(protected("tun0", 7, "0.0.0.0/0"), "203.0.113.10:1194/udp")
	s.Type.Kind, s.ServerFrom = kind, words
	return s
}

func TestCompile(t *testing.T) {
	excluding := protected("tun0", 7, "10.0.0.0/8")
	excluding.Exclude = pfx("10.9.0.0/16")
	full := protected("tun0", 7, "0.0.0.0/0")
	fullExcluding := server(full, "203.0.113.10:1194/udp")
	fullExcluding.Exclude = pfx("203.0.113.0/24")
	away := protected("tun0", 0, "10.0.0.0/8")
	apart := server(full, "203.0.113.10:1194/udp")
	apart.KeepLinks = []uint32{3, 4}
	drop := Rules{Drop: true}
	tests := []struct {
		name string
		p    enforce.Protection
		want Rules
		text string
	}{
		{"nothing", enforce.Protection{}, drop, ""},
		{"count", enforce.Protection{Sessions: []enforce.ProtectedSession{excluding}}, Rules{},
			"10.0.0.0/8 protected of tun0 by 7\n10.9.0.0/16 excluded\n"},
		{"drop", enforce.Protection{Sessions: []enforce.ProtectedSession{excluding}}, drop,
			"10.0.0.0/8 protected of tun0 by 7 drop\n10.9.0.0/16 excluded\n"},
		{"guard drops while the tunnel stands", enforce.Protection{Sessions: []enforce.ProtectedSession{excluding}}, Rules{Guard: true},
			"10.0.0.0/8 protected of tun0 by 7 drop\n10.9.0.0/16 excluded\n"},
		{"guard", enforce.Protection{Sessions: []enforce.ProtectedSession{away}}, Rules{Guard: true},
			"10.0.0.0/8 protected of tun0 by 0 drop\n"},
		{"server", enforce.Protection{Sessions: []enforce.ProtectedSession{server(full, "203.0.113.10:1194/udp", "203.0.113.10:443/tcp")}}, drop,
			"0.0.0.0/0 protected of tun0 by 7 drop\n203.0.113.10/32 server of tun0 443/6 by 7 drop\n203.0.113.10/32 server of tun0 1194/17 by 7 drop\n"},
		{"server of a split tunnel", enforce.Protection{Sessions: []enforce.ProtectedSession{server(excluding, "203.0.113.10:1194/udp")}}, Rules{},
			"10.0.0.0/8 protected of tun0 by 7\n10.9.0.0/16 excluded\n"},
		{"server within an exclusion", enforce.Protection{Sessions: []enforce.ProtectedSession{fullExcluding}}, Rules{},
			"0.0.0.0/0 protected of tun0 by 7\n203.0.113.0/24 excluded\n"},
		{"server that is its own pinhole", enforce.Protection{
			Sessions: []enforce.ProtectedSession{server(full, "10.77.0.66:1194/udp")}, Gateways: pfx("10.77.0.66/32", "10.77.0.1/32")}, Rules{},
			"0.0.0.0/0 protected of tun0 by 7\n10.77.0.1/32 gateway of tun0 by 7\n10.77.0.66/32 server of tun0 1194/17 by 7\n"},
		{"gateway of a session that excludes an interface", enforce.Protection{
			Sessions: []enforce.ProtectedSession{apart}, Gateways: pfx("10.77.0.1/32")}, drop,
			"0.0.0.0/0 protected of tun0 by 7 but not [3 4] drop\n10.77.0.1/32 gateway of tun0 by 7 but not [3 4] drop\n" +
				"203.0.113.10/32 server of tun0 1194/17 by 7 but not [3 4] drop\n"},
		{"gateway that the operator excludes", enforce.Protection{
			Sessions: []enforce.ProtectedSession{fullExcluding}, Gateways: pfx("203.0.113.1/32")}, drop,
			"0.0.0.0/0 protected of tun0 by 7 drop\n203.0.113.0/24 excluded\n"},
		{"gateway outside what is protected", enforce.Protection{
			Sessions: []enforce.ProtectedSession{excluding}, Gateways: pfx("192.168.1.1/32")}, drop,
			"10.0.0.0/8 protected of tun0 by 7 drop\n10.9.0.0/16 excluded\n"},
		{"transports without ports", enforce.Protection{Sessions: []enforce.ProtectedSession{
			server(full, "203.0.113.10:0/esp", "203.0.113.11:0/any", "203.0.113.12:0/gre", "203.0.113.12:9899/sctp")}}, drop,
			"0.0.0.0/0 protected of tun0 by 7 drop\n203.0.113.10/32 server of tun0 500/17 by 7 drop\n" +
				"203.0.113.10/32 server of tun0 4500/17 by 7 drop\n203.0.113.10/32 server of tun0 0/50 by 7 drop\n" +
				"203.0.113.11/32 server of tun0 0/255 by 7 drop\n203.0.113.12/32 server of tun0 0/47 by 7 drop\n" +
				"203.0.113.12/32 server of tun0 9899/132 by 7 drop\n"},
		{"server that is a protected prefix", enforce.Protection{
			Sessions: []enforce.ProtectedSession{server(protected("tun0", 7, "203.0.113.10/32"), "203.0.113.10:1194/udp")}}, Rules{},
			"203.0.113.10/32 server of tun0 1194/17 by 7\n"},
		{"gateway that is a protected prefix", enforce.Protection{
			Sessions: []enforce.ProtectedSession{protected("tun0", 7, "10.77.0.1/32")}, Gateways: pfx("10.77.0.1/32")}, Rules{},
			"10.77.0.1/32 gateway of tun0 by 7\n"},
		{"too many transports", enforce.Protection{Sessions: []enforce.ProtectedSession{
			server(full, "10.0.0.1:1/udp", "10.0.0.1:2/udp", "10.0.0.1:3/udp", "10.0.0.1:4/udp", "10.0.0.1:5/tcp",
				"10.0.0.1:6/udp", "10.0.0.1:7/udp", "10.0.0.1:8/udp", "10.0.0.1:9/udp")}}, Rules{},
			"0.0.0.0/0 protected of tun0 by 7\n10.0.0.1/32 server of tun0 0/6 by 7\n10.0.0.1/32 server of tun0 0/17 by 7\n"},
		{"sender of a tun", enforce.Protection{Sessions: []enforce.ProtectedSession{from("tun")}}, Rules{},
			"0.0.0.0/0 protected of tun0 by 7\n203.0.113.10/32 server of tun0 1194/17 by 7 from host\n"},
		{"sender of a kernel's WireGuard", enforce.Protection{Sessions: []enforce.ProtectedSession{from("wireguard")}}, Rules{},
			"0.0.0.0/0 protected of tun0 by 7\n203.0.113.10/32 server of tun0 1194/17 by 7 from kernel\n"},
		{"sender of a kind that may look forwarded", enforce.Protection{Sessions: []enforce.ProtectedSession{from("ovpn-dco")}}, Rules{},
			"0.0.0.0/0 protected of tun0 by 7\n203.0.113.10/32 server of tun0 1194/17 by 7\n"},
		{"senders that were named", enforce.Protection{Sessions: []enforce.ProtectedSession{from("wireguard", "uid:0", "uid:65534", "mark:7")}}, Rules{},
			"0.0.0.0/0 protected of tun0 by 7\n203.0.113.10/32 server of tun0 1194/17 by 7 from uid\n" +
				"203.0.113.10/32 server of tun0 1194/17 by 7 from uid 65534\n203.0.113.10/32 server of tun0 1194/17 by 7 from mark 7\n"},
		{"anybody, by name", enforce.Protection{Sessions: []enforce.ProtectedSession{from("tun", "any")}}, Rules{},
			"0.0.0.0/0 protected of tun0 by 7\n203.0.113.10/32 server of tun0 1194/17 by 7\n"},
		{"this host, by name", enforce.Protection{Sessions: []enforce.ProtectedSession{from("", "host")}}, Rules{},
			"0.0.0.0/0 protected of tun0 by 7\n203.0.113.10/32 server of tun0 1194/17 by 7 from host\n"},
		{"an interface excluded from one session", enforce.Protection{
			Sessions: []enforce.ProtectedSession{apart, protected("wg0", 8, "10.1.0.0/16")}}, drop,
			"0.0.0.0/0 protected of tun0 by 7 but not [3 4] drop\n10.1.0.0/16 protected of wg0 by 8 drop\n" +
				"203.0.113.10/32 server of tun0 1194/17 by 7 but not [3 4] drop\n"},
		{"two sessions", enforce.Protection{Sessions: []enforce.ProtectedSession{protected("wg0", 8, "10.1.0.0/16"), excluding}}, Rules{},
			"10.0.0.0/8 protected of tun0 by 7\n10.1.0.0/16 protected of wg0 by 8\n10.9.0.0/16 excluded\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := compile(tt.p, tt.want, func(string) bool { return false })
			if got := shown(p); got != tt.text {
				t.Errorf("got:\n%s\nwant:\n%s", got, tt.text)
			}
			classes := map[netip.Prefix]loader.Class{}
			for _, x := range p.config.Prefixes {
				if c, ok := classes[x.Prefix]; ok && c != x.Class {
					t.Errorf("%s has two classes", x.Prefix)
				}
				classes[x.Prefix] = x.Class
			}
			if p.config.Guard != (tt.want.Guard && len(tt.p.Sessions) > 0) {
				t.Errorf("guard: %t", p.config.Guard)
			}
		})
	}
}

// TestCompileFreed: a guard that has lasted its time drops nothing, another does.
func TestCompileFreed(t *testing.T) {
	p := compile(enforce.Protection{Sessions: []enforce.ProtectedSession{protected("tun0", 0, "10.0.0.0/8"), protected("wg0", 0, "10.1.0.0/16")}},
		Rules{Guard: true}, func(tunnel string) bool { return tunnel == "tun0" })
	if got, want := shown(p), "10.0.0.0/8 protected of tun0 by 0\n10.1.0.0/16 protected of wg0 by 0 drop\n"; got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestIDs: they mean the same in every process, whatever the order.
func TestIDs(t *testing.T) {
	a, b := protected("tun0", 7, "10.0.0.0/8"), protected("wg0", 9, "10.1.0.0/16", "2001:db8::/32")
	ids := func(list ...enforce.ProtectedSession) map[string]uint32 {
		out := map[string]uint32{}
		for id, own := range compile(enforce.Protection{Sessions: list}, Rules{}, func(string) bool { return false }).owners {
			out[own.tunnel+own.prefix.String()] = id
		}
		return out
	}
	moved := a
	moved.Link = 0
	if x, y := fmt.Sprint(ids(a, b)), fmt.Sprint(ids(b, moved)); x != y || strings.Count(x, ":") < 3 {
		t.Errorf("%s, then %s", x, y)
	}
	// Two that collide get different ones.
	bl := builder{owners: map[uint32]owner{}}
	x := bl.id(owner{tunnel: "tun0", prefix: pfx("10.0.0.0/8")[0]})
	bl.owners[x] = owner{tunnel: "other"}
	if y := bl.id(owner{tunnel: "tun0", prefix: pfx("10.0.0.0/8")[0]}); x == y || y == 0 {
		t.Errorf("both are %d", x)
	}
}

// TestRenamedTunnel: an interface that has the tunnel's old name while the tunnel is there by another is not the tunnel.
func TestRenamedTunnel(t *testing.T) {
	for _, renamed := range []bool{false, true} {
		s := enforce.ProtectedSession{Session: enforce.Session{
			Tunnel: "tun0", Protect: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			Servers: []enforce.Server{{Addr: netip.MustParseAddrPort("10.1.2.3:1194"), Proto: "udp"}},
		}, Link: 5, Renamed: renamed}
		gateway := netip.MustParsePrefix("10.1.2.4/32")
		want := map[bool]string{false: "tun0", true: ""}[renamed]
		for _, p := range compile(enforce.Protection{Sessions: []enforce.ProtectedSession{s}, Gateways: []netip.Prefix{gateway}}, Rules{}, nil).config.Prefixes {
			if p.Tunnel == 5 && p.Name != want {
				t.Errorf("renamed %t: %s passes by the name %q, want %q", renamed, p.Prefix, p.Name, want)
			}
		}
	}
}

// TestTransportsWithoutEnd: a server may be given more protocols than a rule has room for.
func TestTransportsWithoutEnd(t *testing.T) {
	s := enforce.ProtectedSession{Session: enforce.Session{Tunnel: "tun0", Protect: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, Link: 5}
	for _, proto := range []string{"udp", "tcp", "sctp", "esp", "ah", "gre", "ipip", "sit", "l2tp"} {
		_, ports, _ := enforce.Transport(proto)
		for port := range uint16(20) {
			if !ports {
				port = 0
			}
			s.Servers = append(s.Servers, enforce.Server{Addr: netip.AddrPortFrom(netip.MustParseAddr("10.1.2.3"), port), Proto: proto})
		}
	}
	n := 0
	for _, p := range compile(enforce.Protection{Sessions: []enforce.ProtectedSession{s}}, Rules{}, nil).config.Prefixes {
		if p.Class == loader.Server {
			n++
		}
	}
	if n == 0 || n > loader.MaxTransports {
		t.Errorf("%d transports, of %d at most", n, loader.MaxTransports)
	}
}

// TestRenamedTunnelLingers: once it is gone, it is awaited by the name that it was opened with.
func TestRenamedTunnelLingers(t *testing.T) {
	probe := &fakeProbe{}
	k := newKeeper(probe, Rules{}, slog.New(slog.DiscardHandler))
	k.protect(enforce.Protection{Sessions: []enforce.ProtectedSession{{
		Session: enforce.Session{Tunnel: "tun0", Protect: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, Link: 5, Renamed: true,
	}}})
	k.protect(enforce.Protection{})
	for _, p := range probe.sets[len(probe.sets)-1].Prefixes {
		if p.Class == loader.Protected && p.Name != "tun0" {
			t.Errorf("%s is awaited by the name %q", p.Prefix, p.Name)
		}
	}
}
