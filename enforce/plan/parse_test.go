package plan_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// The interfaces of these tests, by index.
var linkNames = []string{"", "lo", "eth0", "eth1", "docker0", "", "", "", "", "tun0", "tun1"}

const (
	eth0    = 2
	eth1    = 3
	docker0 = 4
	tun0    = 9
	tun1    = 10
)

func linkName(index uint32) string {
	if int(index) < len(linkNames) && linkNames[index] != "" {
		return linkNames[index]
	}
	return fmt.Sprintf("link %d", index)
}

var protocols = map[string]uint8{"kernel": enforcetest.ProtoKernel, "boot": enforcetest.ProtoBoot, "static": enforcetest.ProtoStatic, "own": enforcetest.ProtoOwn, "dhcp": protoDHCP}

var routeTypes = map[string]plan.Type{}

func init() {
	for ty := plan.Unicast; ty <= plan.Other; ty++ {
		routeTypes[ty.String()] = ty
	}
}

// rt reads a route in iproute2's words: "[TYPE] PREFIX [from P] [via A] [dev D]
// [nexthop [via A] dev D]… [metric N] [tos N] [proto P] [src A] [nhid N]
// [pref low|high] [expires N] [dead] [onlink]".
func rt(text string) plan.Route {
	words := strings.Fields(text)
	var r plan.Route
	if ty, ok := routeTypes[words[0]]; ok {
		r.Type, words = ty, words[1:]
	}
	r.Dst, words = prefix(words[0], text), words[1:]
	var hops []plan.Hop
	for len(words) > 0 {
		words = routeWord(&r, &hops, words, text)
	}
	return r.WithHops(hops...)
}

func prefix(word, text string) netip.Prefix {
	switch {
	case word == "default" && strings.Contains(text, ":"):
		return netip.MustParsePrefix("::/0")
	case word == "default":
		return netip.MustParsePrefix("0.0.0.0/0")
	case !strings.Contains(word, "/"):
		a := netip.MustParseAddr(word)
		return netip.PrefixFrom(a, a.BitLen())
	}
	return netip.MustParsePrefix(word)
}

func routeWord(r *plan.Route, hops *[]plan.Hop, words []string, text string) []string {
	switch words[0] {
	case "nexthop":
		*hops = append(*hops, plan.Hop{})
		return words[1:]
	case "dead":
		r.Dead = true
		return words[1:]
	case "onlink":
		r.AnyGateway = true
		return words[1:]
	}
	if len(*hops) == 0 && (words[0] == "via" || words[0] == "dev") {
		*hops = append(*hops, plan.Hop{})
	}
	hop := &plan.Hop{}
	if len(*hops) > 0 {
		hop = &(*hops)[len(*hops)-1]
	}
	switch key, arg := words[0], words[1]; key {
	case "via":
		hop.Via = netip.MustParseAddr(arg)
	case "dev":
		hop.Link = uint32(slices.Index(linkNames, arg))
	case "from":
		r.Src = netip.MustParsePrefix(arg)
	case "src":
		r.PrefSrc = netip.MustParseAddr(arg)
	case "proto":
		r.Protocol = protocols[arg]
		r.Origin = map[string]plan.Origin{"kernel": plan.Kernel, "own": plan.Own, "dhcp": plan.Leased}[arg]
	case "pref":
		r.Pref = map[string]plan.Pref{"low": plan.PrefLow, "high": plan.PrefHigh}[arg]
	default:
		routeNumber(r, key, arg, text)
	}
	return words[2:]
}

func routeNumber(r *plan.Route, key, arg, text string) {
	n, err := strconv.ParseUint(arg, 0, 32)
	if err != nil {
		panic(text + ": " + err.Error())
	}
	switch key {
	case "metric":
		r.Metric = uint32(n)
	case "tos":
		r.TOS = uint8(n)
	case "nhid":
		r.NexthopID = uint32(n)
	case "expires":
		r.Expires = uint32(n)
	default:
		panic(text + ": no such word: " + key)
	}
}

// say writes a route as rt reads it.
func say(r plan.Route) string {
	text := enforcetest.Text(r)
	for i, name := range linkNames {
		if name != "" {
			text = strings.ReplaceAll(text+" ", fmt.Sprintf(" dev %d ", i), " dev "+name+" ")
		}
	}
	for name, n := range protocols {
		text = strings.ReplaceAll(text+" ", fmt.Sprintf(" proto %d ", n), " proto "+name+" ")
	}
	return strings.Join(strings.Fields(text), " ")
}

func prefixes(words string) (out []netip.Prefix) {
	for _, w := range strings.Fields(words) {
		out = append(out, prefix(w, w))
	}
	return out
}

func build(t *testing.T, spec plan.Spec) *plan.Policy {
	t.Helper()
	p, problems := plan.Build(spec)
	for _, pr := range problems {
		t.Fatalf("%v %s", pr.Prefix, pr.Text)
	}
	return p
}

// one returns a policy of one session on tun0.
func one(t *testing.T, protect, exclude string) *plan.Policy {
	t.Helper()
	return build(t, plan.Spec{Sessions: []plan.Session{{Tunnel: tun0, TunnelUp: true, Protect: prefixes(protect), Exclude: prefixes(exclude)}}})
}

func routes(lines ...string) (out []plan.Route) {
	for _, l := range lines {
		out = append(out, rt(l))
	}
	return out
}

func links() []plan.Link {
	up := func(index uint32, addrs string) plan.Link {
		return plan.Link{Index: index, Name: linkName(index), Up: true, Addrs: addresses(addrs)}
	}
	return []plan.Link{
		up(1, "127.0.0.1/8 ::1/128"),
		up(eth0, "192.168.1.10/24 2001:db8:2::10/64"),
		up(eth1, "192.168.7.10/24 2001:db8:7::10/64"),
		up(docker0, "172.17.0.1/16"),
		up(tun0, "10.8.0.2/24 2001:db8:8::2/64"),
		up(tun1, "10.9.0.2/24"),
	}
}

func addresses(words string) (out []netip.Prefix) {
	for _, w := range strings.Fields(words) {
		out = append(out, netip.MustParsePrefix(w))
	}
	return out
}

// lines says what a plan does, one action a line.
func lines(pl plan.Plan) (out []string) {
	for _, a := range pl.Actions {
		line := a.Kind.String() + " " + say(a.Route)
		for _, flag := range []struct {
			on   bool
			word string
		}{{a.Hold, "hold"}, {a.First && a.Kind == plan.Restore, "first"}, {!a.First && a.Kind == plan.Remove && a.Route.Dst.Addr().Is4(), "behind"}, {a.First && a.Kind == plan.Put && a.Route.Hop.Link != tun0, "ahead"}, {a.Held != 0, fmt.Sprintf("held=%d", a.Held)}, {a.Age != 0, fmt.Sprintf("age=%d", a.Age)}} {
			if flag.on {
				line += " [" + flag.word + "]"
			}
		}
		if a.Kind == plan.Forget {
			line += ": " + a.Why
		}
		out = append(out, line)
	}
	return out
}
