package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce/plan"
)

// TestAnotherWish: whatever of a session is asked anew makes it another.
func TestAnotherWish(t *testing.T) {
	one := []netip.Prefix{pfx("10.0.0.0/8")}
	for i, change := range []func(*Session){
		func(s *Session) { s.Tunnel = "tun1" }, func(s *Session) { s.Rearm = true }, func(s *Session) { s.OtherFamily = "reject" },
		func(s *Session) { s.Protect = one }, func(s *Session) { s.Exclude = one }, func(s *Session) { s.OtherTable = one },
		func(s *Session) { s.Servers = []Server{{Proto: "udp"}} }, func(s *Session) { s.ServerFrom = []string{"uid:0"} },
		func(s *Session) { s.ExcludeInterfaces = []string{"docker0"} },
	} {
		was := Session{Tunnel: "tun0"}
		now := was
		if change(&now); equalWish(was, now) || equalWish(now, was) || !equalWish(now, now) {
			t.Errorf("change %d of %+v is none", i, now)
		}
		s := &session{Session: was}
		if s.become(was); !s.tally.changed.IsZero() {
			t.Error("the same wish again is a change")
		}
		if s.become(now); s.tally.changed.IsZero() || !equalWish(s.Session, now) {
			t.Errorf("change %d is not noted", i)
		}
	}
}

// TestAnotherPolicy: what makes another policy of a session, and what may be a conflict
// by it that was none before.
func TestAnotherPolicy(t *testing.T) {
	one := []netip.Prefix{pfx("10.0.0.0/8")}
	for i, c := range []struct {
		change func(*plan.Session)
		grows  bool
	}{
		{func(s *plan.Session) { s.Tunnel = 9 }, true}, {func(s *plan.Session) { s.TunnelUp = true }, false}, {func(s *plan.Session) { s.Mute6 = true }, false},
		{func(s *plan.Session) { s.Protect = one }, true}, {func(s *plan.Session) { s.Exclude = one }, true}, {func(s *plan.Session) { s.KeepLinks = []uint32{8} }, true},
		{func(s *plan.Session) { s.Servers = []netip.Addr{one[0].Addr()} }, true}, {func(s *plan.Session) { s.Reject = one }, true}, {func(s *plan.Session) { s.OtherTable = one }, false},
	} {
		was := plan.Session{Tunnel: vpn}
		now := was
		if c.change(&now); equalSession(was, now) || !equalSession(now, now) {
			t.Errorf("change %d is none: %+v", i, now)
		}
		if got := grew(plan.Spec{Sessions: []plan.Session{was}}, plan.Spec{Sessions: []plan.Session{was, now}}); got != c.grows {
			t.Errorf("change %d: grew %t", i, got)
		}
	}
}

// TestNewInterfaceIsMet: the edge path knows of an interface once it was looked at, and
// not of one that went, though they are as many.
func TestNewInterfaceIsMet(t *testing.T) {
	e, _ := protecting(t)
	before := e.view.Load()
	if e.meetLinks(); e.view.Load() != before {
		t.Error("the same interfaces make another view")
	}
	e.facts.Links[0].Index = 9
	e.meetLinks()
	if v := e.view.Load(); !v.links[9] || v.links[lan] || !before.links[lan] {
		t.Errorf("known: %v", v.links)
	}
	e.facts.Links = append(e.facts.Links, plan.Link{Index: lan})
	if e.meetLinks(); !e.view.Load().links[lan] {
		t.Error("one more is not known")
	}
}

// TestWhoseSession: a tunnel that is away has no place in the policy, and guards without
// an interface are told apart by their places.
func TestWhoseSession(t *testing.T) {
	e, s := protecting(t)
	away, guard, second := &session{}, &session{link: noLink}, &session{link: noLink}
	e.sessions = []*session{away, guard, s, second}
	for place, want := range []*session{guard, s, second} {
		if got := e.sessionAt(place, want.link); got != want {
			t.Errorf("place %d is not its session's", place)
		}
	}
	if e.sessionAt(7, vpn) != s || e.sessionAt(0, vpn) != s || e.sessionAt(7, 77) != nil || e.sessionOn(0) != nil {
		t.Error("the interface tells whose it is where the place does not")
	}
	e.closing = away
	in, out := route("172.31.5.0/24", "192.168.1.66"), route("203.0.113.0/24", "192.168.1.66")
	if e.sessionFor(&in) != s || e.sessionFor(&out) != away {
		t.Error("whose a route is")
	}
}

