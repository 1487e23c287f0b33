package rtnl

import (
	"fmt"
	"net"
	"os"
	"strings"
	"unsafe"

	"github.com/culvert-project/culvert/enforce/plan"
	"golang.org/x/sys/unix"
)

// The kernel goes on caring for the default routes that it makes of router
// advertisements, and knows them by two flags that netlink cannot set. Without them
// it finds such a route neither to renew nor to take away, fails to add its own
// beside it, and then heeds nothing else of the advertisement either: addresses are
// renewed no more, and end hours later (rt6_get_dflt_router, rt6_add_dflt_router in
// net/ipv6/route.c; ndisc_router_discovery in net/ipv6/ndisc.c). And two of them merge
// into one multipath route. The old ioctl can set the flags. It knows no route
// protocol: what it adds is shown as "boot".

// Flags of include/uapi/linux/ipv6_route.h and route.h.
const (
	rtfUp        = 0x00000001
	rtfGateway   = 0x00000002
	rtfDefault   = 0x00010000
	rtfAddrconf  = 0x00040000
	rtfExpires   = 0x00400000
	rtfPrefShift = 27
)

// in6Rtmsg is struct in6_rtmsg.
type in6Rtmsg struct {
	dst, src, gateway [16]byte
	typ               uint32
	dstLen, srcLen    uint16
	metric            uint32
	info              uintptr // ticks of life left
	flags             uint32
	ifindex           int32
}

// ofAdvertisement reports whether a route has the form of a default route that the
// kernel made of a router advertisement. Such always have a lifetime, which others
// hardly ever do.
func ofAdvertisement(r *plan.Route) bool {
	return r.Dst.Addr().Is6() && r.Dst.Bits() == 0 && !r.Src.IsValid() && r.Type == plan.Unicast && !r.Multipath() &&
		r.NexthopID == 0 && r.Expires != 0 && r.Hop.Via.IsLinkLocalUnicast() && !r.PrefSrc.IsValid() &&
		(r.Protocol == unix.RTPROT_RA || r.Protocol == unix.RTPROT_BOOT)
}

// restoreAdvertised gives such a route back where the kernel itself heeds router
// advertisements. Elsewhere a program made the route, and it is given back like any
// other: then done is false.
func (s *System) restoreAdvertised(r *plan.Route, age uint32) (done bool, err error) {
	if !ofAdvertisement(r) || age >= r.Expires {
		return false, nil
	}
	err = s.ns.do(func() error {
		if done = heedsAdvertisements(int(r.Hop.Link)); !done {
			return nil
		}
		return addError(addAdvertised(r, age), r)
	})
	return done, err
}

// heedsAdvertisements reports whether the kernel makes default routes of what routers
// say on the link.
func heedsAdvertisements(index int) bool {
	link, err := net.InterfaceByIndex(index)
	if err != nil {
		return false
	}
	conf := func(name string) string {
		b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + link.Name + "/" + name)
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	accept := conf("accept_ra")
	return conf("accept_ra_defrtr") == "1" && (accept == "2" || accept == "1" && conf("forwarding") == "0")
}

func addAdvertised(r *plan.Route, age uint32) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open IPv6 socket: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	m := in6Rtmsg{
		gateway: r.Hop.Via.WithZone("").As16(), metric: r.Metric, ifindex: int32(r.Hop.Link),
		info:  uintptr(r.Expires-age) * userHZ,
		flags: rtfUp | rtfGateway | rtfDefault | rtfAddrconf | rtfExpires | prefBits(r.Pref)<<rtfPrefShift,
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&m))); errno != 0 {
		return errno
	}
	return nil
}

// prefBits is pref's inverse.
func prefBits(p plan.Pref) uint32 {
	switch p {
	case plan.PrefHigh:
		return 1
	case plan.PrefLow:
		return 3
	}
	return 0
}

// relabel shows a route that was given back so as what it is: the next advertisement
// renews it, and while it is held a new one of the kernel's own is its newer copy.
func relabel(r *plan.Route) {
	if r.Protocol == unix.RTPROT_BOOT && ofAdvertisement(r) {
		r.Protocol, r.Origin = unix.RTPROT_RA, plan.Leased
	}
}
