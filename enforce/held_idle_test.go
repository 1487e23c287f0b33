package enforce

import (
	"net/netip"
	"testing"

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
