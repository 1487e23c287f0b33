package enforce_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

const eth1 uint32 = 3

// withPlain adds a network card that is sure to be no tunnel.
func withPlain(t *testing.T, sys *enforcetest.System) {
	t.Helper()
	do(t, sys, 0, func(tb *enforcetest.Table) error {
		tb.AddLink(plan.Link{Index: eth1, Name: "eth1", HW: "02:00:00:00:00:03", Kind: plan.KindPlain, Up: true})
		return tb.AddAddress(eth1, pfx("192.168.9.10/24"))
	})
}

// TestUplinkIsNoTunnel: what the network is reached by is refused as a tunnel
// wherever a session can come from, and nothing is changed.
func TestUplinkIsNoTunnel(t *testing.T) {
	sys := newHost(t)
	withPlain(t, sys)
	add(t, sys, via("0.0.0.0/0", "192.168.9.1", eth1))
	before := sys.Text()
	s := enforce.Session{Tunnel: "eth1", Protect: split.Protect}
	refused := func(from string, err error) {
		t.Helper()
		var input *enforce.InputError
		if !errors.As(err, &input) || !strings.Contains(err.Error(), "eth1: is no tunnel: it carries the default route (0.0.0.0/0 via 192.168.9.1 dev eth1") {
			t.Errorf("%s: %v", from, err)
		}
	}
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	_, err := e.Open(t.Context(), s)
	refused("open", err)
	_, err = e.Reload(t.Context(), []enforce.Session{s})
	refused("reload", err)
	if err := stop(); err != nil {
		t.Error(err)
	}
	refused("own", enforce.New(sys, &enforcetest.Journal{}, enforce.Options{Own: []enforce.Session{s}}).Run(context.Background()))
	_, err = enforce.PreviewSessions(t.Context(), sys, []enforce.Session{s}, enforce.Options{})
	refused("preview", err)
	if sys.Text() != before {
		t.Errorf("table:\n%s", sys.Text())
	}
}

// TestUplinkTurnsOut: a session whose interface carries the default route only
// later has failed, as long as that is so.
func TestUplinkTurnsOut(t *testing.T) {
	sys := newHost(t)
	withPlain(t, sys)
	e, _ := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	if st := open(t, e, enforce.Session{Tunnel: "eth1", Protect: split.Protect}); st.State != enforce.Enforcing {
		t.Fatalf("a card that leads to a VPN box: %+v", st)
	}
	late := via("0.0.0.0/0", "192.168.9.1", eth1)
	add(t, sys, late)
	e.Wake("test")
	eventually(t, "failed", func() bool {
		st := status(t, e)
		return st.State == enforce.Failed && strings.Contains(st.Error, "is no tunnel")
	})
	do(t, sys, 4711, func(tb *enforcetest.Table) error { return tb.Delete(late) })
	e.Wake("test")
	eventually(t, "enforcing", func() bool { return status(t, e).State == enforce.Enforcing })
}
