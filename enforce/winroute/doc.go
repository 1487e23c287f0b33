// Package winroute is the Windows System: the IP Helper API's route table and
// its notifications.
//
// # What differs from Linux
//
// A route is known by its destination, interface and next hop; routes to one
// destination stand side by side when these differ. Which of them wins is
// decided by the sum of the interface's metric and the route's own: that sum is
// the Metric of a plan.Route here, and it moves when Windows changes an
// interface's automatic metric. There are no route types, source prefixes,
// preferred sources or nexthop objects.
//
// The routes to the host's own addresses and to their subnets' broadcast
// addresses, which Windows keeps on each interface, are no table entries here
// and are left alone, as are multicast and loopback (plan's ignored ranges).
//
// # Watching
//
// A notification only names the route: it is looked up when it is read, and one
// that was gone by then is not told. Deletions are told with what was last seen
// of the route. What happens to interfaces and addresses says dirty, and so does
// a ticker.
//
// # Own routes
//
// culvert's routes carry the protocol [OwnProtocol], MIB_IPPROTO_BBN: one of the
// values documented for MIB_IPFORWARD_ROW2, of a routing protocol that died with
// the ARPANET. Whether every Windows accepts it could not be tried. Where it is
// refused as an invalid parameter the route is made with MIB_IPPROTO_NETMGMT and
// remembered by this process: after a crash it is then taken for somebody
// else's, leads into the tunnel and goes with the tunnel's interface.
//
// Everything but the calls themselves is in files for every system, so that it
// is tested on all of them against a fake IP Helper API with the same bytes.
package winroute
