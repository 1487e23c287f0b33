//go:build linux

package e2e

import (
	"slices"
	"strings"
	"testing"
)

// TestNoIPv6: where IPv6 is off on the tunnel alone a session that protects IPv6 has
// failed, for it leaves by the LAN. Where it is off on the whole host, as in most
// containers, nothing can leave, and the session is right.
func TestNoIPv6(t *testing.T) {
	s := newStub(t)
	off := func(device, value string) { s.Client.Sysctl(t, "net.ipv6.conf."+device+".disable_ipv6", value) }
	off("tun0", "1")
	d := s.prog.Daemon(t, "--tunnel", "tun0", "--protect", sites)
	is := func(what string, right func(status) bool) {
		t.Helper()
		if !eventually(func() bool {
			st := statusOf(t, s.prog)
			return len(st.Sessions) == 1 && right(st)
		}) {
			t.Fatalf("%s: %+v", what, statusOf(t, s.prog))
		}
	}
	is("off on the tunnel", func(st status) bool {
		return st.Sessions[0].State == "failed" && strings.Contains(st.Sessions[0].Error, "there is no IPv6 on tun0, and eth0 has it")
	})
	off("all", "1")
	is("off on the host", func(st status) bool {
		x := st.Sessions[0]
		return x.State == "enforcing" && slices.ContainsFunc(x.Notes, func(text string) bool { return strings.HasPrefix(text, "fd31::/48: there is no IPv6 on tun0") })
	})
	s.Client.IP(t, "route add 172.31.1.0/24 via 10.77.0.66")
	is("IPv4 is enforced", func(st status) bool { return st.removed() == 1 })
	off("all", "0")
	off("tun0", "0")
	s.Client.IP(t, "addr add fd77::20/64 dev eth0 nodad")
	is("on again", func(st status) bool {
		x := st.Sessions[0]
		return x.State == "enforcing" && x.Error == "" && len(x.Notes) == 0
	})
	if table := s.Client.MainTable(t); !strings.Contains(table, "fd31::/48 dev tun0") {
		t.Errorf("the table is\n%s", table)
	}
	stopped(t, d)
}
