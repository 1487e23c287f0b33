package witness

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/loader"
)

// The ports that name servers are asked on: plainly, and by TLS or QUIC.
const (
	portDNS  = 53
	portDNSS = 853
)

// The bounds of what is kept of name servers: whoever sends chooses the address.
const (
	resolversKept  = 16
	resolversShown = 3
	resolverFor    = time.Hour // since it was asked last
)

// resolvers are the name servers outside the tunnel that were asked.
type resolvers map[netip.Addr]report.Resolver

// note takes in where a packet went. A gateway always finds room: it is the
// resolver of most networks.
func (r resolvers) note(to netip.AddrPort, proto uint8, why loader.Reason, tunnel string, dropped bool, at time.Time) {
	if (proto != protoUDP && proto != protoTCP) || (to.Port() != portDNS && to.Port() != portDNSS) {
		return
	}
	gateway := why == loader.LeakGateway
	if old, ok := r[to.Addr()]; ok && old.Last.After(at) {
		return
	} else if !ok && len(r) >= resolversKept && !r.makeRoom(gateway) {
		return
	}
	r[to.Addr()] = report.Resolver{Address: to.Addr(), Tunnel: tunnel, Gateway: gateway, Dropped: dropped, Last: at}
}

// makeRoom lets go of one that is no gateway, for one that is.
func (r resolvers) makeRoom(gateway bool) bool {
	if !gateway {
		return false
	}
	for a, x := range r {
		if !x.Gateway {
			delete(r, a)
			return true
		}
	}
	return false
}

// shown are those asked lately, gateways first.
func (r resolvers) shown(now time.Time) (out []report.Resolver) {
	for _, x := range r {
		if now.Sub(x.Last) < resolverFor {
			out = append(out, x)
		}
	}
	first := func(x report.Resolver) int {
		if x.Gateway {
			return 0
		}
		return 1
	}
	slices.SortFunc(out, func(a, b report.Resolver) int {
		return cmp.Or(cmp.Compare(first(a), first(b)), a.Address.Compare(b.Address))
	})
	return out[:min(len(out), resolversShown)]
}

// exempt adds up what a rule let pass, by interface and reason. An interface
// that sits on others is left out: they count it as well.
func (l *ledger) exempt(counters []loader.Counter) (out []report.Exempt) {
	at := map[report.Exempt]int{}
	for _, c := range counters {
		if c.Reason.Leak() || c.Upper {
			continue
		}
		key := report.Exempt{Interface: l.deviceName(c.Interface), Reason: c.Reason.String()}
		i, ok := at[key]
		if !ok {
			i = len(out)
			at[key] = i
			out = append(out, key)
		}
		out[i].Packets += c.Packets
		out[i].Bytes += c.Bytes
	}
	slices.SortFunc(out, func(a, b report.Exempt) int {
		return cmp.Or(cmp.Compare(a.Interface, b.Interface), cmp.Compare(a.Reason, b.Reason))
	})
	return out
}
