package loader

import (
	"net/netip"
	"testing"
)

// TestFragmentsOfOthers: whoever floods with first fragments of what looks like the transport must not have the tunnel's own
// later ones dropped. It costs any user one socket, and a guest none.
func TestFragmentsOfOthers(t *testing.T) {
	s := newStage(t, Options{})
	guest := newNode(t)
	wire(s.host, guest, "h1", "g0", []string{"10.8.0.1/24"}, []string{"10.8.0.2/24"})
	s.host.sysctl("ipv4/ip_forward", "1")
	const flood = 5000
	server := netip.MustParseAddr("10.9.0.2")
	set(t, s.w, Config{Action: Drop, Prefixes: append(protect(stagePrefixes...), Prefix{
		Prefix: netip.PrefixFrom(server, 32), ID: 9, Class: Server, Proto: 17, Port: 1194,
	})})
	first := func(to string, id int) []byte {
		return frame(mac(to), nil, fragment4(server, 17, 0, true, uint16(id), udp(1, 1194, 16)))
	}
	var firsts, guests [][]byte
	for id := range flood {
		firsts, guests = append(firsts, first("p0", 1000+id)), append(guests, first("h1", 1000+id))
	}
	for id, c := range map[int]struct {
		name  string
		flood func() error
		by    *node
	}{
		1: {"another socket", func() error { return sendFrames("h0", firsts) }, s.host},
		2: {"a guest", func() error { return sendFrames("g0", guests) }, guest},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := s.at(t)
			own := func(f []byte) uint64 {
				there := s.cap.settle()
				s.host.try(func() error { return sendBy(s.raw, "h0", [][]byte{f}) })
				return minus(s.cap.settle(), there).Packets
			}
			if own(first("p0", id)) != 1 {
				t.Fatal("the first fragment did not arrive")
			}
			c.by.try(c.flood)
			if own(frame(mac("p0"), nil, fragment4(server, 17, 3, false, uint16(id), make([]byte, 8)))) != 1 {
				t.Error("the later fragment did not arrive: its first one was forgotten")
			}
		})
	}
}