// TestAwaited: what the configuration says of a tunnel is waited for once a connection
// has ended, the interface is gone and no session is there, and never otherwise.
func TestAwaited(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(*Enforcer)
		want int
	}{
		"gone":                {func(*Enforcer) {}, 1},
		"it has not ended":    {func(e *Enforcer) { clear(e.waits) }, 0},
		"it is there still":   {func(e *Enforcer) { e.facts.Links = []plan.Link{{Index: 7, Name: "wg0"}} }, 0},
		"a session is open":   {func(e *Enforcer) { e.sessions = []*session{{Session: Session{Tunnel: "wg0"}}} }, 1},
		"another's interface": {func(e *Enforcer) { e.facts.Links = []plan.Link{{Index: 7, Name: "wg1"}} }, 1},
	} {
		e, _ := protecting(t)
		e.sessions, e.own, e.waits["wg0"] = nil, []Session{{Tunnel: "wg0", Rearm: true}}, true
		c.set(e)
		had := e.waits["wg0"]
		if e.await(); len(e.sessions) != c.want || e.waits["wg0"] != (had && (c.want == 0 || name == "a session is open")) {
			t.Errorf("%s: %d sessions, waits %v", name, len(e.sessions), e.waits)
		}
		if name == "gone" && (e.sessions[0].state != Connecting || !e.sessions[0].Rearm) {
			t.Errorf("%+v", e.sessions[0])
		}
	}
	e, s := protecting(t)
	e.own = []Session{{Tunnel: "tun0"}}
	if e.forgetHook(s); len(s.Protect) == 0 {
		t.Error("what a hand opened is forgotten")
	}
	s.asked = Session{Tunnel: "tun0", Hook: true}
	if e.forgetHook(s); len(s.Protect) != 0 || s.asked.Hook {
		t.Errorf("what a hook told of a connection that is gone: %+v", s)
	}
}

// TestSpeaks6: by which interface IPv6 can leave beside the tunnel.
func TestSpeaks6(t *testing.T) {
	has := plan.Link{Index: 9, Name: "wifi", Up: true, Addrs: []netip.Prefix{pfx("192.168.7.2/24"), pfx("fe80::9/64")}}
	for name, c := range map[string]struct {
		set  func(*plan.Link)
		want bool
	}{
		"it has an address": {func(*plan.Link) {}, true}, "it is the tunnel": {func(l *plan.Link) { l.Index = vpn }, false},
		"it is down": {func(l *plan.Link) { l.Up = false }, false}, "it is muted": {func(l *plan.Link) { l.Mute6 = true }, false},
		"IPv4 alone": {func(l *plan.Link) { l.Addrs = l.Addrs[:1] }, false}, "itself alone": {func(l *plan.Link) { l.Addrs = []netip.Prefix{pfx("::1/128")} }, false},
	} {
		e, s := protecting(t)
		l := has
		c.set(&l)
		e.facts.Links = append(e.facts.Links, l)
		if got := e.speaks6(vpn) != nil; got != c.want {
			t.Errorf("%s: %t", name, got)
		}
		s.mute6, s.Protect, s.OtherTable = true, []netip.Prefix{pfx("10.0.0.0/8"), pfx("fd31::/32"), pfx("fd32::/32")}, []netip.Prefix{pfx("fd32::/32")}
		if got := fmt.Sprint(s.muted()); got != "[fd31::/32]" {
			t.Errorf("muted are %s", got)
		}
		first := errors.New("first")
		s.err = first
		if e.judgeMute(); s.err != first {
			t.Errorf("%s: it says %v", name, s.err)
		}
		s.err = nil
		if e.judgeMute(); (s.err != nil) != c.want {
			t.Errorf("%s: %v", name, s.err)
		}
		if s.mute6 = false; s.muted() != nil {
			t.Error("a tunnel with IPv6 is muted")
		}
	}
}

