package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
)

func sampleStatus() report.Status {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	leak := sampleFinding(at)
	return report.Status{
		Leaks: &report.Leaks{Totals: leak.Totals, Interfaces: []report.Interface{
			{Interface: "eth0", Totals: leak.Totals, By: []report.Finding{leak}}}},
		Witness: report.Witness{Mode: report.Count, Gap: "no netfilter links", Interfaces: []report.Watched{
			{Interface: "eth0", Mode: "tcx"}, {Interface: "tun0", Mode: "tunnel"}, {Interface: "docker0", Mode: "tcx", Gap: 312}}},
		Sessions: []report.Session{{Leaks: &report.Leaks{Totals: leak.Totals, By: []report.Finding{leak}}, SessionStatus: enforce.SessionStatus{
			Tunnel: "tun0", State: enforce.Enforcing,
			Protected: []netip.Prefix{netip.MustParsePrefix("172.31.0.0/16"), netip.MustParsePrefix("fd00:31::/48"), netip.MustParsePrefix("10.8.0.0/24")},
			Excluded:  []netip.Prefix{netip.MustParsePrefix("172.31.99.0/24")},
			Removed:   7, Readded: 1, Restored: 0,
			Held:          []enforce.HeldRoute{{Route: "172.31.1.0/24 via 192.168.1.1 dev eth0 proto static", Since: at}},
			Contested:     []enforce.Contest{{Route: "172.31.2.0/24 via 192.168.1.1 dev eth0", Times: 6, By: enforce.Adder{Protocol: "dhcp", Port: 812, Process: "dhclient"}}},
			Unenforceable: []string{"rule 100: from all lookup 77 is asked before main, and table 77 takes protected addresses by 172.31.6.0/24 dev eth0 (IPv4)"},
			Notes:         []string{"172.31.5.1 is this host's own address on docker0"},
		}}, {SessionStatus: enforce.SessionStatus{
			Tunnel: "wg0", State: enforce.Failed, Error: "remove 10.0.0.0/9: operation not permitted",
			Protected: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		}}},
		Incidents: []report.Incident{{Exposure: &report.Exposure{
			Totals:  report.Totals{Packets: 3, Bytes: 318},
			Senders: []report.Sender{{Process: "curl", PID: 4711, UID: 1000, Cgroup: "/user.slice", Origin: "socket", Totals: report.Totals{Packets: 3, Bytes: 318}}},
		}, Incident: enforce.Incident{
			ID: 1, Tunnel: "tun0", What: "removed", Route: "172.31.2.0/24 via 192.168.1.1 dev eth0",
			Reason: "longer than 172.31.0.0/16, leaves by eth0",
			By:     enforce.Adder{Protocol: "dhcp", Port: 812, Process: "dhclient"},
			Seen:   at, Gone: at.Add(184 * time.Microsecond), Exposed: 184, Path: "edge",
		}}, {Exposure: &report.Exposure{Senders: []report.Sender{}}, Incident: enforce.Incident{
			ID: 2, Tunnel: "wg0", What: "failed", Route: "10.0.0.0/9 dev eth0", Reason: "longer than 10.0.0.0/8, leaves by eth0",
			By: enforce.Adder{Protocol: "boot"}, Seen: at, Path: "level", Error: "operation not permitted",
		}}},
	}
}

