package enforce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/culvert-project/culvert/enforce/plan"
)

// noInterface tells of the VPNs that have no interface at all: their users name
// the network's.
const noInterface = "; name the VPN's own interface. IPsec without one (policy-based) cannot be enforced by routes: give it an XFRM interface"

// admit finds what is wrong with a session before it is opened: in itself, beside
// the others, and in the table as it is.
// It fills in the servers of a full tunnel where they can be found.
func (e *Enforcer) admit(ctx context.Context, s *Session, links []plan.Link) error {
	if err := e.check(*s, links); err != nil {
		return err
	}
	return e.admitPresent(ctx, s, links)
}

// admitPresent is what of admit asks about the tunnel's interface. One that is
// awaited is asked about when it comes.
func (e *Enforcer) admitPresent(ctx context.Context, s *Session, links []plan.Link) error {
	l := linkNamed(links, s.Tunnel)
	if e.watches(s.Tunnel) { // by this name or another: admitted before, but perhaps for less
		return e.findServers(ctx, s, s.Tunnel)
	}
	if l == nil {
		return nil
	}
	return cmp.Or(e.findServers(ctx, s, l.Name), e.checkUplink(ctx, s, l))
}

// admitAll is admit for sessions that were checked together.
func (e *Enforcer) admitAll(ctx context.Context, all []*session, links []plan.Link) error {
	for _, s := range all {
		if err := e.admitPresent(ctx, &s.Session, links); err != nil {
			return err
		}
	}
	return nil
}

// checkUplink refuses a tunnel that is what the network is reached by.
func (e *Enforcer) checkUplink(ctx context.Context, s *Session, l *plan.Link) (err error) {
	if l.Kind == plan.KindTunnel {
		return nil
	}
	var up plan.Uplink
	var found bool
	for range rounds {
		up, found, err = e.findUplink(ctx, s, l)
		if !errors.Is(err, ErrInterrupted) {
			break
		}
	}
	switch {
	case err != nil:
		return fmt.Errorf("read main table: %w", err)
	case !found:
		return nil
	}
	e.names[l.Index] = l.Name
	by := fmt.Sprintf("it carries the default route (%s)", e.text(&up.Route))
	if up.Server.IsValid() {
		by = fmt.Sprintf("it is the way to the VPN server %s (%s)", up.Server, e.text(&up.Route))
	}
	return &InputError{Input: s.Tunnel, Text: "is no tunnel: " + by + noInterface}
}

func (e *Enforcer) findUplink(ctx context.Context, s *Session, l *plan.Link) (plan.Uplink, bool, error) {
	var servers []netip.Addr
	for _, srv := range s.Servers {
		servers = append(servers, srv.Addr.Addr().Unmap())
	}
	var failed error
	up, found := plan.FindUplink(l, servers, func(yield func(plan.Route) bool) {
		for r, err := range e.sys.Table(ctx) {
			if failed = err; err != nil || !yield(r) {
				return
			}
		}
	})
	return up, found, failed
}

// doubt fails the sessions whose interface turns out to be no tunnel, as when it
// came after its session, or the default route after both. Only an interface of a
// kind that is no tunnel's is doubted: the way to a server may be away for a while.
func (e *Enforcer) doubt(ctx context.Context) {
	for _, s := range e.sessions {
		l := e.link(s.link)
		if s.err != nil || s.loss || l == nil || l.Kind != plan.KindPlain {
			continue
		}
		var input *InputError
		if err := e.checkUplink(ctx, &s.Session, l); errors.As(err, &input) {
			s.err = err
		}
	}
}