// TestServersAreAsked: only of a full tunnel that is there and knows none, or whose
// interface came anew; without an answer such a session has failed, and says why.
func TestServersAreAsked(t *testing.T) {
	found := []Server{{Addr: netip.MustParseAddrPort("198.51.100.7:51820"), Proto: "udp"}}
	other := []Server{{Addr: netip.MustParseAddrPort("203.0.113.9:51820"), Proto: "udp"}}
	for name, c := range map[string]struct {
		set     func(*session)
		answer  []Server
		err     error
		servers []Server
		failed  string
	}{
		"it tells":             {func(*session) {}, found, nil, found, ""},
		"it does not":          {func(*session) {}, nil, nil, nil, "is a full tunnel, and needs --server"},
		"it cannot be asked":   {func(*session) {}, nil, errors.New("no netlink"), nil, "its own settings cannot be read: no netlink"},
		"it was told":          {func(s *session) { s.Servers = other }, found, nil, other, ""},
		"found before":         {func(s *session) { s.Servers, s.ServersFound = other, true }, found, nil, other, ""},
		"found before, anew":   {func(s *session) { s.Servers, s.ServersFound, s.unasked = other, true, true }, found, nil, found, ""},
		"anew, and no answer":  {func(s *session) { s.Servers, s.ServersFound, s.unasked = other, true, true }, nil, nil, other, ""},
		"it is away":           {func(s *session) { s.link = 0 }, found, nil, nil, ""},
		"the guard holds":      {func(s *session) { s.loss = true }, found, nil, nil, ""},
		"it is no full tunnel": {func(s *session) { s.Protect = s.Protect[:1] }, found, nil, nil, ""},
	} {
		e, s := protecting(t)
		e.opt.Endpoints = func(context.Context, string) ([]Server, error) { return c.answer, c.err }
		s.Protect = []netip.Prefix{pfx("0.0.0.0/1"), pfx("128.0.0.0/1")}
		c.set(s)
		was := s.Servers
		e.completeServers(t.Context())
		if !slices.Equal(s.Servers, c.servers) || (s.err != nil) != (c.failed != "") || s.err != nil && !strings.Contains(s.err.Error(), c.failed) {
			t.Errorf("%s: %v, %v", name, s.Servers, s.err)
		}
		if e.unkept == slices.Equal(was, s.Servers) {
			t.Errorf("%s: to be kept: %t", name, e.unkept)
		}
	}
	s := &session{Session: Session{Servers: found, ServersFound: true}, asked: Session{Tunnel: "tun0"}}
	if got := s.wish(); !slices.Equal(got.Servers, found) || !got.ServersFound {
		t.Errorf("what was found is not kept: %+v", got)
	}
	if s.ServersFound = false; len(s.wish().Servers) != 0 {
		t.Error("what a configuration says is kept as asked for")
	}
	if s.ServersFound, s.asked.Servers = true, other; !slices.Equal(s.wish().Servers, other) || s.wish().ServersFound {
		t.Error("what was asked for is not what is kept")
	}
}

