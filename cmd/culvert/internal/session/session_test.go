package session

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
)

func TestPrefix(t *testing.T) {
	tests := []struct{ word, want string }{
		{"10.0.0.0/8", "10.0.0.0/8"},
		{"0.0.0.0/0", "0.0.0.0/0"},
		{"2001:db8::/32", "2001:db8::/32"},
		{"10.1.2.3/16", "has host bits set; write 10.1.0.0/16"},
		{"2001:db8::1/32", "has host bits set; write 2001:db8::/32"},
		{"10.1.2.3", "has no prefix length; write 10.1.2.3/32 for this one address"},
		{"2001:db8::1", "has no prefix length; write 2001:db8::1/128 for this one address"},
		{"::ffff:10.0.0.0/104", "is an IPv4 address written as IPv6; write the IPv4 prefix"},
		{"10.0.0.0/33", "is not a prefix; write ADDRESS/LENGTH, for example 10.0.0.0/8 or 2001:db8::/32"},
		{"fe80::1%eth0/64", "is not a prefix; write ADDRESS/LENGTH, for example 10.0.0.0/8 or 2001:db8::/32"},
		{"", "is not a prefix; write ADDRESS/LENGTH, for example 10.0.0.0/8 or 2001:db8::/32"},
	}
	for _, tt := range tests {
		p, err := Prefix(tt.word)
		if got := either(p, err); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.word, got, tt.want)
		}
	}
}

func TestServer(t *testing.T) {
	tests := []struct{ word, want string }{
		{"198.51.100.7:1194/udp", "198.51.100.7:1194/udp"},
		{"198.51.100.7:443/tcp4", "198.51.100.7:443/tcp"},
		{"[2001:db8::7]:443/tcp6", "[2001:db8::7]:443/tcp"},
		{"198.51.100.7:1194", "names no protocol; " + serverForm},
		{"vpn.example:1194/udp", "is not a server (names must be resolved first); " + serverForm},
		{"2001:db8::7:1194/udp", "has no port; write the one that the tunnel is carried to: [ADDRESS]:PORT/udp"},
		{"198.51.100.7/udp", "has no port; write the one that the tunnel is carried to: 198.51.100.7:PORT/udp"},
		{"198.51.100.7:0/udp", "has port 0; write the port that the tunnel is carried to"},
		{"198.51.100.7:9899/sctp", "198.51.100.7:9899/sctp"},
		{"198.51.100.7/esp", "198.51.100.7/esp"},
		{"198.51.100.7/ah", "198.51.100.7/ah"},
		{"198.51.100.7/gre", "198.51.100.7/gre"},
		{"198.51.100.7/ipip", "198.51.100.7/ipip"},
		{"198.51.100.7/sit", "198.51.100.7/sit"},
		{"198.51.100.7/l2tp", "198.51.100.7/l2tp"},
		{"2001:db8::7/any", "2001:db8::7/any"},
		{"[2001:db8::7]/esp", "2001:db8::7/esp"},
		{"198.51.100.7:500/esp", "has a port, and esp has none; write 198.51.100.7/esp"},
		{"198.51.100.7:0/esp", "has a port, and esp has none; write 198.51.100.7/esp"},
		{"198.51.100.7/", "has an unknown protocol; write udp, tcp, sctp, esp, ah, gre, ipip, sit, l2tp or any"},
		{"198.51.100.7:1194/quic", "has an unknown protocol; write udp, tcp, sctp, esp, ah, gre, ipip, sit, l2tp or any"},
		{"vpn.example/esp", "is not a server (names must be resolved first); " + serverForm},
		{"::ffff:198.51.100.7/esp", "is an IPv4 address written as IPv6; write the IPv4 address"},
		{"fe80::1%eth0/esp", "has a zone; write the address without it"},
		{"198.51.100.7:1194/udp6", "mixes the families: udp6 is not for this address; write udp"},
		{"[2001:db8::7]:1194/udp4", "mixes the families: udp4 is not for this address; write udp"},
		{"[::ffff:198.51.100.7]:1194/udp", "is an IPv4 address written as IPv6; write the IPv4 address"},
		{"[fe80::1%eth0]:1194/udp", "has a zone; write the address without it"},
		{"0.0.0.0:1194/udp", "is no address of one host; " + serverForm},
	}
	for _, tt := range tests {
		s, err := Server(tt.word)
		if got := either(s, err); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.word, got, tt.want)
		}
	}
}

func either(v any, err error) string {
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(v)
}

