// Package openvpn reads what OpenVPN tells its scripts in the environment, and
// makes a session of it.
//
// What the environment does not tell, and what is made of it:
//
//   - Routes are numbered from 1, without a gap. Values of an earlier
//     connection may stay in the environment when a later one has fewer
//     routes: [Call.DropStale] tells them by the table.
//   - The IPv4 routes of redirect-gateway and whether it is "def1" are not
//     exported, only redirect_gateway=1 from route-up on. The two halves of the
//     address space are protected for either: where OpenVPN replaced the
//     default route they are stronger than it, and they never compete with it.
//   - The IPv6 routes of redirect-gateway are exported, and the host route to
//     an IPv6 server stands among them with no mark.
//   - An IPv4 route whose gateway is not the VPN's bypasses the tunnel on
//     purpose (net_gateway). On a tun device OpenVPN ignores IPv6 gateways, so
//     every IPv6 route enters the tunnel.
package openvpn

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// ErrNoScript: the environment is not that of an OpenVPN script.
var ErrNoScript = errors.New("not run by OpenVPN")

// ErrNoServer: all traffic is redirected, and which of it is the tunnel's own
// transport cannot be known.
var ErrNoServer = errors.New("the VPN server's address is not known")

// Event is what a script call means for the session.
type Event uint8

// The events.
const (
	Nothing Event = iota // the tunnel stays as it is
	Up                   // open the session, or change it
	Down                 // end it
)

// Call is one call of a script by OpenVPN.
type Call struct {
	Script   string // OpenVPN's name for it: up, route-up, route-pre-down, down
	Event    Event
	Signal   string // why OpenVPN closes the device, in its words; of route-pre-down and down
	Device   string
	Routes   []Route // as numbered, up to the first gap; for Up only
	Warnings []string

	subnets  []netip.Prefix // the tunnel's own
	redirect bool           // all IPv4 traffic enters the tunnel
	servers  []enforce.Server
	names    []string // of servers, each once
	named    []remote // the servers that have them
	tooMany  bool     // routes, so that some were not read
}

// Route is one route of the environment.
type Route struct {
	N        int
	Prefix   netip.Prefix
	Gateway  netip.Addr
	Excluded bool // it bypasses the tunnel on purpose
	Standing bool // for DropStale: the table has it, with the next hop it should have
	Rivalled bool // for DropStale: the table has its prefix with another next hop
}

// The bounds of what is read: much of it is the server's word.
const (
	maxRoutes   = 1 << 14 // of each family
	maxRemotes  = 256
	maxWarnings = 20
)

// ErrTooMany: more is asked for than one session may hold.
var ErrTooMany = errors.New("too many routes")

// Read understands one call. Env returns the value of a variable, or "".
func Read(env func(string) string) (Call, error) {
	c := Call{Script: env("script_type"), Device: env("dev")}
	switch c.Script {
	case "up", "route-up":
		c.Event = Up
	case "down", "route-pre-down":
		if c.Signal = env("signal"); ends(c.Signal) {
			c.Event = Down
		}
	case "":
		return c, fmt.Errorf("script_type is not set: %w; give this command to its options up, route-up, route-pre-down and down", ErrNoScript)
	default:
		return c, fmt.Errorf("script_type is %.40q: %w as one of the scripts up, route-up, route-pre-down, down", c.Script, ErrNoScript)
	}
	switch {
	case c.Device == "":
		return c, fmt.Errorf("dev is not set: %w", ErrNoScript)
	case !plausible(c.Device):
		return c, fmt.Errorf("dev is %.40q, which is no interface's name: %w", c.Device, ErrNoScript)
	}
	if env("script_context") == "restart" {
		// With persist-tun and up-restart the device and its routes stay, and the
		// environment of up names none of them: the session stays as it is.
		c.Event = Nothing
	}
	if c.Event == Up {
		// In up the value would be left over from an earlier connection.
		c.redirect = c.Script == "route-up" && env("redirect_gateway") == "1"
		c.readSubnets(env)
		c.readServers(env)
		c.readRoutes4(env)
		c.readRoutes6(env)
		c.tooMany = env(numbered("route_network_", maxRoutes+1)) != "" || env(numbered("route_ipv6_network_", maxRoutes+1)) != ""
	}
	return c, nil
}

// ends reports whether a reason for closing the device is the end of the VPN. All
// others are a restart: the device is closed and made again (sigusr1, ping-restart,
// connection-reset, tls-error, sighup, …), and what is protected stays so. So does it
// for reasons that are not known, or that are both, as auth-failure is: where a
// session does not guard, it ends with the device all the same.
func ends(signal string) bool {
	switch signal {
	case "", // not OpenVPN, or one that does not tell
		"sigterm", "sigint", // somebody ends it
		"exit-with-notification", "delayed-exit", // the same, once the server is told
		"ping-exit", "inactive", "session-timeout", // the configuration ends it
		"remote-exit", "server-pushed-halt": // the server ends it
		return true
	}
	return false
}

