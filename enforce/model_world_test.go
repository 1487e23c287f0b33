package enforce_test

import (
	"net/netip"
	"strings"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// world is a small place and what may happen in it. Every order of its operations is
// tried, to a depth.
type world struct {
	name    string
	about   string
	ops     string // what may happen, as op says
	before  string // what has happened before: the first state
	opt     enforce.Options
	micro   bool             // nothing follows by itself: the watch, the events and the readings are operations too
	echo    bool             // what culvert does is announced to it too
	deaths  bool             // the process may die before each write of each of culvert's operations
	six     bool             // in IPv6
	process *enforce.Stepper // that has not begun
}

// The links of every world.
const (
	lan   uint32 = 2 // inside the protected space
	wifi  uint32 = 3
	tunA  uint32 = 5  // tun0
	tunB  uint32 = 6  // tun1
	later uint32 = 10 // added to the index of a tunnel that comes again
)

var linkNames = map[string]uint32{"lan": lan, "wifi": wifi, "tun0": tunA, "tun1": tunB}

// addresses that come and go, by name.
var worldAddrs = map[string]struct {
	link uint32
	addr netip.Prefix
}{
	"lan":   {lan, pfx("10.64.0.2/10")},
	"wifi":  {wifi, pfx("192.168.7.2/24")},
	"wifi2": {wifi, pfx("10.64.0.3/10")},
	"6lan":  {lan, pfx("fd40::2/10")},
	"6wifi": {wifi, pfx("fe00::2/24")},
}

const (
	lanGate, wifiGate, wifiGate2 = "10.64.0.1", "192.168.7.1", "192.168.7.9"
	serverA, serverB             = "203.0.113.7", "198.51.100.9"
)

// routeOf makes a route: DST [via GW] dev LINK and words as ip(8) has them.
func routeOf(text string) plan.Route {
	w := strings.Fields(text)
	r := plan.Route{Protocol: enforcetest.ProtoStatic}
	for i, name := range []string{"blackhole", "throw"} {
		if w[0] == name {
			r.Type, w = []plan.Type{plan.Blackhole, plan.Throw}[i], w[1:]
		}
	}
	r.Dst = pfx(w[0])
	if r.Dst.Addr().Is6() {
		r.Metric = 1024
	}
	var hops []plan.Hop
	for i := 1; i+1 < len(w); i += 2 {
		switch word := w[i+1]; w[i] {
		case "via":
			hops = append(hops, plan.Hop{Via: netip.MustParseAddr(word)})
		case "dev":
			if len(hops) == 0 || hops[len(hops)-1].Link != 0 {
				hops = append(hops, plan.Hop{})
			}
			hops[len(hops)-1].Link = linkNames[word]
		case "metric":
			r.Metric = number(word)
		case "tos":
			r.TOS = uint8(number(word))
		case "proto":
			r.Protocol = uint8(number(word))
			if r.Protocol == protoDHCP {
				r.Origin = plan.Leased
			}
		}
	}
	return r.WithHops(hops...)
}

const protoDHCP = 16

func number(word string) (n uint32) {
	for _, c := range word {
		n = n*10 + uint32(c-'0')
	}
	return n
}

// worldRoutes are the routes that come and go, by name: what they protect or take, and
// by what. P conflicts, V is the VPN's, D is a default.
var worldRoutes = func() map[string]plan.Route {
	out := map[string]plan.Route{}
	for name, text := range map[string]string{
		"P8w":  "10.0.0.0/8 via 192.168.7.1 dev wifi",
		"P8wh": "10.0.0.0/8 via 192.168.7.1 dev wifi metric 600",
		"P8l":  "10.0.0.0/8 via 10.64.0.1 dev lan metric 100",
		"P8lo": "10.0.0.0/8 via 10.64.0.1 dev lan",
		"P8t":  "10.0.0.0/8 via 192.168.7.1 dev wifi tos 4 metric 600",
		"P9l":  "10.0.0.0/9 via 10.64.0.1 dev lan",
		"P9w":  "10.0.0.0/9 via 192.168.7.1 dev wifi proto 16",
		"P9w2": "10.0.0.0/9 via 192.168.7.9 dev wifi proto 16",
		"P9wh": "10.0.0.0/9 via 192.168.7.1 dev wifi metric 600",
		"P9t":  "10.0.0.0/9 via 192.168.7.1 dev wifi tos 4",
		"P10l": "10.0.0.0/10 via 10.64.0.1 dev lan metric 50",
		"P10w": "10.0.0.0/10 via 192.168.7.1 dev wifi metric 50",
		"P64w": "10.64.0.0/10 via 192.168.7.1 dev wifi",
		"X10":  "10.0.0.0/10 dev wifi",
		"B10":  "blackhole 10.0.0.0/10",
		"T10":  "throw 10.0.0.0/10",
		"M8":   "10.0.0.0/8 via 192.168.7.1 dev wifi via 10.64.0.1 dev lan",
		"L10":  "10.0.0.0/10 via 10.64.0.1 dev lan via 192.168.7.1 dev wifi",
		"MT":   "10.0.0.0/8 dev tun0 via 192.168.7.1 dev wifi",
		"V8":   "10.0.0.0/8 dev tun0",
		"V8m":  "10.0.0.0/8 dev tun0 metric 50",
		"P8w1": "10.0.0.0/8 via 192.168.7.1 dev wifi metric 100",
		"P8w2": "10.0.0.0/8 via 192.168.7.9 dev wifi",
		"V8h":  "10.0.0.0/8 dev tun0 metric 200",
		"V9":   "10.0.0.0/9 dev tun1",
		"V9a":  "10.0.0.0/9 dev tun0",
		"V8b":  "10.0.0.0/8 dev tun1",
		"V0":   "0.0.0.0/1 dev tun0",
		"V1":   "128.0.0.0/1 dev tun0",
		"D":    "0.0.0.0/0 via 10.64.0.1 dev lan",
		"Dm":   "0.0.0.0/0 via 10.64.0.1 dev lan metric 100",
		"Dw":   "0.0.0.0/0 via 192.168.7.1 dev wifi metric 600",
		"D0w":  "0.0.0.0/1 via 192.168.7.1 dev wifi",
		"H":    "10.64.0.1/32 dev lan",
		"SH":   serverA + "/32 via 10.64.0.1 dev lan",
		"SHw":  serverA + "/32 via 192.168.7.1 dev wifi metric 50",
		"ST":   serverA + "/32 dev tun0",
		"6P8":  "fd00::/8 via fd40::1 dev lan",
		"6P8b": "fd00::/8 via fe00::1 dev wifi",
		"6P8m": "fd00::/8 via fe00::9 dev wifi metric 600",
		"6P9":  "fd00::/9 via fd40::1 dev lan",
		"6P9b": "fd00::/9 via fe00::1 dev wifi",
		"6P9c": "fd00::/9 via fe00::9 dev wifi",
		"6B10": "blackhole fd00::/10",
		"6V8":  "fd00::/8 dev tun0 metric 50",
		"6V9":  "fd00::/9 dev tun1 metric 50",
		"6D":   "::/0 via fd40::1 dev lan",
	} {
		out[name] = routeOf(text)
	}
	return out
}()

func session(tunnel string, protect, exclude string, servers ...string) enforce.Session {
	s := enforce.Session{Tunnel: tunnel}
	for _, p := range strings.Fields(protect) {
		s.Protect = append(s.Protect, pfx(p))
	}
	for _, p := range strings.Fields(exclude) {
		s.Exclude = append(s.Exclude, pfx(p))
	}
	for _, a := range servers {
		s.Servers = append(s.Servers, enforce.Server{Addr: netip.AddrPortFrom(netip.MustParseAddr(a), 1194), Proto: "udp"})
	}
	return s
}

func excludingLinks(s enforce.Session, links ...string) enforce.Session {
	s.ExcludeInterfaces = links
	return s
}

func rearmed(s enforce.Session) enforce.Session { s.Rearm = true; return s }

// worldSessions are the sessions that are opened, by name.
var worldSessions = map[string]enforce.Session{
	"s8":   session("tun0", "10.0.0.0/8", ""),
	"s8x":  session("tun0", "10.0.0.0/8", "10.0.0.0/9"),
	"s8w":  excludingLinks(session("tun0", "10.0.0.0/8", ""), "wifi"),
	"s8r":  rearmed(session("tun0", "10.0.0.0/8", "")),
	"s9":   session("tun0", "10.0.0.0/9", ""),
	"t9":   session("tun1", "10.0.0.0/9", ""),
	"t9x":  session("tun1", "10.0.0.0/9", "10.0.0.0/10"),
	"t8":   session("tun1", "10.0.0.0/8", ""),
	"f":    session("tun0", "0.0.0.0/1 128.0.0.0/1", "", serverA),
	"fB":   session("tun0", "0.0.0.0/1 128.0.0.0/1", "", serverB),
	"f0":   session("tun0", "0.0.0.0/0", "", serverA),
	"6s8":  session("tun0", "fd00::/8", ""),
	"6s9":  session("tun0", "fd00::/9", ""),
	"6t9":  session("tun1", "fd00::/9", ""),
	"6s8x": session("tun0", "fd00::/8", "fd00::/9"),
}

// newWorldTable is the table that every world begins with.
func newWorldTable() *enforcetest.Table {
	t := &enforcetest.Table{}
	t.AddLink(plan.Link{Index: 1, Name: "lo", Up: true})
	t.AddLink(plan.Link{Index: lan, Name: "lan", HW: "02:00:00:00:00:02", Up: true,
		Addrs: []netip.Prefix{worldAddrs["lan"].addr, worldAddrs["6lan"].addr}})
	t.AddLink(plan.Link{Index: wifi, Name: "wifi", HW: "02:00:00:00:00:03", Up: true,
		Addrs: []netip.Prefix{worldAddrs["wifi"].addr, worldAddrs["6wifi"].addr}})
	t.AddLink(plan.Link{Index: tunA, Name: "tun0", Kind: plan.KindTunnel, Up: true})
	t.AddLink(plan.Link{Index: tunB, Name: "tun1", Kind: plan.KindTunnel, Up: true})
	return t
}
