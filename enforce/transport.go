package enforce

import "strings"

// transport is a protocol that can carry a tunnel.
type transport struct {
	name   string
	number uint8 // of the IP protocol
	ports  bool  // it has ports, and a tunnel is carried to one of them
}

// transports are those that a [Server] may name, besides [AnyTransport].
var transports = []transport{
	{"udp", 17, true}, {"tcp", 6, true}, {"sctp", 132, true},
	{"esp", 50, false}, {"ah", 51, false}, {"gre", 47, false}, {"ipip", 4, false}, {"sit", 41, false}, {"l2tp", 115, false},
}

// AnyTransport says that whatever goes to the server's address is the tunnel's own. It is the last resort.
const AnyTransport = "any"

// Transport returns the IP protocol of a transport by its name, 0 for [AnyTransport], and whether it has ports. It is not
// ok when the name is unknown.
func Transport(name string) (number uint8, ports, ok bool) {
	if name == AnyTransport {
		return 0, false, true
	}
	for _, t := range transports {
		if t.name == name {
			return t.number, t.ports, true
		}
	}
	return 0, false, false
}

// TransportNames are the names that a [Server] may have, in words.
func TransportNames() string {
	var names []string
	for _, t := range transports {
		names = append(names, t.name)
	}
	return strings.Join(names, ", ") + " or " + AnyTransport
}
