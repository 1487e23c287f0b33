package witness

import (
	"net/netip"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/loader"
)

// Standing is what the policy asks of packets to one address.
type Standing struct {
	Listed bool // false: the policy says nothing, and Class means nothing
	Class  loader.Class
	Prefix netip.Prefix // that gives the class
	Tunnel string       // that packets must take, where the class asks for one
	lines  []loader.Prefix
}

// Classify tells what a protection asks of packets to an address: by the very
// lines that the witness judges packets by, so that both say the same.
func Classify(p enforce.Protection, a netip.Addr) Standing {
	pol, lines := build(p, Rules{}, func(string) bool { return false })
	line, ok := lines.lookup(a)
	if !ok {
		return Standing{}
	}
	return Standing{
		Listed: true, Class: line.Class, Prefix: line.Prefix,
		Tunnel: pol.owners[line.ID].tunnel, lines: lines.lines[line.Prefix],
	}
}

// Passes reports whether a packet of the transport protocol to the port is one
// that may leave outside the tunnel. Port 0 stands for any.
func (s Standing) Passes(proto uint8, port uint16) bool {
	if s.Class != loader.Server {
		return s.Class != loader.Protected && s.Class != loader.Gateway
	}
	for _, l := range s.lines {
		if l.Proto == loader.AnyProto || l.Proto == proto && (l.Port == 0 || l.Port == port) {
			return true
		}
	}
	return false
}