// plausible reports whether a word can be an interface's name.
func plausible(word string) bool {
	return len(word) <= 255 && utf8.ValidString(word) && !strings.ContainsFunc(word, func(r rune) bool { return r == '/' || !unicode.IsPrint(r) })
}

// warn takes a warning down. Of very many it only says that there are more.
func (c *Call) warn(format string, args ...any) {
	switch n := len(c.Warnings); {
	case n < maxWarnings:
		c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...))
	case n == maxWarnings:
		c.Warnings = append(c.Warnings, "there is more to warn of, which is left out")
	}
}

// readSubnets finds the addresses that are on the tunnel's own link.
func (c *Call) readSubnets(env func(string) string) {
	local := parseAddr(env("ifconfig_local"))
	if p, ok := masked(local, env("ifconfig_netmask")); ok && !p.IsSingleIP() {
		c.subnets = append(c.subnets, p)
	} else if remote := parseAddr(env("ifconfig_remote")); remote.Is4() {
		c.subnets = append(c.subnets, host(remote))
	}
	local6, remote6 := parseAddr(env("ifconfig_ipv6_local")), parseAddr(env("ifconfig_ipv6_remote"))
	bits, err := strconv.Atoi(env("ifconfig_ipv6_netbits"))
	switch p, perr := local6.Prefix(bits); {
	case err == nil && perr == nil && local6.Is6() && bits < 128:
		c.subnets = append(c.subnets, p)
	case remote6.Is6() && !remote6.IsUnspecified():
		c.subnets = append(c.subnets, host(remote6))
	}
}

