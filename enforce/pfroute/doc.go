// Package pfroute is the macOS System: the routing information base by sysctl
// and PF_ROUTE.
//
// # What differs from Linux
//
// macOS has no metrics: a destination has one unscoped entry, and beside it
// scoped ones (RTF_IFSCOPE), which only sockets bound to an interface use. So
//
//   - every foreign route equal to a protected prefix stands in the place of
//     the tunnel's, and conflicts;
//   - RTM_ADD does not replace: it answers EEXIST. RTM_CHANGE replaces gateway
//     and interface but not the flags, so it can neither make a gatewayed route
//     an interface's nor leave our mark. A [System] therefore deletes what is in
//     the way and adds, and only what the same call was told to remove: a
//     route that must be given back has been written down by then;
//   - what cannot stand because another has its place is enforce.ErrNotNow, and
//     enforce.ErrGone when that other is its owner's newer copy.
//
// Scoped, cloned (RTF_WASCLONED) and link-level (RTF_LLINFO) entries, proxies
// and the host's own addresses are no table entries here. A host route
// (RTF_HOST) and one with a full mask are entries of their own to one address.
//
// # Watching
//
// The socket repeats each request as its sender made it, so an addition names
// its interface only sometimes; what is missing is looked up in the table. It
// loses messages without a word when its buffer is full, and routes that go
// with an interface are not announced: interface and address messages, and a
// ticker, say dirty.
//
// # Own routes
//
// culvert's routes carry RTF_PROTO1 and a hop count of [OwnHops]. The flag alone
// would not do: routing daemons set it too. RTF_PROTO3 is the kernel's own
// (RTPRF_OURS, bsd/netinet/in_rmx.c) and RTF_PROTO2 announces proxied
// neighbours (RTF_ANNOUNCE, bsd/netinet6/nd6.h). The kernel keeps a hop count
// and makes no use of it.
//
// Everything but the calls themselves is in files for every system, so that it
// is tested on all of them against a fake kernel that speaks the same bytes.
package pfroute
