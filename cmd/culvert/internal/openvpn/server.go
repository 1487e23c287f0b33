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
// connection when it is known, else every configured server that is an address.
func (c *Call) readServers(env func(string) string) {
	remotes := c.readRemotes(env)
	peer := parseAddr(env("trusted_ip"))
	if !peer.IsValid() {
		peer = parseAddr(env("trusted_ip6"))
	}
	port := parsePort(env("trusted_port"))
	for _, r := range remotes {
		a := parseAddr(r.name)
		switch {
		case !peer.IsValid():
			c.addServer(a, r.port, r.proto)
		case a == peer && (port == 0 || port == r.port):
			c.addServer(a, r.port, r.proto)
		}
	}
	if peer.IsValid() && len(c.servers) == 0 {
		c.addPeer(peer, port, remotes)
	}
	if len(c.servers) == 0 {
		c.warn("the VPN server's address is not known: trusted_ip is not set and remote is a name")
	}
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

func (c *Call) addServer(a netip.Addr, port uint16, proto string) {
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || port == 0 || proto == "" {
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
