//go:build linux

package promise

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// slip is a process that dies when a delete has taken another route than it named:
// Linux takes an IPv4 metric of 0 for any, so it does when the one that is named
// has just gone by itself.
type slip struct {
	*mortal
	took func() // in place of the first delete
}

// Apply implements enforce.System.
func (s *slip) Apply(ctx context.Context, actions []plan.Action) []error {
	isRemove := func(a plan.Action) bool { return a.Kind == plan.Remove }
	if !s.isDead() && slices.ContainsFunc(actions, isRemove) {
		s.took()
		s.fuse = 0
		s.step()
	}
	return s.mortal.Apply(ctx, actions)
}

// Watch implements enforce.System: the loop finds what there is, not the edge.
func (s *slip) Watch(ctx context.Context, _ enforce.Edge, _ *enforce.Sink, ready func()) error {
	ready()
	<-ctx.Done()
	return nil
}

// TestDeathBetweenDeleteAndPutBack: nothing is lost of what a delete took by mistake,
// and that the process had no time to put back.
func TestDeathBetweenDeleteAndPutBack(t *testing.T) {
	needs(t)
	const stays, conflict = "172.20.50.0/24 via 192.0.2.9 dev eth0 metric 50 proto static", "172.20.50.0/24 via 192.0.2.9 dev eth0 proto static"
	l := newLab(t)
	l.reset(t, []string{"route add 172.20.50.0/24 dev tun0", "route append " + stays})
	before := l.table(t)
	dir := t.TempDir()
	m := &slip{mortal: &mortal{sys: l.sys, journal: l.journal(t, dir), fuse: 1 << 30}}
	slipped := make(chan struct{})
	m.took = func() {
		l.ns.IP(t, "route del "+conflict) // its owner is faster
		l.ns.IP(t, "route del "+conflict) // so this takes the other
		close(slipped)
	}
	e := startEnforcer(t, m, m, true)
	e.open(t, enforce.Session{Tunnel: "tun0", Protect: []netip.Prefix{netip.MustParsePrefix("172.20.50.0/24")}})
	if now := l.table(t); now != before {
		t.Fatalf("connected, the table is\n%s\nbefore\n%s", now, before)
	}
	l.ns.IP(t, "route prepend "+conflict)
	e.e.Wake("test")
	select {
	case <-slipped:
	case <-time.After(patience):
		t.Fatal("the conflict was not found")
	}
	_ = e.stop() // the dead give nothing back
	if now := l.table(t); now == before {
		t.Error("the kernel deletes no other route than it is told to: this proves nothing")
	}
	if err := m.journal.Close(); err != nil {
		t.Error(err)
	}
	j := l.journal(t, dir)
	if _, err := enforce.Recover(t.Context(), l.sys, j, enforce.Options{}); err != nil {
		t.Error(err)
	}
	if left, err := j.Load(); err != nil || len(left) > 0 {
		t.Errorf("the journal keeps %v, %v", left, err)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
	if after := l.table(t); after != before {
		t.Errorf("after\n%s\nbefore\n%s", after, before)
	}
}