// TestIdentities: when an interface is another than it was, watched or not.
func TestIdentities(t *testing.T) {
	was := LinkID{Index: 2, Name: "eth0", HW: "02"}
	for _, c := range []struct {
		is                *plan.Link
		replaced, another bool
	}{
		{nil, false, true}, {&plan.Link{Name: "eth0", HW: "02"}, false, false}, {&plan.Link{Name: "eth1", HW: "02"}, false, true},
		{&plan.Link{Name: "eth0", HW: "03"}, false, true}, {&plan.Link{Name: "eth1", HW: "03"}, true, true},
	} {
		if r, a := replaced(was, c.is), isAnother(was, c.is); r != c.replaced || a != c.another {
			t.Errorf("%+v: replaced %t, another %t", c.is, r, a)
		}
	}
	four, four2, six := route("172.31.5.0/24", "192.168.1.66"), route("172.31.6.0/24", "192.168.1.67"), plan.Route{Dst: pfx("fd31::/48"), Hop: plan.Hop{Link: lan}}
	legs := four.WithHops(four.Hop, plan.Hop{Link: vpn})
	if !sameWay(&four, &four2) || sameWay(&four, &six) || sameWay(&four, &legs) || sameWay(&legs, &four) || sameWay(&four, &plan.Route{Dst: four.Dst, Hop: plan.Hop{Link: vpn}}) {
		t.Error("which routes lead the same way")
	}
}

// TestLegsOfStrangers: of a held IPv6 route of several legs those stay whose interfaces
// are what they were; any other goes whole.
func TestLegsOfStrangers(t *testing.T) {
	six := plan.Route{Dst: pfx("fd31:5::/48"), Protocol: 3, Metric: 1024}
	legs := six.WithHops(plan.Hop{Link: lan, Via: netip.MustParseAddr("fd01::66")}, plan.Hop{Link: 9, Via: netip.MustParseAddr("fd09::66")})
	four := route("172.31.5.0/24", "192.168.1.66")
	object := legs
	object.NexthopID = 4
	links := []LinkID{{Index: lan, Name: "eth0"}, {Index: 9, Name: "wifi"}}
	for name, c := range map[string]struct {
		r     plan.Route
		links []LinkID
		left  string
	}{
		"one of two":       {legs, links, "fd31:5::/48 via fd01::66 dev eth0 proto 3 metric 1024"},
		"both":             {legs, []LinkID{{Index: lan, Name: "en0"}, links[1]}, ""},
		"none":             {legs, links[:1], "fd31:5::/48 nexthop via fd01::66 dev eth0 nexthop via fd09::66 dev wifi proto 3 metric 1024"},
		"IPv4":             {four.WithHops(four.Hop, plan.Hop{Link: 9}), links, ""},
		"a nexthop object": {object, links, ""},
		"one leg":          {six.WithHops(plan.Hop{Link: 9}), links[1:], ""},
	} {
		e, _ := protecting(t)
		e.facts.Links = append(e.facts.Links, plan.Link{Index: 9, Name: "another"})
		e.names[9] = "wifi"
		e.held.add(Entry{ID: 3, Route: c.r, Links: c.links})
		e.lastID = 3
		e.dropStrangers(func(was LinkID, is *plan.Link) bool { return is == nil || was.Name != is.Name })
		left := ""
		for h := range e.held.all() {
			left += e.text(&h.Route)
			if (h.ID == 3) != (name == "none") || len(h.Links) != 1 {
				t.Errorf("%s: %d, by %v", name, h.ID, h.Links)
			}
		}
		if left != c.left {
			t.Errorf("%s: left is %q, want %q", name, left, c.left)
		}
	}
}

// TestHeldWithItsInterfaces: each route is written down with those that it leads by.
func TestHeldWithItsInterfaces(t *testing.T) {
	e, _ := protecting(t)
	four := route("172.31.5.0/24", "192.168.1.66")
	other := plan.Route{Dst: pfx("172.31.7.0/24"), Hop: plan.Hop{Link: vpn}}
	list := []holding{{route: four}, {route: route("172.31.6.0/24", "192.168.1.67")}, {route: other}, {route: four.WithHops(four.Hop, other.Hop)}, {route: four}}
	for _, placed := range []bool{true, false} {
		ids, err := e.hold(list, placed)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, id := range ids {
			for _, l := range e.held.get(id).Links {
				got = append(got, l.Name)
			}
			got = append(got, "|")
		}
		if text := strings.Join(got, " "); text != "eth0 | eth0 | tun0 | eth0 tun0 | eth0 |" {
			t.Errorf("placed %t: %s", placed, text)
		}
	}
}
