package openvpn

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/culvert-project/culvert/enforce"
)

// remote is one of the servers that OpenVPN is configured with.
type remote struct {
	name  string
	port  uint16
	proto string // "udp" or "tcp"
}

// readServers finds where the tunnel's own transport goes: the peer of the
// connection when it is known, and every other server that is configured, so that
// the client can go on to it. Those that are names are for the caller to resolve.
func (c *Call) readServers(env func(string) string) {
	remotes := c.readRemotes(env)
	peer := parseAddr(env("trusted_ip"))
	if !peer.IsValid() {
		peer = parseAddr(env("trusted_ip6"))
	}
	port := parsePort(env("trusted_port"))
	named := false
	for _, r := range remotes {
		a := parseAddr(r.name)
		if !a.IsValid() {
			c.addName(r)
			continue
		}
		c.addServer(a, r.port, r.proto)
		named = named || a == peer && (port == 0 || port == r.port)
	}
	if !named {
		c.addPeer(peer, port, remotes)
	}
}

// maxNames bounds how many names are resolved, and maxAddrs what each may give.
const (
	maxNames = 16
	maxAddrs = 8
)

// addName notes a name among the servers, once.
func (c *Call) addName(r remote) {
	if !slices.Contains(c.names, r.name) {
		if len(c.names) == maxNames {
			c.warn("server %s is one of more than %d names; it is not resolved", plain(r.name), maxNames)
			return
		}
		c.names = append(c.names, r.name)
	}
	c.named = append(c.named, r)
}

// Names returns the servers that OpenVPN knows by name, each once.
func (c *Call) Names() []string { return slices.Clone(c.names) }

// Resolved takes the addresses of a server that OpenVPN knows by name. Nobody vouches
// for them: one inside a prefix that is routed into the tunnel by itself could be a
// protected host, for which somebody wants a way around the tunnel. It is left out.
func (c *Call) Resolved(name string, addrs []netip.Addr) {
	for _, a := range addrs[:min(len(addrs), maxAddrs)] {
		a = a.Unmap().WithZone("")
		if p, inside := c.protects(a); inside && !c.isServer(a) {
			c.warn("server %s resolves to %s, inside %s, which is routed into the tunnel; it is no server", plain(name), a, p)
			continue
		}
		for _, r := range c.named {
			if r.name == name {
				c.addServer(a, r.port, r.proto)
			}
		}
	}
}

// Unresolved says that the addresses of a server are not known.
func (c *Call) Unresolved(name string, err error) {
	c.warn("server %s is not resolved (%.200v): should OpenVPN go on to it, its way there is not kept", plain(name), err)
}

// Known takes servers that an earlier script of the same connection found by the
// names: by route-up the tunnel may have taken the resolver.
func (c *Call) Known(servers []enforce.Server) {
	for _, s := range servers {
		if _, inside := c.protects(s.Addr.Addr()); inside {
			continue
		}
		for _, r := range c.named {
			if s.Addr.Port() == r.port && s.Proto == r.proto {
				c.addServer(s.Addr.Addr(), r.port, r.proto)
			}
		}
	}
}

// protects returns the longest prefix of a route into the tunnel that holds the
// address and is not half of all addresses or more.
func (c *Call) protects(a netip.Addr) (longest netip.Prefix, ok bool) {
	for _, r := range c.Routes {
		if !r.Excluded && r.Prefix.Bits() > 1 && r.Prefix.Contains(a) && r.Prefix.Bits() > longest.Bits() {
			longest, ok = r.Prefix, true
		}
	}
	return longest, ok
}

// addPeer adds a peer that no remote names by address: whatever the remotes
// say of port and protocol is let through.
func (c *Call) addPeer(peer netip.Addr, port uint16, remotes []remote) {
	for _, r := range remotes {
		if port != 0 {
			r.port = port
		}
		c.addServer(peer, r.port, r.proto)
	}
	if len(remotes) == 0 {
		c.addServer(peer, port, "udp")
		c.addServer(peer, port, "tcp")
	}
}

// addServer adds a server, once. A peer that is not known is none.
func (c *Call) addServer(a netip.Addr, port uint16, proto string) {
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || port == 0 {
		return
	}
	s := enforce.Server{Addr: netip.AddrPortFrom(a, port), Proto: proto}
	if !slices.Contains(c.servers, s) {
		c.servers = append(c.servers, s)
	}
}

func (c *Call) isServer(a netip.Addr) bool {
	return slices.ContainsFunc(c.servers, func(s enforce.Server) bool { return s.Addr.Addr() == a })
}

// readRemotes reads the configured servers up to the first gap.
func (c *Call) readRemotes(env func(string) string) []remote {
	var out []remote
	for n := 1; n <= maxRemotes; n++ {
		name := env(numbered("remote_", n))
		if name == "" {
			break
		}
		word := env(numbered("proto_", n))
		proto := transport(word)
		if proto == "" {
			c.warn("remote %s has the protocol %.40q, which is not understood", plain(name), word)
			continue
		}
		out = append(out, remote{name, parsePort(env(numbered("remote_port_", n))), proto})
	}
	return out
}

// transport returns the plain protocol for OpenVPN's many names.
func transport(proto string) string {
	switch {
	case strings.HasPrefix(proto, "udp"):
		return "udp"
	case strings.HasPrefix(proto, "tcp"):
		return "tcp"
	}
	return ""
}

func parsePort(s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}
