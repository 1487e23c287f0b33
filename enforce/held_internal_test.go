package enforce

import (
	"net/netip"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

// TestStaleNewsRenewsNothing: an announcement of a route that was gone again when the
// edge path went to delete it is no newer copy of what is held.
func TestStaleNewsRenewsNothing(t *testing.T) {
	e := New(nil, noJournal{}, Options{})
	e.setPolicy(e.policy())
	held := plan.Route{Dst: netip.MustParsePrefix("172.31.5.0/24"), Protocol: 3, Hop: plan.Hop{Link: 2, Via: netip.MustParseAddr("192.168.1.66")}}
	newer := held
	newer.PrefSrc = netip.MustParseAddr("192.168.1.10")
	for _, idle := range []bool{true, false} {
		ids, err := e.hold([]holding{{route: held, first: true}}, false)
		if err != nil {
			t.Fatal(err)
		}
		e.eventRemoved(Event{Route: newer, Idle: idle, Answer: Answer{Delete: true}})
		if kept := e.held.get(ids[0]) != nil; kept != idle {
			t.Errorf("idle %v: the older copy is held: %v", idle, kept)
		}
		for h := range e.held.all() {
			e.forget(h.ID)
		}
	}
}

// TestUptimeGoesOn: between two looks at the interfaces the age of what is held grows.
func TestUptimeGoesOn(t *testing.T) {
	e := New(nil, noJournal{}, Options{})
	now := time.Now()
	if e.facts.Uptime = time.Hour; e.uptime(now) != time.Hour {
		t.Errorf("before the first look: %v", e.uptime(now))
	}
	e.lookedAt = now.Add(-10 * time.Minute)
	if got := e.uptime(now); got != 70*time.Minute {
		t.Errorf("ten minutes after a look at one hour: %v", got)
	}
	e.held.add(Entry{ID: 1, Taken: 65 * time.Minute}, Entry{ID: 2, Taken: 5 * time.Hour})
	for _, h := range e.planHeld() {
		if want := map[uint64]uint32{1: 300, 2: 0}[h.ID]; h.Age < want || h.Age > want+60 {
			t.Errorf("the age of %d is %d s, want %d", h.ID, h.Age, want)
		}
	}
}
