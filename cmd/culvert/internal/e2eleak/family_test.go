//go:build linux

package e2eleak

import "testing"

// TestOtherFamily: what a tunnel of IPv4 alone leaves out goes in clear, with drops
// too, unless the other family is blocked. Then nothing of it gets out, by whatever
// way, though other leaks are only counted.
func TestOtherFamily(t *testing.T) {
	needs(t)
	const far = "2001:db8:113::10"
	s := newStub(t)
	s.Client.IP(t, "route add 0.0.0.0/1 dev tun0")
	s.Client.IP(t, "route add 128.0.0.0/1 dev tun0")
	s.Client.IP(t, "route add 203.0.113.10 via 10.77.0.1")
	c := s.Leaks(t, filter("2001:db8:113::/48"))
	flags := []string{"--tunnel", "tun0", "--protect", "0.0.0.0/1,128.0.0.0/1", "--server", "203.0.113.10:1194/udp"}
	plain, bound := speech{dst: far, count: 5}, speech{dst: far, count: 5, device: "eth0"}

	d := s.prog.Daemon(t, append(flags, "--on-leak", "drop")...)
	s.prog.Must(t, "status", "--wait", "10s")
	plain.say(t, s.Client)
	if c.Wait(5, patience); c.Packets() != 5 {
		t.Fatalf("allowed: %d of 5 got out: nothing is proved", c.Packets())
	}
	stopped(t, d)

	d = s.prog.Daemon(t, append(flags, "--other-family", "block")...)
	s.prog.Must(t, "status", "--wait", "10s")
	bound.say(t, s.Client)
	st := s.settled(t, 1)
	if c.Packets() != 5 || st.Packets == 0 || st.Dropped != st.Packets {
		t.Errorf("blocked: %d more got out; of %d that tried %d were dropped", c.Packets()-5, st.Packets, st.Dropped)
	}
	stopped(t, d)
	bound.say(t, s.Client)
	if c.Wait(10, patience); c.Packets() != 10 {
		t.Errorf("after the end %d of 5 got out", c.Packets()-5)
	}
}
