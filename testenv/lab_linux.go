package testenv

import (
	"net/netip"
	"time"
)

// Lab is a small internet with a VPN, a café and a rogue in it:
//
//	 client                lan (a switch)                    attacker
//	┌────────────┐        ┌──────────────┐                  ┌──────────────────────┐
//	│ eth0 .20   ├────────┤client    rogue├─────────────────┤ eth0 .66             │
//	│ (tun0)     │        │      br0     │   10.77.0.0/24   │ lo   172.31.1.10     │
//	└────────────┘        │    router    │   fd77::/64      │      fd31:0:0:1::10  │
//	                      └──────┬───────┘                  └──────────────────────┘
//	                             │                           the same addresses as the
//	                      ┌──────┴───────┐                   target's: leaks arrive
//	                      │ lan  .1      │ router
//	                      │ wan  .1      │
//	                      └──────┬───────┘
//	                             │ 203.0.113.0/24, 2001:db8:113::/64
//	                      ┌──────┴───────┐
//	                      │ wan  .10     │ server: OpenVPN on port 1194
//	                      │ tun0 10.88.0.1, fd88::1
//	                      │ site 172.31.0.1/16, fd31::1/48
//	                      └──────┬───────┘
//	                             │ 172.31.0.0/16, fd31::/48 (pushed to clients)
//	                      ┌──────┴───────┐
//	                      │ site 172.31.1.10, fd31:0:0:1::10
//	                      └──────────────┘ target
//
// IPv6 hosts have the same last number as their IPv4 twins (fd77::20,
// fd77::66, fd77::1, 2001:db8:113::10), in decimal digits. The client's default
// routes go to the router; it has its addresses fixed, unless the options say
// otherwise. Target and attacker both answer on [AnswerPort] with their names
// ([NS.Ask]).
//
// The classic attack (TunnelVision): the VPN pushes 172.31.0.0/16, a rogue
// DHCP server on the LAN ([Lab.DHCP]) a route for 172.31.1.0/24 by way of the
// attacker, and the longer prefix wins.
type Lab struct {
	Client, LAN, Attacker, Router, Server, Target *NS

	PKI       *PKI     // nil with NoVPN
	VPNServer *Process // nil with NoVPN
	opts      LabOptions
}

// LabOptions change a [Lab]. The zero value is the lab as drawn.
type LabOptions struct {
	// Client is used as the client's namespace instead of a new one. It must
	// have no eth0, and the lab's eth0 in it goes with the lab.
	Client *NS
	// Unconfigured leaves the client's eth0 up but without addresses and
	// routes, for DHCP and router advertisements. It accepts both in full.
	Unconfigured bool
	// NoVPN leaves out the OpenVPN server.
	NoVPN bool
	// TCP lets OpenVPN use TCP instead of UDP.
	TCP bool
	// Over6 lets OpenVPN use the server's IPv6 address.
	Over6 bool
	// Push replaces what the server pushes; nil pushes the routes of the
	// site. A full tunnel is {"redirect-gateway def1 ipv6"}.
	Push []string
	// Config holds more lines for the server's configuration.
	Config []string
}

// AnswerPort is where target and attacker answer with their names, by TCP
// and UDP.
const AnswerPort = 7

// Addresses of a [Lab]; the …6 are IPv6.
var (
	ClientAddr    = netip.MustParseAddr("10.77.0.20")
	ClientAddr6   = netip.MustParseAddr("fd77::20")
	AttackerAddr  = netip.MustParseAddr("10.77.0.66")
	AttackerAddr6 = netip.MustParseAddr("fd77::66")
	RouterAddr    = netip.MustParseAddr("10.77.0.1")
	RouterAddr6   = netip.MustParseAddr("fd77::1")
	ServerAddr    = netip.MustParseAddr("203.0.113.10")
	ServerAddr6   = netip.MustParseAddr("2001:db8:113::10")
	TargetAddr    = netip.MustParseAddr("172.31.1.10")
	TargetAddr6   = netip.MustParseAddr("fd31:0:0:1::10")

	SiteNet    = netip.MustParsePrefix("172.31.0.0/16") // behind the VPN
	SiteNet6   = netip.MustParsePrefix("fd31::/48")
	AttackNet  = netip.MustParsePrefix("172.31.1.0/24") // the more specific lie
	AttackNet6 = netip.MustParsePrefix("fd31:0:0:1::/64")
)

