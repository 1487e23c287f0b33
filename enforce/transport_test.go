package enforce_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// TestServerPushedIntoTheTunnel: a host route to the server by its own tunnel
// stands before ours, or comes while connected. The server is reached outside.
func TestServerPushedIntoTheTunnel(t *testing.T) {
	const server = "198.51.100.7"
	for name, s := range map[string]enforce.Session{"full": full, "split": split} {
		for _, late := range []bool{false, true} {
			sys := newHost(t)
			pushed := via(server+"/32", "10.8.0.1", tun0)
			if !late {
				add(t, sys, pushed)
			}
			before := sys.Text()
			e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
			open(t, e, s)
			if late {
				do(t, sys, 4711, func(tb *enforcetest.Table) error { return tb.Add(pushed, enforcetest.Prepend) })
			}
			eventually(t, "the server is reached outside", func() bool {
				return leavesBy(sys, server) == eth0 && status(t, e).State == enforce.Enforcing
			})
			if err := stop(); err != nil {
				t.Error(err)
			}
			if late {
				do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.DeleteExact(pushed) })
			}
			if after := sys.Text(); after != before {
				t.Errorf("%s, late %v: after\n%sbefore\n%s", name, late, after, before)
			}
		}
	}
}

// TestServerSwallowed: where no route can lead past it, the session says so.
func TestServerSwallowed(t *testing.T) {
	sys := newHost(t)
	r := via("2001:db8:77::5/128", "", tun0)
	r.Metric = 1
	add(t, sys, r)
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	defer func() { _ = stop() }()
	s := full
	s.Servers = []enforce.Server{{Addr: netip.MustParseAddrPort("[2001:db8:77::5]:1194"), Proto: "udp"}}
	st := open(t, e, s)
	if st.State != enforce.Failed || !strings.Contains(st.Error, "2001:db8:77::5/128") || !strings.Contains(st.Error, "delete it") {
		t.Errorf("state %s, error %q", st.State, st.Error)
	}
	do(t, sys, 4711, func(tb *enforcetest.Table) error { return tb.DeleteExact(r) })
	eventually(t, "enforcing when it is gone", func() bool { return status(t, e).State == enforce.Enforcing })
}

// TestServerProtected: what must be reached outside cannot be protected.
func TestServerProtected(t *testing.T) {
	sys := newHost(t)
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	defer func() { _ = stop() }()
	s := split
	s.Protect = append([]netip.Prefix{pfx("198.51.100.7/32")}, s.Protect...)
	var bad *enforce.InputError
	if _, err := e.Open(t.Context(), s); !errors.As(err, &bad) || bad.Input != "198.51.100.7/32" {
		t.Errorf("got %v", err)
	}
}

// TestExcludedGatewayStaysReachable: the server is a proxy on this host, its far
// end is excluded and goes by the network's gateway.
func TestExcludedGatewayStaysReachable(t *testing.T) {
	sys := newHost(t)
	add(t, sys, via("203.0.113.9/32", "192.168.1.1", eth0))
	before := sys.Text()
	s := full
	s.Servers = []enforce.Server{{Addr: netip.MustParseAddrPort("127.0.0.1:1194"), Proto: "tcp"}}
	s.Exclude = []netip.Prefix{pfx("203.0.113.9/32")}
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, s)
	for addr, want := range map[string]uint32{"192.168.1.1": eth0, "192.168.1.2": tun0, "203.0.113.9": eth0} {
		if got := leavesBy(sys, addr); got != want {
			t.Errorf("%s leaves by %d, want %d", addr, got, want)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if after := sys.Text(); after != before {
		t.Errorf("after\n%sbefore\n%s", after, before)
	}
}

// TestTransportFollowsAtOnce: the default route that leads to the server goes, and
// another stands. Nobody waits for the timer.
func TestTransportFollowsAtOnce(t *testing.T) {
	const wifi = 3
	sys := newHost(t)
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		tb.AddLink(plan.Link{Index: wifi, Name: "wifi", HW: "02:00:00:00:00:03", Up: true})
		second := via("0.0.0.0/0", "192.168.2.1", wifi)
		second.Metric = 600
		return errors.Join(tb.AddAddress(wifi, pfx("192.168.2.10/24")), tb.Add(second, enforcetest.Add))
	})
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, full)
	if got := leavesBy(sys, "198.51.100.7"); got != eth0 {
		t.Fatalf("the server is reached by %d", got)
	}
	do(t, sys, 4711, func(tb *enforcetest.Table) error { return tb.DeleteExact(via("0.0.0.0/0", "192.168.1.1", eth0)) })
	eventually(t, "the server is reached by the other network", func() bool {
		return leavesBy(sys, "198.51.100.7") == wifi && leavesBy(sys, "192.168.2.1") == wifi
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
}