func sampleFinding(at time.Time) report.Finding {
	return report.Finding{
		Sender: report.Sender{Process: "curl", PID: 4711, UID: 1000, Cgroup: "/user.slice", Origin: "socket",
			Totals: report.Totals{Packets: 12, Bytes: 1176, Dropped: 2}},
		Tunnel: "tun0", Prefix: "172.31.0.0/16", To: "172.31.1.10:443", Interface: "eth0",
		Mechanism: report.Bound, Why: "SO_BINDTODEVICE eth0", First: at, Last: at.Add(time.Second),
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
	empty := report.Status{Witness: report.Witness{Mode: report.Off, Reason: "a test"}}
	err := errors.Join(showStatus(&text, empty, false), showStatus(&doc, empty, true))
	if exitCode(err) != exitWrong || text.String() != "nothing is enforced: no session is open\n\npackets: not watched: a test\n" ||
		!strings.HasPrefix(doc.String(), "{\n  \"version\": 1,\n  \"sessions\": [],\n  \"totals\": {\n    \"removed\": 0,\n    \"readded\": 0,\n    \"restored\": 0,\n    \"withdrawn\": 0\n  },\n  \"incidents\": [],\n  \"witness\": {\n") {
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
		s.Notes = append(s.Notes, fmt.Sprint(i))
		st.Incidents = append(st.Incidents, report.Incident{Incident: enforce.Incident{Route: fmt.Sprint(i)}})
	}
	var b bytes.Buffer
	if err := showStatus(&b, st, false); err != nil {
		t.Error(err)
	}
	if strings.Count(b.String(), "\n  and 997 more") != strings.Count(b.String(), `more: "culvert status --json"`) || !strings.Contains(b.String(), "more:") {
		t.Errorf("cut without saying where the rest is:\n%s", &b)
	}
	if n := strings.Count(b.String(), "\n"); n > 45 {
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

// TestStatusRight: sessions that are all enforcing are not enough.
func TestStatusRight(t *testing.T) {
	st := report.Status{Sessions: []report.Session{{SessionStatus: enforce.SessionStatus{State: enforce.Enforcing}}}}
	if err := showStatus(io.Discard, st, false); err != nil {
		t.Error(err)
	}
	st.Witness.Error = "not pinned"
	if err := showStatus(io.Discard, st, true); exitCode(err) != exitWrong {
		t.Errorf("a witness that is not as it should be: %v", err)
	}
}

func TestWitnessLine(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	none, some := &report.Leaks{}, &report.Leaks{Totals: report.Totals{Packets: 2, Bytes: 180, Dropped: 2}}
	tests := []struct {
		st   report.Status
		want string
	}{
		{report.Status{Witness: report.Witness{Mode: report.Off, Reason: "x"}}, "\npackets: not watched: x\n"},
		{report.Status{Leaks: none, Witness: report.Witness{Mode: report.Count}}, "\npackets: none has leaked; leaks are counted\n"},
		{report.Status{Leaks: some, Witness: report.Witness{Mode: report.Drop, Holding: []string{"tun0", "wg0"}, Until: at}},
			"\npackets: 2 packets (180 bytes) tried to leak, all dropped (\"culvert leaks\" tells who); leaks are dropped; guarding while tun0, wg0 is away; until 05:06:07 if nothing renews it\n"},
		{report.Status{Leaks: none, Witness: report.Witness{Mode: report.Drop, Error: "no memory", Unwatched: 1, Senders: "no cgroup"}},
			"\npackets: none has leaked; leaks are dropped; 1 interfaces not watched; senders known in part: no cgroup\npackets: NOT AS IT SHOULD BE: no memory\n"},
	}
	tests = append(tests, struct {
		st   report.Status
		want string
	}{report.Status{
		Sessions: []report.Session{{SessionStatus: enforce.SessionStatus{Tunnel: "tun0"}, OnLeak: report.Off}, {OnLeak: report.Drop}},
		Leaks:    none,
		Witness: report.Witness{Mode: report.Count, Asked: report.Drop, Error: "no memory",
			Interfaces: []report.Watched{{Interface: "eth0", Displaced: 3, By: "program 7 (beyla)"}}},
	}, "\npackets: none has leaked, but those of tun0 are NOT WATCHED; leaks are counted, NOT DROPPED as was asked" +
		"; on eth0 another program was put before culvert's 3 times, and culvert's first again (program 7 (beyla))\npackets: NOT AS IT SHOULD BE: no memory\n"})
	for _, tt := range tests {
		var b strings.Builder
		printWitness(&b, &tt.st)
		if b.String() != tt.want {
			t.Errorf("got %q, want %q", b.String(), tt.want)
		}
	}
}

func TestLeaks(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	f, g, h := sampleFinding(at), sampleFinding(at), sampleFinding(at)
	g.Sender = report.Sender{UID: -1, Origin: "forwarded", Ingress: "docker0", Source: "172.17.0.2", Totals: report.Totals{Packets: 5, Bytes: 500}}
	g.Mechanism, g.Why = report.Rule, "rule 100: from all iif docker0 lookup 100, 172.31.0.0/16 dev eth0"
	h.Sender = report.Sender{UID: -1, Origin: "unowned", Totals: report.Totals{Packets: 1, Bytes: 60}}
	h.Mechanism, h.Why, h.Incident = report.InFlight, "no route leads there now", 3
	doc := leaksDoc{1, &report.Leaks{Totals: report.Totals{Packets: 18, Bytes: 1736, Dropped: 2}, By: []report.Finding{f, g, h}}, report.Witness{Mode: report.Count}}
	var b bytes.Buffer
	if err := showLeaks(&b, doc, false); exitCode(err) != exitWrong {
		t.Errorf("leaks that got out: %v", err)
	}
	for i, x := range []*report.Finding{&f, &g, &h} {
		_ = showEvent(&b, report.Event{Time: at.Add(time.Duration(i) * time.Second), Kind: "leak", Leak: x})
	}
	_ = showEvent(&b, report.Event{Time: at, Kind: "lost", Lost: 7})
	golden(t, "leaks.txt", b.String())
	for _, tt := range []struct {
		leaks *report.Leaks
		code  int
		want  string
	}{
		{nil, exitWrong, "packets are not watched: x\n"},
		{&report.Leaks{}, exitOK, "no packet has leaked\n"},
		{&report.Leaks{Totals: report.Totals{Packets: 1, Bytes: 60, Dropped: 1}}, exitOK, "PACKETS  DROPPED  BYTES  WHO  TO  BY  WHY\nin all 1 packet (60 bytes) tried to leak, all dropped\n"},
	} {
		b.Reset()
		err := showLeaks(&b, leaksDoc{1, tt.leaks, report.Witness{Reason: "x"}}, false)
		if exitCode(err) != tt.code || b.String() != tt.want {
			t.Errorf("got %v, %q; want %d, %q", err, b.String(), tt.code, tt.want)
		}
	}
}
