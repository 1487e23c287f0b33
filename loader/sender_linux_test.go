package loader

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// say is a datagram that a test sends by a socket that is made to be somebody's.
type say struct {
	to   netip.AddrPort
	uid  int
	mark int
	size int
}

// datagrams sends one as often as the tests' senders do, whatever becomes of them.
func (n *node) datagrams(d say) {
	n.t.Helper()
	n.try(func() error {
		family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(d.to.Port()), Addr: [4]byte{}})
		if a := d.to.Addr(); a.Is4() {
			to.(*unix.SockaddrInet4).Addr = a.As4()
		} else {
			family, to = unix.AF_INET6, &unix.SockaddrInet6{Port: int(d.to.Port()), Addr: a.As16()}
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		defer unix.Close(fd)
		if err := unix.Fchown(fd, d.uid, -1); err != nil {
			return os.NewSyscallError("fchown", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, d.mark); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		for range rounds {
			if err := unix.Sendto(fd, make([]byte, d.size), 0, to); err != nil && err != unix.ENOBUFS && err != unix.EPERM {
				return os.NewSyscallError("sendto", err)
			}
		}
		return nil
	})
}

// gatesFrom is a full tunnel's policy whose servers' transport comes from a sender.
func gatesFrom(from From, who uint32) Config {
	cfg := full(9999)
	for i := range cfg.Prefixes {
		if cfg.Prefixes[i].Class == Server {
			cfg.Prefixes[i].From, cfg.Prefixes[i].Who = from, who
		}
	}
	cfg.Action = Drop
	return cfg
}

// TestSender: who may send to where the tunnel's transport goes. What others send there is a leak with a reason of its own.
func TestSender(t *testing.T) {
	const user, mark = 12345, 0xca6c
	s := newStage(t, Options{})
	guest := newNode(t)
	wire(s.host, guest, "h1", "g0", []string{"10.8.0.1/24", "fd08::1/64"}, []string{"10.8.0.2/24", "fd08::2/64"})
	guest.route("10.9.0.0/24", "10.8.0.1", "g0")
	guest.route("fd09::/64", "fd08::1", "g0")
	s.host.sysctl("ipv4/ip_forward", "1")
	s.host.sysctl("ipv6/conf/all/forwarding", "1")
	senders := []struct {
		name string
		n    *node
		say  say
	}{
		{"root", s.host, say{size: 30}},
		{"user", s.host, say{uid: user, size: 30}},
		{"user in fragments", s.host, say{uid: user, size: 4000}},
		{"mark", s.host, say{mark: mark, size: 30}},
		{"forwarded", guest, say{size: 30}},
		{"forwarded in fragments", guest, say{size: 4000}},
	}
	all, own := []string{}, []string{"root", "user", "user in fragments", "mark"}
	for _, x := range senders {
		all = append(all, x.name)
	}
	for _, g := range []struct {
		name   string
		from   From
		who    uint32
		passes []string
	}{
		{"any", FromAny, 0, all},
		{"host", FromHost, 0, own},
		{"kernel", FromKernel, 0, nil},
		{"uid", FromUID, user, []string{"user", "user in fragments"}},
		{"root", FromUID, 0, []string{"root", "mark"}},
		{"mark", FromMark, mark, []string{"mark"}},
	} {
		set(t, s.w, gatesFrom(g.from, g.who))
		for _, x := range senders {
			for _, to := range []string{"10.9.0.2:1194", "[fd09::2]:1194"} {
				t.Run(fmt.Sprintf("%s/%s/%s", g.name, x.name, to), func(t *testing.T) {
					s, before := s.at(t), s.reasons()[LeakSender]
					x.say.to = netip.MustParseAddrPort(to)
					counted, captured := s.measure(func() { x.n.datagrams(x.say) })
					refused := s.reasons()[LeakSender] - before
					packets := uint64(rounds)
					if x.say.size > 1500 {
						packets *= 3
					}
					want := map[bool]uint64{false: packets}[slices.Contains(g.passes, x.name)]
					if want > rounds && x.n == s.host {
						packets, want = rounds, rounds // of a datagram whose first fragment is dropped the others are not sent
					}
					if refused != want || counted.Packets != want || counted.Dropped != want || captured.Packets != packets-want {
						t.Errorf("%d packets: %d by a wrong sender, want %d; counted %+v, captured %+v", packets, refused, want, counted, captured)
					}
				})
			}
		}
	}
}

// TestKernelSender: what the kernel sends of a tunnel passes, though it carries the socket of the packet within, or came to
// this host by another interface. VXLAN sends it by the same functions as WireGuard, of which this kernel may have none.
func TestKernelSender(t *testing.T) {
	s := newStage(t, Options{})
	if err := s.host.runs("ip link add x0 type vxlan id 5 local 10.9.0.1 remote 10.9.0.2 dstport 1194 noudpcsum"); err != nil {
		testenv.Lacking(t, "no VXLAN here: %v", err)
	}
	s.host.sysctl("ipv6/conf/x0/disable_ipv6", "1") // it would speak by itself
	s.host.run("ip addr add 10.7.0.1/24 dev x0")
	s.host.run("ip link set x0 up mtu 1400")
	s.host.run("ip neigh add 10.7.0.2 lladdr 02:00:00:00:00:07 dev x0")
	guest := newNode(t)
	wire(s.host, guest, "h1", "g0", []string{"10.8.0.1/24"}, []string{"10.8.0.2/24"})
	guest.route("10.7.0.0/24", "10.8.0.1", "g0")
	s.host.sysctl("ipv4/ip_forward", "1")
	cfg := gatesFrom(FromKernel, 0)
	tunnel := s.host.index("x0")
	for i := range cfg.Prefixes {
		if cfg.Prefixes[i].Tunnel != 0 {
			cfg.Prefixes[i].Tunnel = tunnel
		}
	}
	cfg.Tunnels = []int{tunnel}
	set(t, s.w, cfg)
	for name, n := range map[string]*node{"a process's packet": s.host, "a forwarded packet": guest} {
		t.Run(name, func(t *testing.T) {
			s := s.at(t)
			counted, captured := s.measure(func() { n.datagrams(say{to: netip.MustParseAddrPort("10.7.0.2:7"), size: 30}) })
			if counted.Packets != 0 || captured.Packets != rounds {
				t.Errorf("counted %+v, captured %+v of %d", counted, captured, rounds)
			}
		})
	}
	t.Run("a process's own", func(t *testing.T) {
		s := s.at(t)
		counted, captured := s.measure(func() { s.host.datagrams(say{to: netip.MustParseAddrPort("10.9.0.2:1194"), size: 30}) })
		if counted.Dropped != rounds || captured.Packets != 0 {
			t.Errorf("counted %+v, captured %+v of %d", counted, captured, rounds)
		}
	})
}
