package loader

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// wrapping is what is known of routes that wrap their packets in others (lightweight tunnels): those are judged by the
// outer address, and where they end is within.
type wrapping struct {
	told []string
	at   time.Time
}

// The bounds of a look at the routes: a table may have a million, and hardly any such.
const (
	wrappingEvery = 12 // rechecks
	wrappingLook  = 20000
	wrappingTold  = 8
)

var wrappers = map[int]string{
	nl.LWTUNNEL_ENCAP_MPLS: "MPLS", nl.LWTUNNEL_ENCAP_SEG6: "seg6", nl.LWTUNNEL_ENCAP_SEG6_LOCAL: "seg6local",
	nl.LWTUNNEL_ENCAP_BPF: "BPF",
}

// look names the first few, by a look at the routes that is not made at each recheck.
func (x *wrapping) look(recheck time.Duration) []string {
	if now := time.Now(); now.Sub(x.at) >= wrappingEvery*recheck {
		x.at, x.told = now, nil
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			x.told = append(x.told, wrappingRoutes(family)...)
		}
	}
	return x.told
}

// wrappingRoutes reads all tables of a family, as far as the bounds go.
func wrappingRoutes(family int) (list []string) {
	seen := 0
	all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	err := netlink.RouteListFilteredIter(family, all, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
		seen++
		if kind := wrapperOf(&r); kind != "" {
			list = append(list, fmt.Sprintf("route %s (%s) wraps or rewrites its packets: the witness sees what they become, not where they end",
				routeName(&r), kind))
		}
		return seen < wrappingLook && len(list) < wrappingTold
	})
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil // the next look will do
	}
	return list
}

// wrapperOf names how a route wraps, "" when it does not.
func wrapperOf(r *netlink.Route) string {
	if r.Encap != nil {
		return wrappers[r.Encap.Type()]
	}
	for _, hop := range r.MultiPath {
		if hop.Encap != nil {
			return wrappers[hop.Encap.Type()]
		}
	}
	return ""
}

func routeName(r *netlink.Route) string {
	if r.Dst == nil {
		return "default"
	}
	return r.Dst.String()
}
