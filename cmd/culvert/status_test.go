package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
)

func sampleStatus() enforce.Status {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	return enforce.Status{
		Sessions: []enforce.SessionStatus{{
			Tunnel: "tun0", State: enforce.Enforcing,
			Protected: []netip.Prefix{netip.MustParsePrefix("172.31.0.0/16"), netip.MustParsePrefix("fd00:31::/48"), netip.MustParsePrefix("10.8.0.0/24")},
			Excluded:  []netip.Prefix{netip.MustParsePrefix("172.31.99.0/24")},
			Removed:   7, Readded: 1, Restored: 0,
			Held:          []enforce.HeldRoute{{Route: "172.31.1.0/24 via 192.168.1.1 dev eth0 proto static", Since: at}},
			Contested:     []enforce.Contest{{Route: "172.31.2.0/24 via 192.168.1.1 dev eth0", Times: 6, By: enforce.Adder{Protocol: "dhcp", Port: 812, Process: "dhclient"}}},
			Unenforceable: []string{"172.31.5.1 is this host's own address on docker0"},
		}, {
			Tunnel: "wg0", State: enforce.Failed, Error: "remove 10.0.0.0/9: operation not permitted",
			Protected: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		}},
		Incidents: []enforce.Incident{{
			ID: 1, Tunnel: "tun0", What: "removed", Route: "172.31.2.0/24 via 192.168.1.1 dev eth0",
			Reason: "longer than 172.31.0.0/16, leaves by eth0",
			By:     enforce.Adder{Protocol: "dhcp", Port: 812, Process: "dhclient"},
			Seen:   at, Gone: at.Add(184 * time.Microsecond), Exposed: 184, Path: "edge",
		}, {
			ID: 2, Tunnel: "wg0", What: "failed", Route: "10.0.0.0/9 dev eth0", Reason: "longer than 10.0.0.0/8, leaves by eth0",
			By: enforce.Adder{Protocol: "boot"}, Seen: at, Path: "level", Error: "operation not permitted",
		}},
	}
}

func TestStatusText(t *testing.T) {
	var b bytes.Buffer
	if err := showStatus(&b, sampleStatus(), false); !errors.Is(err, errQuiet) {
		t.Errorf("a failed session: %v", err)
	}
	golden(t, "status.txt", b.String())
}

func TestStatusJSON(t *testing.T) {
	var b bytes.Buffer
	if err := showStatus(&b, sampleStatus(), true); !errors.Is(err, errQuiet) {
		t.Errorf("a failed session: %v", err)
	}
	golden(t, "status.json", b.String())
}

func TestStatusEmpty(t *testing.T) {
	var text, doc bytes.Buffer
	err := errors.Join(showStatus(&text, enforce.Status{}, false), showStatus(&doc, enforce.Status{}, true))
	if exitCode(err) != exitWrong || text.String() != "nothing is enforced: no session is open\n" ||
		doc.String() != "{\n  \"version\": 1,\n  \"sessions\": [],\n  \"incidents\": []\n}\n" {
		t.Errorf("%v\n%s%s", err, &text, &doc)
	}
}

// TestStatusFitsOneScreen: however much there is to tell.
func TestStatusFitsOneScreen(t *testing.T) {
	st := sampleStatus()
	st.Sessions = st.Sessions[:1]
	for i := range 1000 {
		s := &st.Sessions[0]
		s.Held = append(s.Held, enforce.HeldRoute{Route: fmt.Sprint(i)})
		s.Contested = append(s.Contested, enforce.Contest{Route: fmt.Sprint(i)})
		s.Unenforceable = append(s.Unenforceable, fmt.Sprint(i))
		st.Incidents = append(st.Incidents, enforce.Incident{Route: fmt.Sprint(i)})
	}
	var b bytes.Buffer
	if err := showStatus(&b, st, false); err != nil {
		t.Error(err)
	}
	if n := strings.Count(b.String(), "\n"); n > 40 {
		t.Errorf("%d lines:\n%s", n, &b)
	}
}

func TestSayOpened(t *testing.T) {
	tests := []struct {
		name string
		st   enforce.SessionStatus
		ask  enforce.Session
		want string
	}{
		{"enforcing", enforce.SessionStatus{Tunnel: "tun0", State: enforce.Enforcing, Removed: 2}, enforce.Session{}, "tun0: enforcing nothing; 2 conflicting routes removed\n"},
		{"auditing", enforce.SessionStatus{Tunnel: "tun0", State: enforce.Auditing}, enforce.Session{}, "tun0: auditing nothing; nothing is changed\n"},
		{"waiting as asked", enforce.SessionStatus{Tunnel: "tun0", State: enforce.Connecting}, enforce.Session{Rearm: true}, "tun0: waiting for the interface\n"},
		{"waiting unasked", enforce.SessionStatus{Tunnel: "tun0", State: enforce.Connecting}, enforce.Session{}, "error: tun0: connecting, not enforcing"},
		{"failed", enforce.SessionStatus{Tunnel: "tun0", State: enforce.Failed, Error: "no space"}, enforce.Session{}, "error: tun0: failed: no space"},
	}
	for _, tt := range tests {
		var b strings.Builder
		if err := sayOpened(&b, tt.ask, tt.st); err != nil {
			fmt.Fprintf(&b, "error: %v", err)
		}
		if b.String() != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, b.String(), tt.want)
		}
	}
}
