package witness

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/culvert-project/culvert/loader"
)

// TestKeeperReleases: at an end that keeps nothing the policy is emptied, and a failure
// of that is told. What was frozen stays.
func TestKeeperReleases(t *testing.T) {
	p := &fakeProbe{}
	k, _ := clock(p, Rules{Drop: true})
	k.protect(sessions(protected("tun0", 7, "10.0.0.0/8")))
	p.fail = errors.New("no memory")
	if err := k.release(); !errors.Is(err, p.fail) {
		t.Errorf("the failure is not told: %v", err)
	}
	p.fail = nil
	k, _ = clock(p, Rules{Drop: true})
	k.protect(sessions(protected("tun0", 7, "10.0.0.0/8")))
	if err := k.release(); err != nil || p.last() != "" {
		t.Errorf("%v, in force:\n%s", err, p.last())
	}
	k.protect(sessions(protected("tun0", 7, "10.0.0.0/8")))
	if p.last() != "" {
		t.Errorf("set after the release:\n%s", p.last())
	}
}

// TestKeeperForEver: without a limit drops have no deadline, whether tunnels stand or
// not; with one there is none while nothing is protected, and nothing to renew.
func TestKeeperForEver(t *testing.T) {
	for _, tt := range []struct {
		name string
		want Rules
		list []enforce.ProtectedSession
	}{
		{"drop", Rules{Drop: true}, []enforce.ProtectedSession{protected("tun0", 7, "10.0.0.0/8")}},
		{"guard, away", Rules{Guard: true}, []enforce.ProtectedSession{protected("tun0", 0, "10.0.0.0/8")}},
		{"nothing is protected", Rules{Guard: true, For: time.Minute}, nil},
	} {
		p := &fakeProbe{}
		k, now := clock(p, tt.want)
		k.protect(sessions(tt.list...))
		*now = start.Add(24 * time.Hour)
		if ended := k.tick(); len(ended) > 0 || len(p.sets) != 1 {
			t.Errorf("%s: ended %v, %d sets", tt.name, ended, len(p.sets))
		}
		if beat, left := p.deadlines(); beat != 0 || left != 0 {
			t.Errorf("%s: %v without a sign of the daemon, %v in all", tt.name, beat, left)
		}
	}
}

// TestKeeperHolding: the tunnels that are away are told of in order, and the last guard
// of several decides when drops end.
func TestKeeperHolding(t *testing.T) {
	p := &fakeProbe{}
	k, now := clock(p, Rules{Guard: true, For: time.Minute})
	names := []string{"wg0", "tun3", "tun1", "tun2", "tun0"}
	var list []enforce.ProtectedSession
	for i, name := range names {
		list = append(list, protected(name, 0, []string{"10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16"}[i]))
		*now = start.Add(time.Duration(i) * time.Second)
		k.protect(sessions(list...))
	}
	slices.Reverse(list)
	k.protect(sessions(list...))
	k.tick()
	if holding, _ := k.state(); !slices.Equal(holding, []string{"tun0", "tun1", "tun2", "tun3", "wg0"}) {
		t.Errorf("holding %v", holding)
	}
	if _, left := p.deadlines(); left != time.Minute {
		t.Errorf("%v are left, by the last that went", left)
	}
	if got := k.pace(); got <= 0 || got > time.Minute/4 {
		t.Errorf("a deadline of a minute is renewed each %v", got)
	}
}

// TestPolicyKnowsTheKind: the programs take nobody by a tunnel's name but what is of its
// kind, the way to its server and gateway likewise.
func TestPolicyKnowsTheKind(t *testing.T) {
	s := protected("tun0", 7, "10.0.0.0/8")
	s.Type = plan.LinkType{Kind: "tun", Frames: 65534}
	s.Servers = []enforce.Server{{Addr: netip.MustParseAddrPort("10.9.9.9:1194"), Proto: "udp"}}
	p := enforce.Protection{Sessions: []enforce.ProtectedSession{s}, Gateways: pfx("10.9.9.1/32")}
	pol := compile(p, Rules{Guard: true}, func(string) bool { return false })
	seen := 0
	for _, x := range pol.config.Prefixes {
		if x.Class == loader.Ignored || x.Class == loader.Excluded {
			continue
		}
		if seen++; x.Name != "tun0" || x.Kind != "tun" || x.Frames != 65534 {
			t.Errorf("%v: %q, %q, %d", x.Prefix, x.Name, x.Kind, x.Frames)
		}
	}
	if seen != 3 {
		t.Errorf("%d lines", seen)
	}
}

