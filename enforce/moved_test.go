package enforce_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// TestMovedToAnotherNetwork: the host leaves its network while connected, the
// kernel drops every IPv4 route of the interface. After the disconnect the new
// network's routes are what stands, and nothing of the old one's.
func TestMovedToAnotherNetwork(t *testing.T) {
	whole := enforce.Session{Tunnel: "tun0", Protect: full.Protect, Servers: full.Servers}
	whole.Protect = append(whole.Protect[:0:0], pfx("0.0.0.0/0"))
	leave := map[string]func(*enforcetest.Table) error{
		"flushed": func(tb *enforcetest.Table) error { return tb.RemoveAddress(eth0, pfx("192.168.1.10/24")) },
		"down": func(tb *enforcetest.Table) error {
			return errors.Join(tb.SetUp(eth0, false), tb.RemoveAddress(eth0, pfx("192.168.1.10/24")), tb.SetUp(eth0, true))
		},
	}
	arrive := func(tb *enforcetest.Table) error {
		return errors.Join(tb.AddAddress(eth0, pfx("10.44.0.20/24")))
	}
	for name, s := range map[string]enforce.Session{"all": whole, "split": split} {
		for way, gone := range leave {
			for _, atOnce := range []bool{false, true} {
				sys := newHost(t)
				add(t, sys, via("172.31.2.0/24", "192.168.1.66", eth0))
				add(t, sys, via("172.31.3.0/24", "", eth0))
				e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
				open(t, e, s)
				if atOnce { // before anybody looks at what is between
					do(t, sys, 0, func(tb *enforcetest.Table) error { return errors.Join(gone(tb), arrive(tb)) })
				} else {
					do(t, sys, 0, gone)
					eventually(t, "the old network's routes are forgotten", func() bool { return len(held4(status(t, e))) == 0 })
					do(t, sys, 0, arrive)
				}
				add(t, sys, plan.Route{Dst: pfx("203.0.113.0/24"), Hop: plan.Hop{Link: eth0}, Metric: 600, Protocol: 16})
				if err := stop(); err != nil {
					t.Errorf("%s, %s, at once %v: %v", name, way, atOnce, err)
				}
				text := sys.Text()
				if strings.Contains(text, "192.168.1.") || strings.Contains(text, "172.31.3.0/24") || !strings.Contains(text, "10.44.0.0/24 dev 2") {
					t.Errorf("%s, %s, at once %v: afterwards the table is\n%s", name, way, atOnce, text)
				}
			}
		}
	}
}

func held4(st enforce.SessionStatus) (out []string) {
	for _, h := range st.Held {
		if !strings.Contains(h.Route, ":") {
			out = append(out, h.Route)
		}
	}
	return out
}

// TestLegOfAnInterfaceThatGoes: an IPv6 multipath route by two interfaces loses
// one of them while it is held, and with it the leg alone.
func TestLegOfAnInterfaceThatGoes(t *testing.T) {
	for _, restart := range []bool{false, true} {
		sys := newHost(t)
		const eth1 = 3
		do(t, sys, 0, func(tb *enforcetest.Table) error {
			tb.AddLink(plan.Link{Index: eth1, Name: "eth1", HW: "02:00:00:00:00:03", Up: true})
			two := via("fd31:0:2::/48", "fe80::1", eth0)
			return tb.Add(two.WithHops(two.Hop, plan.Hop{Link: eth1, Via: two.Hop.Via}), enforcetest.Add)
		})
		j := &enforcetest.Journal{}
		e, stop := run(t, sys, j, enforce.Options{})
		open(t, e, split)
		if len(status(t, e).Held) != 1 {
			t.Fatalf("held: %v", status(t, e).Held)
		}
		gone := func() {
			do(t, sys, 0, func(tb *enforcetest.Table) error { return tb.DeleteLink(eth1) })
		}
		if !restart {
			gone()
			if err := stop(); err != nil {
				t.Error(err)
			}
		} else { // the process dies first, and nobody watches when the interface goes
			j.Halt()
			sys.Halt()
			_ = stop()
			j.Resume()
			sys.Resume()
			gone()
			if rec, err := enforce.Recover(t.Context(), sys, j, enforce.Options{}); err != nil || len(rec.Restored) != 1 {
				t.Errorf("recovered %+v, %v", rec, err)
			}
		}
		if text := sys.Text(); !strings.Contains(text, "fd31:0:2::/48 via fe80::1 dev 2 ") || strings.Contains(text, "dev 3") {
			t.Errorf("restart %v: afterwards the table is\n%s", restart, text)
		}
	}
}
