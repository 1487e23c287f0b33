package enforce

import (
	"context"
	"fmt"
	"slices"

	"github.com/culvert-project/culvert/enforce/plan"
)

// Endpoints says where a tunnel's own settings let its packets go, by the name of
// its interface. It returns none when the interface is not of a kind that tells,
// and must return soon: the Enforcer waits for it, but its edge path does not.
type Endpoints func(ctx context.Context, tunnel string) ([]Server, error)

// needsServer tells of a full tunnel whose server nobody knows. Nothing is guessed
// from host routes: anybody on the LAN can have one added by DHCP.
const needsServer = "is a full tunnel, and needs --server ADDR:PORT/udp: without it the tunnel's own packets are leaks, and the way to the server is a conflict like any other"

// isFull reports whether a session protects all of a family.
func isFull(s *Session, f plan.Family) bool { return plan.Full(f, s.Protect, s.Exclude) }

// findServers fills in the servers of a full tunnel that names none, from the
// settings of its interface. It is an error when there are none to be found.
func (e *Enforcer) findServers(ctx context.Context, s *Session, device string) error {
	if len(s.Servers) > 0 && !s.ServersFound || !isFull(s, plan.IPv4) && !isFull(s, plan.IPv6) {
		return nil
	}
	why := ""
	if e.opt.Endpoints != nil {
		found, err := e.opt.Endpoints(ctx, device)
		if err != nil {
			why = fmt.Sprintf(" (its own settings cannot be read: %v)", err)
		}
		if len(found) > 0 {
			s.Servers, s.ServersFound = found, true
		}
	}
	if len(s.Servers) == 0 {
		return &InputError{Input: s.Tunnel, Text: needsServer + why}
	}
	return nil
}

// completeServers asks for the servers of sessions whose interface has just come,
// or that still have none: WireGuard's interface is there before its peers are. A
// session without any has failed, and protects as far as it goes.
func (e *Enforcer) completeServers(ctx context.Context) {
	for _, s := range e.sessions {
		known := len(s.Servers) > 0 && !(s.ServersFound && s.unasked)
		if s.link == 0 || s.loss || known || s.isSplit() {
			continue
		}
		before := s.Servers
		if err := e.findServers(ctx, &s.Session, s.id.Name); err != nil {
			s.err = err
		}
		if s.unasked = false; !slices.Equal(before, s.Servers) {
			e.log.info("servers found in the tunnel's own settings", "tunnel", s.Tunnel, "servers", s.Servers)
			e.unkept = true
		}
	}
}

// wish is a session as it was asked for, with the servers that were found for it: a
// restart may get no answer.
func (s *session) wish() Session {
	out := s.asked
	if s.ServersFound && len(out.Servers) == 0 {
		out.Servers, out.ServersFound = s.Servers, true
	}
	return out
}