// TestJoinAdopts: what was adopted stays until Begin, and then IDs mean what they meant.
func TestJoinAdopts(t *testing.T) {
	p := &fakeProbe{status: loader.Status{Adopted: true, Guarded: "/run/guard"}}
	j, _ := joined(t, p, Rules{Guard: true})
	j.Protect(sessions(protected("tun0", 7, "172.31.0.0/16")))
	if len(p.sets) != 0 {
		t.Fatalf("set before Begin:\n%s", p.last())
	}
	j.Begin()
	if len(p.sets) != 1 || !p.sets[0].Guard {
		t.Fatalf("after Begin:\n%s", p.last())
	}
	var id uint32
	for _, x := range p.sets[0].Prefixes {
		id = max(id, x.ID)
	}
	p.mu.Lock()
	p.counters = []loader.Counter{{Interface: 2, Prefix: id, Reason: loader.LeakProtected, Packets: 3, Bytes: 300, Dropped: 3}}
	p.mu.Unlock()
	list, _, err := j.Leaks(context.Background())
	if err != nil || list.Packets != 3 || len(list.By) != 1 || list.By[0].Tunnel != "tun0" {
		t.Errorf("leaks %+v, %v", list, err)
	}
	if !j.Freeze(true) {
		t.Error("the guard ends with the daemon")
	}
}

// TestFreezeSaysWhatHolds: a guard that is not pinned ends with the process, and Freeze
// says so; without a probe there is none.
func TestFreezeSaysWhatHolds(t *testing.T) {
	var log bytes.Buffer
	freeze := func(p *fakeProbe) bool {
		opt := Options{Rules: Rules{Guard: true}, System: &fakeSystem{}, Log: slog.New(slog.NewTextHandler(&log, nil))}
		if p != nil {
			opt.Probe = p
		}
		j := New(opt)
		j.Protect(sessions(protected("tun0", 7, "10.0.0.0/8")))
		return j.Freeze(true)
	}
	if !freeze(&fakeProbe{}) {
		t.Error("a guard does not hold")
	}
	if freeze(nil) {
		t.Error("a guard without a probe")
	}
	if freeze(&fakeProbe{status: loader.Status{Unpinned: "read-only file system"}}) || !strings.Contains(log.String(), "read-only file system") {
		t.Errorf("a guard that is not pinned is said to hold: %s", log.String())
	}
}

// TestJoinCloses: the probe is closed at the end, and its failure is told.
func TestJoinCloses(t *testing.T) {
	p := &closing{err: errors.New("a pin stays")}
	j := New(Options{Probe: p, Rules: Rules{Drop: true}, System: &fakeSystem{}})
	if err := j.Close(); !errors.Is(err, p.err) || !p.closed {
		t.Errorf("closed %t: %v", p.closed, err)
	}
}

// closing is a probe that cannot be closed well.
type closing struct {
	fakeProbe
	err error
}

func (p *closing) Close() error { return errors.Join(p.fakeProbe.Close(), p.err) }

// TestJoinReportsHolding: status names the tunnels that are away; who has no probe
// promises no drops.
func TestJoinReportsHolding(t *testing.T) {
	j, _ := joined(t, &fakeProbe{}, Rules{Guard: true})
	j.Protect(sessions(protected("tun0", 0, "10.0.0.0/8")))
	st, err := j.Report(context.Background(), enforce.Status{Sessions: []enforce.SessionStatus{{Tunnel: "tun0", State: enforce.Reconnecting}}})
	if err != nil || !slices.Equal(st.Witness.Holding, []string{"tun0"}) || st.Sessions[0].State != enforce.Reconnecting {
		t.Errorf("%+v, %v", st, err)
	}
	blind, _ := joined(t, nil, Rules{Drop: true})
	one := enforce.SessionStatus{Tunnel: "tun0", State: enforce.Enforcing}
	if blind.Patch(&one); one.State != enforce.Enforcing || one.Error != "" {
		t.Errorf("%+v", one)
	}
}
