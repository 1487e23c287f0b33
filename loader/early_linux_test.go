package loader

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// sendRaw sends a whole IP packet by the host's routes, and so by netfilter.
func sendRaw(to netip.Addr, packet []byte) error {
	family, addr := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.As16()})
	if to.Is4() {
		family, addr = unix.AF_INET, &unix.SockaddrInet4{Addr: to.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, packet, 0, addr); err != nil && err != unix.EPERM { // netfilter's drop
		return err
	}
	return nil
}

// TestEarlyIsNarrow: on an interface that has no program the server gets its transport and nothing else, and a packet that
// goes on from a free address is judged by where it ends.
func TestEarlyIsNarrow(t *testing.T) {
	s := newStage(t, Options{modes: []Mode{}})
	if st := s.status(); st.Early != "" {
		testenv.Lacking(t, "%s", st.Early)
	}
	server4, server6 := netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("fd09::2")
	free4, free6 := netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")
	other4, other6 := netip.MustParseAddr("10.9.0.7"), netip.MustParseAddr("fd09::7")
	s.host.run("ip route add 192.0.2.0/24 via 10.9.0.2")
	s.host.run("ip -6 route add 2001:db8::/32 via fd09::2")
	cfg := Config{Action: Drop, Prefixes: protect(stagePrefixes...)}
	for _, a := range []netip.Addr{server4, server6} {
		cfg.Prefixes = append(cfg.Prefixes,
			Prefix{Prefix: netip.PrefixFrom(a, a.BitLen()), ID: 9, Class: Server, Proto: unix.IPPROTO_UDP, Port: 1194},
			Prefix{Prefix: netip.PrefixFrom(a, a.BitLen()), ID: 9, Class: Server, Proto: unix.IPPROTO_ESP})
	}
	cfg.Prefixes = append(cfg.Prefixes, Prefix{Prefix: netip.MustParsePrefix("192.0.2.128/25"), Class: Excluded})
	set(t, s.w, cfg)
	by4 := func(hop netip.Addr, options []byte) []byte {
		b := ipv4(hop, 17, join(options, udp(1, 1194, 9)))
		b[0] = 0x45 + byte(len(options)/4)
		return b
	}
	lsrr := func(to netip.Addr) []byte { return join([]byte{1, 131, 7, 4}, to.AsSlice()) }
	by6 := func(hop netip.Addr, left byte, list ...netip.Addr) []byte {
		b := []byte{17, byte(2 * len(list)), 4, left, byte(len(list) - 1), 0, 0, 0}
		for _, a := range list {
			b = append(b, a.AsSlice()...)
		}
		return ipv6(hop, 43, 64, join(b, udp(1, 1194, 9)))
	}
	for _, c := range []struct {
		name   string
		to     netip.Addr
		packet []byte
		stops  bool
	}{
		{"transport", server4, ipv4(server4, 17, udp(1, 1194, 9)), false},
		{"transport 6", server6, ipv6(server6, 17, 64, udp(1, 1194, 9)), false},
		{"transport 6 behind options", server6, ipv6(server6, 60, 64, join(ext(17, 8), udp(1, 1194, 9))), false},
		{"ESP", server4, ipv4(server4, 50, make([]byte, 40)), false},
		{"another port", server4, ipv4(server4, 17, udp(1194, 53, 9)), true},
		{"another port 6", server6, ipv6(server6, 17, 64, udp(1194, 53, 9)), true},
		{"another protocol", server4, ipv4(server4, 6, make([]byte, 40)), true},
		{"ping", server4, ipv4(server4, 1, []byte{8, 0, 0, 0, 0, 0, 0, 0}), true},
		{"not the kernel's error", server4, ipv4(server4, 1, make([]byte, 40)), true},
		{"free", free4, ipv4(free4, 17, udp(1, 2, 9)), false},
		{"free 6", free6, ipv6(free6, 17, 64, udp(1, 2, 9)), false},
		{"free, by way of free", free4, by4(free4, lsrr(netip.MustParseAddr("192.0.2.77"))), false},
		{"free, and on", free4, by4(free4, lsrr(other4)), true},
		{"excluded, and on", netip.MustParseAddr("192.0.2.200"), by4(netip.MustParseAddr("192.0.2.200"), lsrr(other4)), true},
		{"the server, and on", server4, by4(server4, lsrr(other4)), true},
		{"free 6, and on", free6, by6(free6, 1, other6, free6), true},
		{"free 6, at its end", free6, by6(free6, 0, free6, other6), false},
		{"the server 6, and on", server6, by6(server6, 1, other6, server6), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := s.at(t)
			before := leaks(t, s.w, s.dev, Reason.Leak)
			s.host.try(func() error { return sendRaw(c.to, c.packet) })
			got := minus(leaks(t, s.w, s.dev, Reason.Leak), before)
			if stopped := got.Packets == 1 && got.Dropped == 1; stopped != c.stops || !stopped && got.Packets != 0 {
				t.Errorf("counted %+v", got)
			}
		})
	}
}
