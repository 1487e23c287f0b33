package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
	"github.com/culvert-project/culvert/cmd/culvert/internal/openvpn"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// stateEngine opens every session in one state.
type stateEngine struct {
	*fakeEngine
	state enforce.State
	last  enforce.Session
}

func (e *stateEngine) Open(_ context.Context, s enforce.Session) (enforce.SessionStatus, error) {
	e.last = s
	return enforce.SessionStatus{Tunnel: s.Tunnel, State: e.state, Protected: s.Protect}, nil
}

func (e *stateEngine) Sessions(context.Context) ([]enforce.Session, error) {
	return []enforce.Session{e.last}, nil
}

func (e *stateEngine) Leave(_ context.Context, tunnel string) (enforce.SessionStatus, error) {
	if tunnel != e.last.Tunnel {
		return enforce.SessionStatus{}, enforce.ErrNoSession
	}
	return enforce.SessionStatus{Tunnel: tunnel, State: enforce.Restored, Restored: 2}, nil
}

func TestHook(t *testing.T) {
	env := map[string]string{
		"dev": "tun0", "ifconfig_local": "10.8.0.2", "ifconfig_netmask": "255.255.255.0",
		"trusted_ip": "198.51.100.7", "trusted_port": "1194", "proto_1": "udp",
	}
	e := &stateEngine{fakeEngine: newFakeEngine()}
	socket, _, _ := runDaemon(t, e)
	run := func(script, dev string) string {
		env["script_type"], env["dev"] = script, dev
		call, err := openvpn.Read(func(name string) string { return env[name] })
		if err != nil {
			t.Fatal(err)
		}
		var out, warn strings.Builder
		h := hook{call: call, socket: socket, out: &out, warn: &warn}
		if err := h.run(context.Background()); err != nil {
			return "error: " + err.Error()
		}
		return out.String() + warn.String()
	}
	tests := []struct {
		script, dev string
		state       enforce.State
		want        string
	}{
		{"up", "tun0", enforce.Enforcing, "tun0: enforcing 10.8.0.0/24; 0 conflicting routes removed\n"},
		{"route-up", "tun0", enforce.Enforcing, "tun0: enforcing 10.8.0.0/24; 0 conflicting routes removed\n"},
		{"route-pre-down", "tun0", "", "tun0: restored; 2 routes given back\n"},
		{"down", "tun9", "", ""},
		{"up", "tun0", enforce.Auditing, "error: auditing, not enforcing"},
		{"up", "tun0", enforce.Reconnecting, "error: reconnecting, not enforcing"},
	}
	for _, tt := range tests {
		e.state = tt.state
		if got := run(tt.script, tt.dev); got != tt.want {
			t.Errorf("%s of %s, %s: got %q, want %q", tt.script, tt.dev, tt.state, got, tt.want)
		}
	}
	if len(e.last.Servers) != 2 || e.last.Rearm || !e.last.Hook {
		t.Errorf("asked for %+v", e.last)
	}
}