func (c *Call) inSubnet(a netip.Addr) bool {
	return slices.ContainsFunc(c.subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// readRoutes4 reads the IPv4 routes.
func (c *Call) readRoutes4(env func(string) string) {
	vpn, net := parseAddr(env("route_vpn_gateway")), parseAddr(env("route_net_gateway"))
	for n := 1; n <= maxRoutes; n++ {
		network := env(numbered("route_network_", n))
		if network == "" {
			return
		}
		mask := env(numbered("route_netmask_", n))
		p, ok := masked(parseAddr(network), mask)
		if !ok {
			c.warn("route %d, %s, is not understood and not protected", n, plain(strings.TrimSpace(network+" "+mask)))
			continue
		}
		r := Route{N: n, Prefix: p, Gateway: parseAddr(env(numbered("route_gateway_", n)))}
		r.Excluded = c.bypasses(r.Gateway, vpn, net)
		c.addRoute(r)
	}
}

// bypasses tells a gateway outside the tunnel: it is not the VPN's and not on
// the tunnel's own link. Where the VPN's is not known, the network's own is
// the only one known to be outside.
func (c *Call) bypasses(gateway, vpn, net netip.Addr) bool {
	switch {
	case !gateway.IsValid() || gateway == vpn || c.inSubnet(gateway):
		return false
	case vpn.IsValid():
		return true
	}
	return gateway == net
}

// readRoutes6 reads the IPv6 routes.
func (c *Call) readRoutes6(env func(string) string) {
	for n := 1; n <= maxRoutes; n++ {
		network := env(numbered("route_ipv6_network_", n))
		if network == "" {
			return
		}
		p, err := netip.ParsePrefix(network)
		if err != nil || !p.Addr().Is6() || p.Addr().Is4In6() {
			c.warn("IPv6 route %d, %s, is not understood and not protected", n, plain(network))
			continue
		}
		c.addRoute(Route{N: n, Prefix: p.Masked(), Gateway: parseAddr(env(numbered("route_ipv6_gateway_", n)))})
	}
}

func (c *Call) addRoute(r Route) {
	if plan.InIgnored(r.Prefix) {
		c.warn("route %s lies inside a range that is never touched (loopback, link-local, multicast); skipped", r.Prefix)
		return
	}
	c.Routes = append(c.Routes, r)
}

// DropStale forgets routes left over from an earlier connection, once the
// caller has marked in Routes what the table holds after OpenVPN added its own.
// Left-overs have the highest numbers, so what is numbered after the last
// standing route goes. A protected one stays if another route holds its prefix:
// then OpenVPN may have been kept from adding it.
func (c *Call) DropStale() {
	last4, last6 := 0, 0
	for _, r := range c.Routes {
		switch {
		case !r.Standing:
		case r.Prefix.Addr().Is4():
			last4 = max(last4, r.N)
		default:
			last6 = max(last6, r.N)
		}
	}
	c.Routes = slices.DeleteFunc(c.Routes, func(r Route) bool {
		last := last6
		if r.Prefix.Addr().Is4() {
			last = last4
		}
		return last > 0 && r.N > last && (r.Excluded || !r.Rivalled)
	})
}

// halves are what redirect-gateway comes down to.
var halves = [...]netip.Prefix{netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/1")}

// noServer is why there may be no server.
const noServer = "trusted_ip is not set, and no remote is an address or a name that was resolved"

// Session returns what OpenVPN asks to have enforced. It may add to Warnings.
func (c *Call) Session() (enforce.Session, error) {
	s := enforce.Session{Tunnel: c.Device, Servers: c.servers}
	for _, p := range c.subnets {
		if !plan.InIgnored(p) {
			s.Protect = append(s.Protect, p)
		}
	}
	if c.redirect {
		s.Protect = append(s.Protect, halves[:]...)
	}
	for _, r := range c.Routes {
		if r.Excluded {
			s.Exclude = append(s.Exclude, r.Prefix)
		} else {
			s.Protect = append(s.Protect, r.Prefix)
		}
	}
	// A route to the server itself by the tunnel would be the tunnel's end, and one around
	// it would let any other.
	servers := func(p netip.Prefix) bool { return p.IsSingleIP() && c.isServer(p.Addr()) }
	s.Protect, s.Exclude = c.merge(slices.DeleteFunc(s.Protect, servers), slices.DeleteFunc(s.Exclude, servers))
	for _, p := range c.subnets { // another VPN may have the same network
		if slices.Contains(s.Protect, p) {
			s.Derived = append(s.Derived, p)
		}
	}
	switch {
	case c.tooMany:
		return s, fmt.Errorf("%s: %w: more than %d of one family; let the server push shorter prefixes, or open the session with \"culvert up\"", c.Device, ErrTooMany, maxRoutes)
	case len(s.Protect) == 0:
		return s, fmt.Errorf("%s: OpenVPN names no route through it", c.Device)
	case c.redirect && len(s.Servers) == 0:
		return s, fmt.Errorf("%s: %w: OpenVPN redirects all traffic, and %s; write an address as remote", c.Device, ErrNoServer, noServer)
	case len(s.Servers) == 0:
		c.warn("%v: %s", ErrNoServer, noServer)
	}
	return s, nil
}

// merge drops repeats. A prefix that is both is protected: the server may have
// pushed the route around the tunnel. Prefixes inside others stay: OpenVPN's
// route for each is put back when it vanishes.
func (c *Call) merge(protect, exclude []netip.Prefix) (p, x []netip.Prefix) {
	protected := map[netip.Prefix]bool{}
	for _, e := range protect {
		protected[e] = true
	}
	exclude = slices.DeleteFunc(exclude, func(e netip.Prefix) bool {
		if protected[e] {
			c.warn("%s has a route into the tunnel and one around it; it is protected", e)
		}
		return protected[e]
	})
	return sorted(protect), sorted(exclude)
}

// NoBypass protects the prefixes of routes around the tunnel too.
func (c *Call) NoBypass() {
	for i := range c.Routes {
		c.Routes[i].Excluded = false
	}
}

// plain is a word for a person: short, and nothing in it moves a cursor.
func plain(word string) string {
	if len(word) <= 80 && utf8.ValidString(word) && !strings.ContainsFunc(word, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return word
	}
	return fmt.Sprintf("%.80q", word)
}

func sorted(p []netip.Prefix) []netip.Prefix {
	slices.SortFunc(p, plan.ComparePrefix)
	return slices.Compact(p)
}

func numbered(name string, n int) string { return name + strconv.Itoa(n) }

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// parseAddr returns the address without zone or disguise, or the zero Addr.
func parseAddr(s string) netip.Addr {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap().WithZone("")
}

// masked returns the prefix of an IPv4 address and mask; no mask is a host.
func masked(a netip.Addr, mask string) (netip.Prefix, bool) {
	if !a.Is4() {
		return netip.Prefix{}, false
	}
	bits := 32
	if mask != "" {
		m := parseAddr(mask)
		if !m.Is4() {
			return netip.Prefix{}, false
		}
		b := m.As4()
		v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
		for bits = 0; v&(1<<31) != 0; bits++ {
			v <<= 1
		}
		if v != 0 {
			return netip.Prefix{}, false
		}
	}
	return netip.PrefixFrom(a, bits).Masked(), true
}
