// Package rtnl is the Linux System: the main routing table by RTNETLINK.
//
// One multicast socket hears of routes, links, addresses, rules and nexthop
// objects. It is subscribed before the first dump, its buffer holds a million
// announcements, and every receive error makes the table dirty. Routes are
// deleted by naming every attribute, and held and replayed as the kernel's own
// bytes.
//
// A [System] belongs to the network namespace of the thread that made it.
package rtnl

// OwnProtocol is the route protocol number that marks culvert's own routes
// (see rt_protos.d; numbers above RTPROT_STATIC are free for routing daemons,
// include/uapi/linux/rtnetlink.h).
const OwnProtocol = 117