// TestHookResolves: up resolves the servers that are names, for a bounded time, and
// route-up asks the daemon for what up found.
func TestHookResolves(t *testing.T) {
	env := map[string]string{
		"dev": "tun0", "ifconfig_local": "10.8.0.2", "ifconfig_netmask": "255.255.255.0",
		"trusted_ip": "198.51.100.7", "trusted_port": "1194",
		"remote_1": "one.example", "remote_port_1": "1194", "proto_1": "udp",
		"remote_2": "two.example", "remote_port_2": "443", "proto_2": "tcp-client",
		"remote_3": "never.example", "remote_port_3": "443", "proto_3": "tcp-client",
	}
	e := &stateEngine{fakeEngine: newFakeEngine(), state: enforce.Enforcing}
	socket, _, _ := runDaemon(t, e)
	asked := 0
	for _, script := range []string{"up", "route-up"} {
		env["script_type"] = script
		call, err := openvpn.Read(func(name string) string { return env[name] })
		if err != nil {
			t.Fatal(err)
		}
		var out, warn strings.Builder
		var mu sync.Mutex
		h := hook{call: call, socket: socket, out: &out, warn: &warn, resolve: func(ctx context.Context, _, name string) ([]netip.Addr, error) {
			mu.Lock()
			asked++
			mu.Unlock()
			if name == "two.example" {
				return []netip.Addr{netip.MustParseAddr("203.0.113.2")}, nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		if err := h.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(e.last.Servers); !strings.Contains(got, "198.51.100.7:1194/udp") || !strings.Contains(got, "203.0.113.2:443/tcp") {
			t.Errorf("%s: servers %s", script, got)
		}
		if script == "up" && !strings.Contains(warn.String(), "never.example is not resolved") {
			t.Errorf("%s: warned %s", script, warn.String())
		}
	}
	if asked != 3 {
		t.Errorf("%d questions, want 3: route-up asks no resolver", asked)
	}
}

// TestHookKeepsOverRestart: a restart of OpenVPN is told, and ends nothing.
func TestHookKeepsOverRestart(t *testing.T) {
	e := &stateEngine{fakeEngine: newFakeEngine(), state: enforce.Enforcing}
	socket, _, _ := runDaemon(t, e)
	env := map[string]string{"dev": "tun0", "script_type": "down", "script_context": "init", "signal": "ping-restart"}
	call, err := openvpn.Read(func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	e.last.Tunnel = "tun0" // Leave would tell of two routes
	if err := (&hook{call: call, socket: socket, out: &out, warn: &out}).run(t.Context()); err != nil || out.String() != "tun0: OpenVPN restarts (\"ping-restart\"); the session stays\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

// tableSystem is a table to read and nothing else.
type tableSystem struct {
	enforce.System
	routes []plan.Route
	err    error
}

func (s tableSystem) Table(context.Context) iter.Seq2[plan.Route, error] {
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

func TestMarkStanding(t *testing.T) {
	const tun, eth = 7, 2
	gateway := netip.MustParseAddr("192.168.1.1")
	pfx := netip.MustParsePrefix
	routes := []openvpn.Route{
		{N: 1, Prefix: pfx("10.1.0.0/16")},
		{N: 2, Prefix: pfx("10.2.0.0/16"), Gateway: gateway, Excluded: true},
		{N: 3, Prefix: pfx("10.3.0.0/16")},
		{N: 4, Prefix: pfx("10.4.0.0/16")},
		{N: 5, Prefix: pfx("10.5.0.0/16"), Gateway: gateway, Excluded: true},
		{N: 6, Prefix: pfx("10.6.0.0/16")},
	}
	table := []plan.Route{
		{Dst: pfx("10.1.0.0/16"), Hop: plan.Hop{Link: tun}},
		{Dst: pfx("10.2.0.0/16"), Hop: plan.Hop{Link: eth, Via: gateway}},
		{Dst: pfx("10.3.0.0/16"), Hop: plan.Hop{Link: tun}, Origin: plan.Own}, // OpenVPN may have been refused
		{Dst: pfx("10.4.0.0/16"), Hop: plan.Hop{Link: eth}},                   // a rival
		{Dst: pfx("10.5.0.0/16"), Hop: plan.Hop{Link: tun}},                   // no longer around the tunnel
	}
	left := func(sys enforce.System) string {
		h := hook{call: openvpn.Call{Routes: slices.Clone(routes)}}
		h.markStanding(context.Background(), sys, tun)
		var out []string
		for _, r := range h.call.Routes {
			out = append(out, r.Prefix.String())
		}
		return strings.Join(out, " ")
	}
	if got, want := left(tableSystem{routes: table}), "10.1.0.0/16 10.2.0.0/16 10.3.0.0/16 10.4.0.0/16"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	all := "10.1.0.0/16 10.2.0.0/16 10.3.0.0/16 10.4.0.0/16 10.5.0.0/16 10.6.0.0/16"
	if got := left(tableSystem{routes: table, err: errors.New("interrupted")}); got != all {
		t.Errorf("a table that cannot be read: got %s", got)
	}
	if got := left(tableSystem{}); got != all {
		t.Errorf("an empty table: got %s", got)
	}
}

// TestStatusOverTheSocket goes the whole way from engine to exit code.
func TestStatusOverTheSocket(t *testing.T) {
	socket, _, _ := runDaemon(t, newFakeEngine())
	var out, warn strings.Builder
	if code := execute([]string{"status", "--socket", socket}, &out, &warn); code != exitWrong || out.String() != "nothing is enforced: no session is open\n\npackets: not watched: a test\n" {
		t.Errorf("exit code %d\n%s%s", code, out.String(), warn.String())
	}
	out.Reset()
	code := execute([]string{"down", "--tunnel", "tun0", "--socket", socket}, &out, &warn)
	if code != exitWrong || !strings.Contains(warn.String(), "tun0: no session; \"culvert status\" lists the open ones") {
		t.Errorf("exit code %d\n%s%s", code, out.String(), warn.String())
	}
	out.Reset()
	if code := execute([]string{"up", "--tunnel", "tun0", "--protect", "10.0.0.0/8", "--socket", socket}, &out, &warn); code != exitOK {
		t.Errorf("exit code %d\n%s%s", code, out.String(), warn.String())
	}
	if _, err := control.Ask(context.Background(), socket, control.Request{Op: "dance"}); exitCode(err) != exitUsage {
		t.Errorf("unknown operation: %v", err)
	}
}
