//go:build linux

package promise

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
)

// shapes are all kinds of routes that iproute2 can make, in one table.
var shapes = strings.Split(strings.TrimSpace(`
nexthop add id 1 via 192.0.2.254 dev eth0
nexthop add id 2 via 10.0.0.30 dev eth1
nexthop add id 3 group 1,3/2,5
nexthop add id 4 via fd01::1 dev eth0
nexthop add id 5 via fe80::4 dev eth2
nexthop add id 6 group 4/5,2
nexthop add id 7 blackhole
nexthop add id 8 via 203.0.113.9 dev eth0 onlink
nexthop add id 10 dev eth2
nexthop add id 11 group 1,1/2,250
nexthop add id 12 group 1/2 type resilient buckets 32
nexthop add id 13 encap mpls 16 via 192.0.2.254 dev eth0
route add 0.0.0.0/0 via 192.0.2.254 dev eth0 proto dhcp src 192.0.2.10 metric 100
route add ::/0 via fe80::fe dev eth0 metric 1024 expires 1800 pref high proto ra
route add 172.20.0.0/24 via 192.0.2.254 dev eth0 mtu lock 1300 advmss 1200 hoplimit 5 initcwnd 20 initrwnd 30
route add 172.20.1.0/24 via 192.0.2.254 dev eth0 rtt 20ms rttvar 5ms rto_min 200ms ssthresh 7 cwnd lock 9 window 1000
route add 172.20.2.0/24 via 192.0.2.254 dev eth0 congctl reno features ecn quickack 1 fastopen_no_cookie 1
route add 172.20.3.0/24 via 203.0.113.9 dev eth0 onlink
route add 172.20.4.0/24 via inet6 fd01::1 dev eth0
route add 172.20.5.0/24 dev eth0 scope link src 192.0.2.10 proto dhcp metric 77
route add 172.20.6.0/24 dev eth0 scope host
route add 172.20.7.0/24 nexthop via 192.0.2.254 dev eth0 weight 3 nexthop via 10.0.0.30 dev eth1 weight 7
route add 172.20.8.0/24 via 192.0.2.254 dev eth0 realm 5/6
route add 172.20.9.0/24 via 192.0.2.254 dev eth0 tos 0x10 metric 3
route add local 172.20.10.1 dev eth0 table main
route add broadcast 172.20.11.255 dev eth0 table main
route add multicast 172.20.12.0/24 dev eth0
route add nat 172.20.12.0/24 dev eth0
route add throw 172.20.13.0/24 metric 4
route add prohibit 172.20.14.0/24
route add unreachable 172.20.15.0/24 proto static
route add blackhole 172.20.16.0/24 tos 0x8
route add 172.20.17.0/24 nexthop via 203.0.113.7 dev eth0 onlink weight 2 nexthop via inet6 fd01::1 dev eth0
route add 172.20.18.0/24 via 192.0.2.254 dev eth0 ttl-propagate enabled
route add 172.20.20.0/24 encap ip id 7 dst 192.0.2.1 ttl 3 tos 4 dev eth0
route add 172.20.21.0/24 encap ip6 id 7 dst fd88::1 dev eth0
route add 172.20.22.0/24 encap mpls 100/200 via 192.0.2.254 dev eth0
route add 172.20.23.0/24 nexthop encap ip id 9 dst 192.0.2.1 via 192.0.2.254 dev eth0 nexthop via 10.0.0.30 dev eth1
route add 172.20.24.0/24 nhid 1
route add 172.20.25.0/24 nhid 3 metric 5
route add 172.20.26.0/24 nhid 7
route add 172.20.27.0/24 nhid 8 tos 0x10
route add 172.20.28.0/24 nhid 10 src 192.0.2.10
route add 172.20.29.0/24 nhid 4
route add 172.20.30.0/24 dev tun1 proto bird
route add 172.20.31.0/24 dev lo scope host
route add 172.20.50.0/24 via 192.0.2.254 dev eth0 mtu lock 1280 window 4096 reordering 5
route add 172.20.51.0/24 via inet6 fe80::fe dev eth0 onlink
route add 172.20.52.0/24 nexthop via inet6 fe80::fe dev eth0 weight 256 nexthop via inet6 fe80::4 dev eth2 weight 1
route add 172.20.53.0/24 nexthop via 192.0.2.254 dev eth0 realm 7 weight 2 nexthop via 10.0.0.30 dev eth1 realm 8/9
route add 172.20.54.0/24 mtu 1400 tos 0x10 nexthop via 192.0.2.254 dev eth0 nexthop dev eth1
route add 172.20.55.0/24 dev eth0 scope 100 metric 4294967295 proto 255
route add 172.20.56.0/24 dev eth0 scope site src 192.0.2.10
route add 172.20.57.0/24 via 192.0.2.254 dev eth0 tos 0xf8 src 10.0.0.29 proto kernel metric 11
route add 172.20.58.1 via 192.0.2.254 dev eth0 congctl lock reno
route add 172.20.59.0/24 encap seg6 mode encap segs fd88::1 dev eth0
route add 172.20.60.0/24 encap mpls 16/17/18 ttl 9 via 192.0.2.254 dev eth0
route add 172.20.63.0/24 nhid 11
route add 172.20.64.0/24 nhid 12
route add 172.20.65.0/24 nhid 13
route add 172.20.66.0/24 nhid 5 metric 8
route add throw 172.20.67.0/24 tos 0x10 src 192.0.2.10
route add unreachable 172.20.68.0/24 metric 9 mtu 1300
route add 172.20.69.0/24 metric 20 proto dhcp nexthop via 203.0.113.8 dev eth0 onlink nexthop via 192.0.2.254 dev eth0
route append 172.20.40.0/24 via 192.0.2.1 dev eth0
route append 172.20.40.0/24 via 192.0.2.2 dev eth0
route prepend 172.20.40.0/24 via 192.0.2.3 dev eth0
route prepend 172.20.40.0/24 dev eth2 proto 44
route append throw 172.20.40.0/24
route append 172.20.40.0/24 via 192.0.2.4 dev eth0 metric 9
route append 172.20.40.0/24 via 192.0.2.4 dev eth0 tos 0x10
route append 172.20.41.0/24 dev eth0 src 192.0.2.10
route append 172.20.41.0/24 dev eth0
route append 172.20.41.0/24 dev eth0 mtu 1300
route append 172.20.41.0/24 dev eth0 mtu 1400
route append 0.0.0.0/1 dev eth2
route append 128.0.0.0/1 via 192.0.2.254 dev eth0 metric 900
route add fd20:0::/64 via fd01::1 dev eth0 metric 512 mtu 1400 advmss 1300 pref high
route add fd20:1::/64 dev eth0 src fd01::10 proto static
route add fd20:2::/64 via fd01::1 dev eth0 expires 3000
route add fd20:3::/64 nexthop via fd01::1 dev eth0 weight 2 nexthop via fd00::1e dev eth1 weight 5
route add fd20:4::/64 from fd99::/16 via fd01::1 dev eth0
route add fd20:5::/64 via fd77::1 dev eth0 onlink
route add fd20:6::/64 encap seg6 mode encap segs fd88::1,fd88::2 dev eth0
route add fd20:6:1::/64 encap ip6 id 3 dst fd88::1 hoplimit 4 dev eth0
route add fd20:6:2::/64 encap mpls 300 via fd01::1 dev eth0
route add blackhole fd20:7::/64
route add unreachable fd20:8::/64 metric 7
route add prohibit fd20:9::/64
route add throw fd20:a::/64
route add fd20:b::/64 via fe80::1 dev eth0 pref low hoplimit 3
route add local fd20:c::1 dev eth0 table main
route add anycast fd20:d::1 dev eth0 table main
route add multicast fd20:f::/64 dev eth0
route add fd20:10::/64 nhid 4
route add fd20:11::/64 nhid 6 metric 7
route add fd20:12::/64 nhid 5 src fd01::10
route add fd20:30::/64 via fd01::1 dev eth0 mtu lock 1300 hoplimit 5 initcwnd 20 initrwnd 30
route add fd20:31::/64 via fd01::1 dev eth0 congctl reno features ecn quickack 1 fastopen_no_cookie 1 rto_min 200ms
route add fd20:32::/64 from fd98::/32 nexthop via fd01::1 dev eth0 nexthop via fd00::1e dev eth1
route add fd20:33::/64 from fd97::1 dev eth0 metric 4294967295 proto 255
route add throw fd20:34::/64 from fd96::/16 metric 9
route add unreachable fd20:35::/64 from fd96::/16
route add fd20:36::/64 nexthop via fe80::1 dev eth0 weight 256 nexthop via fe80::4 dev eth2 weight 1
route add fd20:37::/64 metric 12 src fd01::10 nexthop via fd77::1 dev eth0 onlink nexthop via fd01::1 dev eth0
route add fd20:38::/64 encap seg6 mode inline segs fd88::1,fd88::2 dev eth0
route add fd20:39::/64 encap seg6 mode l2encap segs fd88::1 dev eth0
route add fd20:3a::/64 encap seg6local action End.X nh6 fd01::1 dev eth0
route add fd20:3b::/64 encap mpls 16/17 ttl 9 via fd01::1 dev eth0
route add fd20:3d::/64 dev eth2 expires 3000 pref low mtu 1400 src fd17::1
route add fd20:3e::1 via fe80::fe dev eth0 proto ra pref high expires 1800 metric 33
route add fd20:3f::/64 dev lo
route append fd20:20::/64 dev eth0
route append fd20:20::/64 dev eth1
route append fd20:20::/64 dev eth2 metric 7
route append fd20:21::/64 via fd01::1 dev eth0
route append fd20:21::/64 via fd01::2 dev eth0
route append fd20:21::/64 via fd00::1e dev eth1 proto 44
`), "\n")

// vpn are the tunnel's own routes for everything.
var vpn = []string{
	"route append 0.0.0.0/1 via 10.8.0.1 dev tun0 metric 5",
	"route append 128.0.0.0/1 via 10.8.0.1 dev tun0",
	"route append ::/1 dev tun0 metric 1024",
	"route append 8000::/1 dev tun0 metric 1024",
}

var everything = enforce.Session{
	Tunnel: "tun0",
	Protect: []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/1"),
		netip.MustParsePrefix("::/1"), netip.MustParsePrefix("8000::/1"),
	},
	Servers: []enforce.Server{{Addr: netip.MustParseAddrPort("203.0.113.5:1194"), Proto: "udp"}},
}

// fill makes the table of all shapes and returns its text. A kernel may lack a
// few (encapsulations); fewer than most of them prove nothing.
func (l *lab) fill(t *testing.T) string {
	t.Helper()
	l.ns.Sysctl(t, "net.ipv4.nexthop_compat_mode", "0")
	l.reset(t, append(shapes, vpn...))
	before := l.table(t)
	if n := len(entries(before)); n < len(shapes)-10 {
		t.Fatalf("only %d routes of %d lines:\n%s", n, len(shapes), before)
	}
	return before
}