// NewLab builds a lab and starts its OpenVPN server. All of it goes at the
// end of the test.
func NewLab(t TB, opts LabOptions) *Lab {
	t.Helper()
	Require(t, Root, IPRoute)
	l := &Lab{
		Client: opts.Client, LAN: Namespace(t, "lan"), Attacker: Namespace(t, "attacker"),
		Router: Namespace(t, "router"), Server: Namespace(t, "server"), Target: Namespace(t, "target"),
		opts: opts,
	}
	if l.Client == nil {
		l.Client = Namespace(t, "client")
	}
	l.cable(t)
	l.route(t)
	l.answer(t)
	if !opts.NoVPN {
		l.serve(t)
	}
	return l
}

// cable joins the namespaces.
func (l *Lab) cable(t TB) {
	t.Helper()
	l.LAN.Bridge(t, "br0")
	client := End{NS: l.Client, Name: "eth0", Addrs: Prefixes("10.77.0.20/24", "fd77::20/64")}
	if l.opts.Unconfigured {
		client.Addrs = nil
	}
	Veth(t, client, End{NS: l.LAN, Name: "client", Bridge: "br0"})
	Veth(t, End{NS: l.Attacker, Name: "eth0", Addrs: Prefixes("10.77.0.66/24", "fd77::66/64")},
		End{NS: l.LAN, Name: "rogue", Bridge: "br0"})
	Veth(t, End{NS: l.Router, Name: "lan", Addrs: Prefixes("10.77.0.1/24", "fd77::1/64")},
		End{NS: l.LAN, Name: "router", Bridge: "br0"})
	Veth(t, End{NS: l.Router, Name: "wan", Addrs: Prefixes("203.0.113.1/24", "2001:db8:113::1/64")},
		End{NS: l.Server, Name: "wan", Addrs: Prefixes("203.0.113.10/24", "2001:db8:113::10/64")})
	Veth(t, End{NS: l.Server, Name: "site", Addrs: Prefixes("172.31.0.1/16", "fd31::1/48")},
		End{NS: l.Target, Name: "site", Addrs: Prefixes("172.31.1.10/16", "fd31:0:0:1::10/48")})
	l.Attacker.AddAddr(t, "lo", Prefixes("172.31.1.10/32", "fd31:0:0:1::10/128")...)
}

// route makes routers and default routes.
func (l *Lab) route(t TB) {
	t.Helper()
	l.Router.Forward(t)
	l.Server.Forward(t)
	defaultVia(t, l.Attacker, RouterAddr, RouterAddr6)
	defaultVia(t, l.Server, netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:113::1"))
	defaultVia(t, l.Target, netip.MustParseAddr("172.31.0.1"), netip.MustParseAddr("fd31::1"))
	if l.opts.Unconfigured {
		l.Client.AcceptRA(t, "eth0")
		return
	}
	defaultVia(t, l.Client, RouterAddr, RouterAddr6)
}

func defaultVia(t TB, n *NS, routers ...netip.Addr) {
	t.Helper()
	for _, r := range routers {
		n.IP(t, "route add default via", r.String()) // ip sees the family
	}
}

// answer lets target and attacker say who they are, on all addresses.
func (l *Lab) answer(t TB) {
	t.Helper()
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		at := netip.AddrPortFrom(any, AnswerPort)
		Serve(t, l.Target, at, "target")
		Serve(t, l.Attacker, at, "attacker")
	}
}

// serve starts the OpenVPN server.
func (l *Lab) serve(t TB) {
	t.Helper()
	Require(t, OpenVPN, TUN)
	l.PKI = NewPKI(t)
	push := l.opts.Push
	if push == nil {
		push = []string{PushRoute(SiteNet), PushRoute(SiteNet6)}
	}
	l.VPNServer = OpenVPNServer{
		NS: l.Server, Listen: l.vpnAddr(), TCP: l.opts.TCP, PKI: l.PKI,
		Pool: netip.MustParsePrefix("10.88.0.0/24"), Pool6: netip.MustParsePrefix("fd88::/64"),
		Push: push, Config: append([]string{"keepalive 1 5"}, l.opts.Config...),
	}.Start(t)
}

func (l *Lab) vpnAddr() netip.AddrPort {
	if l.opts.Over6 {
		return netip.AddrPortFrom(ServerAddr6, 1194)
	}
	return netip.AddrPortFrom(ServerAddr, 1194)
}

