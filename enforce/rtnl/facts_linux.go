package rtnl

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func dialNetlink() (*netlink.Conn, error) {
	return netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Strict: true})
}

// dial opens a socket for the requests that are not on any fast path.
func (s *System) dial() (c *netlink.Conn, err error) {
	err = s.ns.do(func() error {
		if c, err = s.ns.dial(); err == nil {
			err = c.SetDeadline(time.Now().Add(s.ns.patience)) // of all that is asked on it
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return c, nil
}

// Facts implements enforce.System.
func (s *System) Facts(ctx context.Context) (enforce.Facts, error) {
	c, err := s.dial()
	if err != nil {
		return enforce.Facts{}, err
	}
	defer c.Close()
	var f enforce.Facts
	var vrfs []string
	if f.Links, vrfs, err = links(c); err != nil {
		return f, err
	}
	rules, err := dumpRules(c)
	if err != nil {
		return f, err
	}
	f.Bypasses = vrfs
	if err := s.otherTables(ctx, &f, rules); err != nil {
		return f, err
	}
	f.Uptime, err = uptime()
	return f, err
}

// uptime is CLOCK_MONOTONIC: it stands still while the machine sleeps, as the jiffies
// do that the kernel counts the lifetimes of routes by.
func uptime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, fmt.Errorf("read uptime: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// request dumps typ with the given fixed header. A dump that was interrupted
// by a change is asked for again.
func request(c *netlink.Conn, typ uint16, header []byte) ([]netlink.Message, error) {
	var msgs []netlink.Message
	var err error
	for range 5 {
		msgs, err = c.Execute(netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request | netlink.Dump},
			Data:   header,
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, errNoAnswer
		case err != nil || !slices.ContainsFunc(msgs, interrupted):
			return msgs, err
		}
	}
	return nil, enforce.ErrInterrupted
}

func interrupted(m netlink.Message) bool { return m.Header.Flags&netlink.DumpInterrupted != 0 }

// links reads the interfaces with their addresses, and names the VRFs.
func links(c *netlink.Conn) ([]plan.Link, []string, error) {
	msgs, err := request(c, unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg))
	if err != nil {
		return nil, nil, fmt.Errorf("dump interfaces: %w", err)
	}
	var out []plan.Link
	var vrfs []string
	at := map[uint32]int{}
	for _, m := range msgs {
		l, ok := parseLink(m.Data)
		if !ok {
			continue
		}
		if l.Type.Kind == "vrf" {
			vrfs = append(vrfs, "interface "+l.Name+" is a VRF: what it binds does not ask main")
		}
		l.Kind = tunnelKind(l.Type.Kind)
		at[l.Index] = len(out)
		out = append(out, l)
	}
	return out, vrfs, addresses(c, out, at)
}

func parseLink(b []byte) (l plan.Link, ok bool) {
	if len(b) < unix.SizeofIfInfomsg {
		return l, false
	}
	l.Index = native.Uint32(b[4:])
	l.Up = native.Uint32(b[8:])&unix.IFF_UP != 0
	l.Type.Frames = native.Uint16(b[2:])
	for b = b[unix.SizeofIfInfomsg:]; len(b) > 0; {
		a, rest, ok := nextAttr(b)
		if !ok {
			return l, false
		}
		switch b = rest; a.typ {
		case unix.IFLA_IFNAME:
			l.Name = cString(a.value)
		case unix.IFLA_ADDRESS:
			l.HW = net.HardwareAddr(a.value).String()
		case unix.IFLA_AF_SPEC:
			l.Mute6 = mute6(a.value)
		case unix.IFLA_LINKINFO:
			l.Type.Kind = linkKind(a.value)
		}
	}
	return l, true
}

// mute6 reads what each family says of an interface. IPv6 says nothing of one that it
// knows nothing of, as when the kernel runs without it.
func mute6(b []byte) bool {
	family, known := attribute(b, unix.AF_INET6)
	conf, _ := attribute(family, unix.IFLA_INET6_CONF)
	return !known || len(conf) >= 4*(devconfDisable+1) && native.Uint32(conf[4*devconfDisable:]) != 0
}

// devconfDisable is DEVCONF_DISABLE_IPV6, the place of disable_ipv6 in IFLA_INET6_CONF.
const devconfDisable = 26

// attribute finds one attribute of a list.
func attribute(b []byte, typ uint16) ([]byte, bool) {
	for len(b) > 0 {
		a, rest, ok := nextAttr(b)
		if !ok {
			return nil, false
		}
		if b = rest; a.typ == typ {
			return a.value, true
		}
	}
	return nil, false
}

func linkKind(b []byte) string {
	kind, _ := attribute(b, unix.IFLA_INFO_KIND)
	return cString(kind)
}

// tunnels are the kinds of interfaces that carry packets inside others. PPP is not
// among them: it is a VPN's, or what the network is reached by.
var tunnels = []string{
	"tun", "wireguard", "amneziawg", "ovpn", "ovpn-dco", "xfrm", "vti", "vti6",
	"gre", "gretap", "ip6gre", "ip6gretap", "erspan", "ip6erspan", "ipip", "sit", "ip6tnl",
	"vxlan", "geneve", "bareudp", "fou", "l2tpeth", "gtp",
}

// tunnelKind says whether an interface of a kind can be a tunnel. A network card
// has no kind.
func tunnelKind(kind string) plan.LinkKind {
	switch {
	case slices.Contains(tunnels, kind):
		return plan.KindTunnel
	case kind == "ppp":
		return plan.KindUnknown
	}
	return plan.KindPlain
}

func cString(b []byte) string {
	if i := slices.Index(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

func addresses(c *netlink.Conn, out []plan.Link, at map[uint32]int) error {
	msgs, err := request(c, unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg))
	if err != nil {
		return fmt.Errorf("dump addresses: %w", err)
	}
	for _, m := range msgs {
		index, p, peer, ok := parseAddress(m.Data)
		if i, known := at[index]; ok && known {
			out[i].Addrs = append(out[i].Addrs, p)
			if peer.IsValid() {
				out[i].Peers = append(out[i].Peers, peer)
			}
		}
	}
	return nil
}

// parseAddress reads struct ifaddrmsg. IFA_LOCAL is the host's own address where
// a peer's is in IFA_ADDRESS; the prefix length is then the peer's.
func parseAddress(b []byte) (index uint32, own, peer netip.Prefix, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return 0, own, peer, false
	}
	bits := int(b[1])
	index = native.Uint32(b[4:])
	var local, address netip.Addr
	for b = b[unix.SizeofIfAddrmsg:]; len(b) > 0; {
		a, rest, ok := nextAttr(b)
		if !ok {
			return 0, own, peer, false
		}
		switch b = rest; a.typ {
		case unix.IFA_LOCAL:
			local = addr(a.value)
		case unix.IFA_ADDRESS:
			address = addr(a.value)
		}
	}
	if !local.IsValid() {
		local = address
	}
	if address.IsValid() && address != local && bits <= address.BitLen() {
		peer = netip.PrefixFrom(address, bits).Masked()
	}
	return index, netip.PrefixFrom(local, bits), peer, local.IsValid() && bits <= local.BitLen()
}

// isUnsupported reports whether the kernel lacks what was asked for.
func isUnsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)
}