func TestParse(t *testing.T) {
	base := func(change func(*Text)) Text {
		text := Text{Tunnel: "tun0", Protect: []string{"10.0.0.0/8"}, Where: func(f Field) string { return "--" + string(f) }}
		change(&text)
		return text
	}
	tests := []struct {
		name string
		text Text
		want string
	}{
		{"all", base(func(t *Text) {
			t.Protect = []string{"10.0.0.0/8", "10.0.0.0/8", "0.0.0.0/0"}
			t.Exclude = []string{"10.1.0.0/16"}
			t.Servers = []string{"198.51.100.7:1194/udp"}
			t.ExcludeInterfaces = []string{"docker0"}
			t.OtherTable = []string{"0.0.0.0/0"}
			t.ServerFrom = []string{"uid:root", "mark:0x10", "host", "any", "uid:0"}
			t.Rearm = true
		}), "{tun0 [10.0.0.0/8 0.0.0.0/0] [] [10.1.0.0/16] [198.51.100.7:1194/udp] [docker0] [0.0.0.0/0]  [uid:0 mark:16 host any] false true false}"},
		{"sender auto", base(func(t *Text) { t.ServerFrom = []string{"auto"} }), "{tun0 [10.0.0.0/8] [] [] [] [] []  [] false false false}"},
		{"sender auto and more", base(func(t *Text) { t.ServerFrom = []string{"uid:0", "auto"} }), "--server-from: auto goes with no other sender; leave it out"},
		{"no such user", base(func(t *Text) { t.ServerFrom = []string{"uid:no such user"} }), senderForm("uid:no such user")},
		{"no user", base(func(t *Text) { t.ServerFrom = []string{"uid:"} }), senderForm("uid:")},
		{"no mark", base(func(t *Text) { t.ServerFrom = []string{"mark:0"} }), senderForm("mark:0")},
		{"mark too great", base(func(t *Text) { t.ServerFrom = []string{"mark:0x100000000"} }), senderForm("mark:0x100000000")},
		{"unknown sender", base(func(t *Text) { t.ServerFrom = []string{"pid:1"} }), senderForm("pid:1")},
		{"a number for none", base(func(t *Text) { t.ServerFrom = []string{"any:1"} }), senderForm("any:1")},
		{"no tunnel", base(func(t *Text) { t.Tunnel = "" }), "--tunnel: names no interface; give the tunnel's, for example tun0"},
		{"bad tunnel", base(func(t *Text) { t.Tunnel = "a/b" }), `--tunnel: "a/b" is not the name of an interface`},
		{"nothing protected", base(func(t *Text) { t.Protect = nil }), "--protect: names no prefix; give what must leave through tun0, for example 10.0.0.0/8"},
		{"host bits", base(func(t *Text) { t.Exclude = []string{"10.1.2.3/16"} }), "--exclude: 10.1.2.3/16 has host bits set; write 10.1.0.0/16"},
		{"empty word", base(func(t *Text) { t.Protect = []string{"10.0.0.0/8", ""} }), "--protect: is not a prefix; write ADDRESS/LENGTH, for example 10.0.0.0/8 or 2001:db8::/32"},
		{"the same both ways", base(func(t *Text) { t.Exclude = []string{"10.0.0.0/8"} }), "10.0.0.0/8 is both protected and excluded; remove one of the two"},
		{"ignored range", base(func(t *Text) { t.Protect = []string{"169.254.1.0/24"} }), "169.254.1.0/24 lies inside a range that is never touched (loopback, link-local, multicast); leave it out"},
		{"other table not protected", base(func(t *Text) { t.OtherTable = []string{"0.0.0.0/0"} }), "--other-table: 0.0.0.0/0 is not protected; protect it too, or leave it out"},
		{"bad pattern", base(func(t *Text) { t.ExcludeInterfaces = []string{"br-["} }), "--exclude-interface: br-[ is neither an interface's name nor a pattern; write docker0, br-* or veth*"},
		{"tunnel excluded", base(func(t *Text) { t.ExcludeInterfaces = []string{"tun0"} }), "--exclude-interface: tun0 is the tunnel itself; leave it out"},
		{"everything excluded", base(func(t *Text) { t.ExcludeInterfaces = []string{"docker0", "*"} }), "--exclude-interface: * fits the tunnel itself, tun0, too; write a pattern that fits the others only"},
		{"pattern fits the tunnel", base(func(t *Text) { t.ExcludeInterfaces = []string{"docker0", "tu[m-o]?"} }), "--exclude-interface: tu[m-o]? fits the tunnel itself, tun0, too; write a pattern that fits the others only"},
		{"bad server", base(func(t *Text) { t.Servers = []string{"x"} }), "--server: x names no protocol; " + serverForm},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := tt.text.Parse()
			if got := either(s, err); got != tt.want {
				t.Errorf("got %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestCheckBetween(t *testing.T) {
	s := func(tunnel string, protect ...string) enforce.Session {
		out := enforce.Session{Tunnel: tunnel}
		for _, p := range protect {
			out.Protect = append(out.Protect, netip.MustParsePrefix(p))
		}
		return out
	}
	tests := []struct {
		name     string
		sessions []enforce.Session
		want     string
	}{
		{"nested is fine", []enforce.Session{s("tun0", "10.0.0.0/8"), s("tun1", "10.1.0.0/16")}, ""},
		{"one prefix, two tunnels", []enforce.Session{s("tun0", "10.0.0.0/8"), s("tun1", "10.0.0.0/8")}, "10.0.0.0/8 is protected by two sessions; give it to one tunnel"},
		{"one tunnel twice", []enforce.Session{s("tun0", "10.0.0.0/8"), s("tun0", "10.1.0.0/16")}, "tun0 has two sessions; put their prefixes into one"},
	}
	for _, tt := range tests {
		got := ""
		if err := Check(tt.sessions...); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// FuzzWords: what parses can be written and parsed again; what does not says why.
func FuzzWords(f *testing.F) {
	for _, w := range []string{"10.0.0.0/8", "2001:db8::/32", "10.1.2.3/16", "1.2.3.4:5/udp", "[2001:db8::7]:443/tcp", "[fe80::1%a]:1/udp", "/"} {
		f.Add(w)
	}
	f.Fuzz(func(t *testing.T, word string) {
		if p, err := Prefix(word); err == nil {
			if again, err := Prefix(p.String()); err != nil || again != p {
				t.Errorf("%q became %v, which became %v, %v", word, p, again, err)
			}
		} else if strings.TrimSpace(err.Error()) == "" {
			t.Errorf("%q: an error without a word", word)
		}
		if s, err := Server(word); err == nil {
			if again, err := Server(s.Addr.String() + "/" + s.Proto); err != nil || again != s {
				t.Errorf("%q became %v, which became %v, %v", word, s, again, err)
			}
		}
	})
}

func senderForm(word string) string {
	return "--server-from: " + word + " is no sender that can be known; write auto, any, host, uid:USER or mark:NUMBER"
}