// VPNClient is the configuration of an OpenVPN client for this lab, to be
// changed and started.
func (l *Lab) VPNClient() OpenVPNClient {
	return OpenVPNClient{NS: l.Client, Server: l.vpnAddr(), TCP: l.opts.TCP, PKI: l.PKI}
}

// Connect starts the client of [Lab.VPNClient] and waits until it is up.
func (l *Lab) Connect(t TB) *VPN {
	t.Helper()
	v := l.VPNClient().Start(t)
	v.WaitUp(t, 1)
	return v
}

// DHCP starts the attacker's DHCP server: addresses from 10.77.0.100 on, the
// router as default router, a lease of two minutes, and attacks as classless
// static routes (with the default route among them, as option 121 replaces
// option 3). Without attacks it is an honest server.
func (l *Lab) DHCP(t TB, attacks ...Static) *Process {
	t.Helper()
	Require(t, Dnsmasq)
	s := DHCPServer{
		NS: l.Attacker, Device: "eth0", Lease: 2 * time.Minute, Router: RouterAddr,
		First: netip.MustParseAddr("10.77.0.100"), Last: netip.MustParseAddr("10.77.0.150"),
	}
	if len(attacks) > 0 {
		s.Static = append(attacks, Static{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: RouterAddr})
	}
	return s.Start(t)
}

// TunnelVision is the attack of CVE-2024-3661 for [Lab.DHCP]: AttackNet by way of
// the attacker.
func TunnelVision() Static { return Static{Dst: AttackNet, Via: AttackerAddr} }

// Advertise is the attacker's router advertisement that does in IPv6 what
// [TunnelVision] does in IPv4. The client heeds it if it was told to
// ([NS.AcceptRA]).
func (l *Lab) Advertise() RouterAdvert {
	return RouterAdvert{
		NS: l.Attacker, Device: "eth0",
		Routes: []RARoute{{Prefix: AttackNet6, Lifetime: time.Hour, Preference: High}},
	}
}

// Leaks counts what leaves the client by its eth0 and matches the filter,
// whoever on the LAN it is meant for.
func (l *Lab) Leaks(t TB, filter Filter) *Counter {
	t.Helper()
	return Capture(t, l.LAN, "client", filter)
}

// Stolen counts what arrives at the attacker and matches the filter.
func (l *Lab) Stolen(t TB, filter Filter) *Counter {
	t.Helper()
	return Capture(t, l.Attacker, "eth0", filter)
}

// Arrived counts what arrives at the target through the VPN and matches the
// filter.
func (l *Lab) Arrived(t TB, filter Filter) *Counter {
	t.Helper()
	return Capture(t, l.Target, "site", filter)
}

// Stub is the least that an attack on routes needs: a client with a LAN on
// eth0 and a tunnel that is a [Tun].
//
//	 client                                 lan
//	┌──────────────────────────────┐       ┌───────────────────────────────┐
//	│ eth0 10.77.0.20, fd77::20    ├───────┤ eth0 10.77.0.1,  fd77::1      │
//	│                              │       │      10.77.0.66, fd77::66     │
//	│ tun0 10.88.0.2,  fd88::2     │       └───────────────────────────────┘
//	└──────────────────────────────┘
//
// The client's default routes go to 10.77.0.1 and fd77::1. No route goes into
// the tunnel but those of its own networks, 10.88.0.0/24 and fd88::/64.
type Stub struct {
	Client, LAN *NS
	Tun         *Tun
}

// NewStub builds a stub that goes at the end of the test.
func NewStub(t TB) *Stub {
	t.Helper()
	Require(t, Root, TUN, IPRoute)
	s := &Stub{Client: Namespace(t, "client"), LAN: Namespace(t, "lan")}
	Veth(t, End{NS: s.Client, Name: "eth0", Addrs: Prefixes("10.77.0.20/24", "fd77::20/64")},
		End{NS: s.LAN, Name: "eth0", Addrs: Prefixes("10.77.0.1/24", "10.77.0.66/24", "fd77::1/64", "fd77::66/64")})
	s.Client.IP(t, "route add default via 10.77.0.1")
	s.Client.IP(t, "-6 route add default via fd77::1")
	s.Tun = OpenTun(t, s.Client, "tun0", Prefixes("10.88.0.2/24", "fd88::2/64")...)
	return s
}

// Leaks counts what arrives at the LAN from the client and matches the filter.
func (s *Stub) Leaks(t TB, filter Filter) *Counter {
	t.Helper()
	return Capture(t, s.LAN, "eth0", filter)
}
