package rtnl_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/culvert-project/culvert/enforce/rtnl"
	"github.com/culvert-project/culvert/testenv"
)

// muteFor is how long an answer may take here. The real kernel's must come within it too.
const muteFor = time.Second

// TestMuteKernel: a kernel that takes requests and answers none costs each its time and
// no more, and the error says which request it was.
func TestMuteKernel(t *testing.T) {
	h := newHost(t)
	mute := rtnl.NewMute(h.System, muteFor)
	if err := mute.Begin(); err != nil {
		t.Fatal(err)
	}
	defer mute.End()
	put := func(kind plan.Kind) func(context.Context) error {
		return func(ctx context.Context) error {
			r := plan.Route{Dst: netip.MustParsePrefix("172.20.0.0/16"), Hop: plan.Hop{Link: 1}, Origin: plan.Own}
			return h.Apply(ctx, []plan.Action{{Kind: kind, Route: r}})[0]
		}
	}
	for _, c := range []struct {
		name string
		ask  func(ctx context.Context) error
		want string // words of the error
	}{
		{"facts", func(ctx context.Context) error { _, err := h.Facts(ctx); return err }, "dump interfaces: "},
		{"rules", func(ctx context.Context) error { _, err := h.Rules(ctx); return err }, "dump rules: "},
		{"table", func(ctx context.Context) (err error) {
			for _, err = range h.System.Table(ctx) {
			}
			return err
		}, "dump nexthop objects: "},
		{"lookup", func(ctx context.Context) error {
			_, err := h.Lookup(ctx, rtnl.Query{Dst: netip.MustParseAddr("172.20.0.1")})
			return err
		}, "look up 172.20.0.1: "},
		{"ways", func(ctx context.Context) error {
			_, err := h.Ways(ctx, []netip.Addr{netip.MustParseAddr("172.20.0.1"), netip.MustParseAddr("172.20.0.2")})
			return err
		}, "look up 172.20.0.1: "},
		{"put", put(plan.Put), "add 172.20.0.0/16: "},
		{"restore", put(plan.Restore), "add 172.20.0.0/16: "},
		{"remove", put(plan.Remove), "delete 172.20.0.0/16: "},
		{"watch", func(ctx context.Context) error {
			return h.System.Watch(ctx, nil, enforce.NewSink(), func() {})
		}, "watch routes: dump nexthop objects: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := c.ask(ctx); !errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q and that there was no answer", err, c.want)
			}
			if ctx.Err() != nil {
				t.Error("it was not the answer's own time that ended it")
			}
			if n := mute.Changes(); n > 1 {
				t.Errorf("one change was asked for %d times", n)
			}
		})
	}
	t.Run("many changes", func(t *testing.T) {
		actions := make([]plan.Action, 100) // they would take a hundred times as long
		for i := range actions {
			dst := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 20, byte(i), 0}), 24)
			actions[i] = plan.Action{Kind: plan.Put, Route: plan.Route{Dst: dst, Hop: plan.Hop{Link: 1}, Origin: plan.Own}}
		}
		for i, err := range h.Apply(t.Context(), actions) {
			if !errors.Is(err, os.ErrDeadlineExceeded) || strings.Contains(err.Error(), "not asked for") != (i > 0) {
				t.Fatalf("change %d of 100: %v", i, err)
			}
		}
		if n := mute.Changes(); n != 1 {
			t.Errorf("%d changes were asked for", n)
		}
	})
}

// TestMuteWhileEnforcing: the kernel falls silent under a daemon. Its status is asked and
// answers all the while, and names the request; what comes is answered by the edge path, which
// has its sockets; and once the kernel answers again all is as before.
func TestMuteWhileEnforcing(t *testing.T) {
	h := newHost(t)
	mute := rtnl.NewMute(h.System, muteFor)
	before := h.ns.MainTable(t)
	e, stop := h.enforce(t, enforce.Options{})
	if _, err := e.Open(t.Context(), session); err != nil {
		t.Fatal(err)
	}
	if err := mute.Begin(); err != nil {
		t.Fatal(err)
	}
	h.ns.IP(t, "addr", "add", "192.168.9.2/24", "dev", "eth0") // a reason to look
	testenv.Eventually(t, time.Minute, "the status names the request", func() bool {
		got := statusOf(t, e)
		return got.State == enforce.Failed && strings.Contains(got.Error, "dump interfaces: ") && strings.Contains(got.Error, "no answer")
	})
	h.ns.IP(t, "addr", "del", "192.168.9.2/24", "dev", "eth0")
	h.ns.IP(t, "route", "add", "172.17.0.0/16", "via", "192.168.1.66")
	testenv.Eventually(t, time.Minute, "the edge path answers", func() bool { return h.ns.MainTable(t) == before })
	mute.End()
	testenv.Eventually(t, time.Minute, "it enforces again", func() bool {
		got := statusOf(t, e)
		return got.State == enforce.Enforcing && got.Error == ""
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
}
