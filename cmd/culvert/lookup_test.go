package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// readSystem is a system that can only be read.
type readSystem struct {
	enforce.System
	routes []plan.Route
	links  []plan.Link
	err    error // of the reading of the table, at its end
}

func (s *readSystem) Facts(context.Context) (enforce.Facts, error) {
	return enforce.Facts{Links: s.links}, nil
}

func (s *readSystem) Table(context.Context) iter.Seq2[plan.Route, error] {
	return func(yield func(plan.Route, error) bool) {
		for _, r := range s.routes {
			if !yield(r, nil) {
				return
			}
		}
		if s.err != nil {
			yield(plan.Route{}, s.err)
		}
	}
}

func TestLookupIn(t *testing.T) {
	route := func(dst string, link, metric uint32) plan.Route {
		return plan.Route{Dst: netip.MustParsePrefix(dst), Hop: plan.Hop{Link: link}, Metric: metric}
	}
	dead := route("10.1.2.0/24", 6, 0)
	dead.Dead = true
	cut := route("10.7.0.0/16", 0, 0)
	cut.Type = plan.Blackhole
	sys := &readSystem{
		links:  []plan.Link{{Index: 7, Name: "utun3", Addrs: []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24")}}},
		routes: []plan.Route{route("0.0.0.0/1", 2, 5), route("10.0.0.0/8", 3, 50), route("10.0.0.0/8", 4, 20), route("10.0.0.0/8", 5, 20), dead, cut, route("2001:db8::/32", 7, 0)},
	}
	for dst, want := range map[string]string{
		"9.9.9.9":     "unicast 0.0.0.0/1 2 <nil>",
		"10.1.2.3":    "unicast 10.0.0.0/8 4 <nil>",
		"10.7.0.1":    "blackhole 10.7.0.0/16 0 <nil>",
		"10.8.0.2":    "local 10.8.0.2/32 7 <nil>",
		"10.8.0.3":    "unicast 10.0.0.0/8 4 <nil>",
		"2001:db8::1": "unicast 2001:db8::/32 7 <nil>",
		"200.0.0.1":   "unicast invalid Prefix 0 no route",
		"::1":         "unicast invalid Prefix 0 no route",
	} {
		a, err := lookupIn(context.Background(), sys, query{dst: netip.MustParseAddr(dst)})
		got := fmt.Sprintf("%s %s %d %v", a.route.Type, a.route.Dst, a.route.Hop.Link, a.refused)
		if err != nil || got != want {
			t.Errorf("%s: got %s, %v; want %s", dst, got, err, want)
		}
	}
	sys.err = errors.New("torn")
	if _, err := lookupIn(context.Background(), sys, query{dst: netip.MustParseAddr("10.1.2.3")}); !errors.Is(err, sys.err) {
		t.Errorf("a table that cannot be read: %v", err)
	}
}
