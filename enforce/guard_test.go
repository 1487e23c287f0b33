package enforce_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// TestTwoGuardsAreToldApart: when two tunnels are gone, each session is told of as it is, and what is removed for the second
// is said to be so.
func TestTwoGuardsAreToldApart(t *testing.T) {
	const tun1 = 7
	sys := newHost(t)
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		tb.AddLink(plan.Link{Index: tun1, Name: "tun1", Up: true})
		return errors.Join(
			tb.AddAddress(tun1, pfx("10.9.0.2/24")),
			tb.Add(via("172.29.0.0/16", "10.9.0.1", tun1), enforcetest.Add),
		)
	})
	told := make(chan enforce.Protection, 100)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{
		OnLoss: enforce.LossGuard, OnPolicy: func(p enforce.Protection) { told <- p },
	})
	second := enforce.Session{Tunnel: "tun1", Protect: []netip.Prefix{pfx("172.29.0.0/16")}}
	open(t, e, split)
	open(t, e, second)
	do(t, sys, 0, func(tb *enforcetest.Table) error { return errors.Join(tb.DeleteLink(tun0), tb.DeleteLink(tun1)) })
	eventually(t, "both are guarded", func() bool {
		st, err := e.Status(t.Context())
		return err == nil && !slices.ContainsFunc(st.Sessions, func(s enforce.SessionStatus) bool { return s.State != enforce.Reconnecting })
	})
	var last enforce.Protection
	for len(told) > 0 {
		last = <-told
	}
	if len(last.Sessions) != 2 || last.Sessions[0].Tunnel != "tun0" || last.Sessions[1].Tunnel != "tun1" ||
		!slices.Equal(last.Sessions[1].Protect, second.Protect) || last.Sessions[1].Link != 0 {
		t.Errorf("told of %+v", last.Sessions)
	}
	add(t, sys, via("172.29.6.0/24", "192.168.1.66", eth0))
	eventually(t, "it is removed for the second", func() bool {
		st, err := e.Status(t.Context())
		return err == nil && slices.ContainsFunc(st.Incidents, func(in enforce.Incident) bool { return in.Tunnel == "tun1" && in.What == "removed" })
	})
}
