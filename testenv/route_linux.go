package testenv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Hop is the kernel's answer to "how would you send to this address?"
type Hop struct {
	Device  string     // the interface; "lo" for the host's own addresses
	Index   int        // its index
	Gateway netip.Addr // the next hop; zero when the destination is on the link
	Src     netip.Addr // the source address that would be used
	Table   int        // the table of the deciding route
	Type    int        // RTN_UNICAST = 1, RTN_LOCAL = 2, …
}

// FIB asks the kernel of one namespace for its forwarding decisions. It is
// quick (one exchange on an open socket per question), and may be used by one
// goroutine at a time.
type FIB struct {
	conn  *netlink.Conn
	names map[int]string // interfaces seen; an index is not used twice
}

// OpenFIB opens a FIB of the namespace. The caller must Close it.
func (n *NS) OpenFIB() (*FIB, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: n.Fd()})
	if err != nil {
		return nil, fmt.Errorf("netlink in %s: %w", n, err)
	}
	return &FIB{conn: conn, names: map[int]string{}}, nil
}

// Close releases the socket.
func (f *FIB) Close() error { return f.conn.Close() }

// Lookup says how the kernel would send a packet to dst with the given type
// of service (IPv4 only counts its DSCP bits; IPv6 ignores it unless a rule
// does not). Where it would not, the error wraps its reason: ENETUNREACH for
// no route, EHOSTUNREACH, EACCES and EINVAL for routes of type unreachable,
// prohibit and blackhole.
func (f *FIB) Lookup(dst netip.Addr, tos uint8) (Hop, error) {
	replies, err := f.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request},
		Data:   lookupRequest(dst, tos),
	})
	if err != nil {
		return Hop{}, fmt.Errorf("route to %s: %w", dst, errnoOf(err))
	}
	if len(replies) != 1 {
		return Hop{}, fmt.Errorf("route to %s: %d answers", dst, len(replies))
	}
	hop, err := parseHop(replies[0].Data)
	if err != nil {
		return Hop{}, fmt.Errorf("route to %s: %w", dst, err)
	}
	hop.Device, err = f.device(hop.Index)
	return hop, err
}

// errnoOf takes the bare errno out of a netlink error, so that its text stays
// short.
func errnoOf(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

func lookupRequest(dst netip.Addr, tos uint8) []byte {
	family := byte(unix.AF_INET)
	if dst.Is6() {
		family = unix.AF_INET6
	}
	req := make([]byte, unix.SizeofRtMsg)
	req[0], req[1], req[3] = family, byte(dst.BitLen()), tos
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.RTA_DST, dst.AsSlice())
	attrs, _ := ae.Encode() // byte slices cannot be encoded wrongly
	return append(req, attrs...)
}

func parseHop(data []byte) (Hop, error) {
	if len(data) < unix.SizeofRtMsg {
		return Hop{}, errors.New("answer too short")
	}
	hop := Hop{Table: int(data[4]), Type: int(data[7])}
	ad, err := netlink.NewAttributeDecoder(data[unix.SizeofRtMsg:])
	if err != nil {
		return Hop{}, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.RTA_OIF:
			hop.Index = int(ad.Uint32())
		case unix.RTA_TABLE:
			hop.Table = int(ad.Uint32())
		case unix.RTA_GATEWAY:
			hop.Gateway, _ = netip.AddrFromSlice(ad.Bytes())
		case unix.RTA_PREFSRC:
			hop.Src, _ = netip.AddrFromSlice(ad.Bytes())
		case unix.RTA_VIA: // a gateway of the other family, after its family
			if b := ad.Bytes(); len(b) > 2 {
				hop.Gateway, _ = netip.AddrFromSlice(b[2:])
			}
		}
	}
	return hop, ad.Err()
}

// device is the name of an interface.
func (f *FIB) device(index int) (string, error) {
	if name, ok := f.names[index]; ok {
		return name, nil
	}
	req := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(req[4:], uint32(index))
	replies, err := f.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request},
		Data:   req,
	})
	if err != nil {
		return "", fmt.Errorf("name of interface %d: %w", index, errnoOf(err))
	}
	for _, reply := range replies {
		if name, err := linkName(reply.Data); err == nil {
			f.names[index] = name
			return name, nil
		}
	}
	return "", fmt.Errorf("name of interface %d: not in the answer", index)
}

func linkName(data []byte) (string, error) {
	if len(data) < unix.SizeofIfInfomsg {
		return "", errors.New("answer too short")
	}
	ad, err := netlink.NewAttributeDecoder(data[unix.SizeofIfInfomsg:])
	if err != nil {
		return "", err
	}
	for ad.Next() {
		if ad.Type() == unix.IFLA_IFNAME {
			return ad.String(), nil
		}
	}
	return "", errors.Join(errors.New("no name"), ad.Err())
}

// RouteGet is one [FIB.Lookup] with a FIB of its own.
func (n *NS) RouteGet(dst netip.Addr, tos uint8) (Hop, error) {
	f, err := n.OpenFIB()
	if err != nil {
		return Hop{}, err
	}
	defer func() { _ = f.Close() }()
	return f.Lookup(dst, tos)
}

// DeviceTo is the interface by which the kernel would send to dst, or the
// reason why it would not ("network is unreachable").
func (n *NS) DeviceTo(dst netip.Addr) string {
	hop, err := n.RouteGet(dst, 0)
	if err != nil {
		if errno := errnoOf(err); errno != nil {
			return errno.Error()
		}
	}
	return hop.Device
}

var expires = regexp.MustCompile(`expires \d+sec`)

// Routes is the namespace's main table of both families as "ip -d route"
// writes it, to be compared as text with an earlier one. Remaining lifetimes
// are replaced by "expires Nsec".
func (n *NS) Routes() (string, error) {
	var all string
	for _, family := range []string{"-4", "-6"} {
		out, err := n.Command("ip", "-d", family, "route", "show", "table", "main").CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("routes of %s: %w: %s", n, err, out)
		}
		all += string(out)
	}
	return expires.ReplaceAllString(all, "expires Nsec"), nil
}

// MainTable is [NS.Routes] for tests.
func (n *NS) MainTable(t TB) string {
	t.Helper()
	s, err := n.Routes()
	if err != nil {
		t.Fatalf("%v", err)
	}
	return s
}
