package enforce_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// TestAttackAsAnotherSessionOpens: a conflict with a session that has been open
// for long is found by the look at the table with which another opens, before
// the news of it. It came while connected and does not come back; what only
// conflicts with the new session was there before, and does.
func TestAttackAsAnotherSessionOpens(t *testing.T) {
	const tun1 = 7
	sys := &lateSystem{System: newHost(t)} // its edge hears of nothing
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, split)
	do(t, sys.System, 0, func(tb *enforcetest.Table) error {
		tb.AddLink(plan.Link{Index: tun1, Name: "tun1", Up: true})
		return errors.Join(
			tb.AddAddress(tun1, pfx("10.9.0.2/24")),
			tb.Add(via("172.29.0.0/16", "10.9.0.1", tun1), enforcetest.Add),
			tb.Add(via("172.31.1.0/24", "192.168.1.66", eth0), enforcetest.Add),
			tb.Add(via("172.29.1.0/24", "192.168.1.66", eth0), enforcetest.Add),
		)
	})
	open(t, e, enforce.Session{Tunnel: "tun1", Protect: []netip.Prefix{pfx("172.29.0.0/16")}})
	for _, out := range []string{"172.31.1.0/24", "172.29.1.0/24"} {
		if strings.Contains(sys.Text(), out) {
			t.Errorf("%s is not removed:\n%s", out, sys.Text())
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if text := sys.Text(); strings.Contains(text, "172.31.1.0/24") || !strings.Contains(text, "172.29.1.0/24") {
		t.Errorf("what came is back, or what stood is not:\n%s", text)
	}
}

// TestAttackLeadsNoServer: an attack on a session shows another way to its server, and is
// found by the look at the table with which another session opens. The transport keeps to
// the way that stood before.
func TestAttackLeadsNoServer(t *testing.T) {
	const tun1 = 7
	sys := &lateSystem{System: newHost(t)} // its edge hears of nothing
	rogue := netip.MustParseAddr("192.168.1.66")
	sys.Refuse = func(a plan.Action) error {
		if a.Kind == plan.Put && (a.Route.Hop.Via == rogue || a.Route.Dst.Addr() == rogue) {
			t.Errorf("for the server %+v is put", a.Route)
		}
		return nil
	}
	e, stop := run(t, sys, &enforcetest.Journal{}, enforce.Options{})
	open(t, e, full)
	before := sys.Text()
	do(t, sys.System, 0, func(tb *enforcetest.Table) error {
		tb.AddLink(plan.Link{Index: tun1, Name: "tun1", Up: true})
		return errors.Join(tb.AddAddress(tun1, pfx("10.9.0.2/24")),
			tb.Add(enforcetest.WithExtra(via("198.51.100.0/24", "192.168.1.66", eth0), "onlink"), enforcetest.Add))
	})
	open(t, e, enforce.Session{Tunnel: "tun1", Protect: []netip.Prefix{pfx("172.29.0.0/16")}})
	r, ok := sys.Lookup(netip.MustParseAddr("198.51.100.7"), 0, netip.Addr{})
	if !ok || r.Hop.Via != netip.MustParseAddr("192.168.1.1") {
		t.Errorf("the server is reached by %v; before\n%snow\n%s", r.Hop, before, sys.Text())
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// hasty is a System whose process is told to end as it reads the interfaces for the
// first time.
type hasty struct {
	*enforcetest.System
	end func()
}

func (s *hasty) Facts(ctx context.Context) (enforce.Facts, error) {
	s.end()
	if err := ctx.Err(); err != nil {
		return enforce.Facts{}, err
	}
	return s.System.Facts(ctx)
}

// TestEndedAsItStarts: what a crash had left is given back all the same.
func TestEndedAsItStarts(t *testing.T) {
	sys, j := newHost(t), &enforcetest.Journal{}
	add(t, sys, via("172.31.5.0/24", "192.168.1.66", eth0))
	before := sys.Text()
	e, stop := run(t, sys, j, enforce.Options{})
	open(t, e, split)
	sys.Halt()
	j.Halt()
	_ = stop() // the dead give nothing back
	sys.Resume()
	j.Resume()
	if sys.Text() == before || len(j.Entries()) != 1 {
		t.Fatalf("held %v of\n%s", j.Entries(), sys.Text())
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := enforce.New(&hasty{sys, cancel}, j, enforce.Options{}).Run(ctx); err != nil {
		t.Error(err)
	}
	if after := sys.Text(); after != before || len(j.Entries()) > 0 {
		t.Errorf("held %v of\n%s\nbefore\n%s", j.Entries(), after, before)
	}
}
