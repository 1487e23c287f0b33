package witness

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/loader"
)

// lines are findings in words, in their order.
func lines(list []report.Finding) string {
	var out []string
	for _, f := range list {
		out = append(out, fmt.Sprintf("%s %s %s %s %d", f.Process, f.Interface, f.Prefix, f.To, f.Packets))
	}
	return strings.Join(out, "\n")
}

// TestFindingsInOrder: most packets first, then who was first, then by number; each with where it went.
func TestFindingsInOrder(t *testing.T) {
	b := newBook()
	b.readAt(0)
	at := func(d time.Duration) { b.now = start.Add(d) }
	at(3 * time.Millisecond)
	b.leak(5, "172.31.1.5:7", 3, bound)
	at(2 * time.Millisecond)
	b.leak(4, "172.31.1.4:7", 3, bound)
	b.leak(3, "172.31.1.3:0", 3, bound)
	b.leak(9, "172.31.1.9:7", 8, bound)
	b.leak(1, "172.31.1.1:7", 1, bound, func(s *loader.Sender) { s.Interface, s.Bound = 4, 4 })
	b.leak(2, "172.31.1.2:7", 2, bound, func(s *loader.Sender) { s.Interface, s.Bound = 88, 88 })
	b.readAt(time.Second)
	const prefix = "172.31.0.0/16"
	want := strings.Join([]string{
		"p9 eth0 " + prefix + " 172.31.1.9:7 8", "p3 eth0 " + prefix + " 172.31.1.3 3", "p4 eth0 " + prefix + " 172.31.1.4:7 3",
		"p5 eth0 " + prefix + " 172.31.1.5:7 3", "p2 interface 88 " + prefix + " 172.31.1.2:7 2", "p1 cont0 " + prefix + " 172.31.1.1:7 1",
	}, "\n")
	leaks := b.leaks(99)
	if got := lines(leaks.By); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	var names []string
	for _, i := range leaks.Interfaces {
		names = append(names, fmt.Sprint(i.Interface, " ", i.Packets, " of ", len(i.By)))
	}
	if got := strings.Join(names, ", "); got != "cont0 1 of 1, eth0 17 of 4, interface 88 2 of 1" {
		t.Errorf("by interface: %s", got)
	}
	if own := b.ofTunnel("tun0"); own.Packets != 20 || len(own.By) != 6 {
		t.Errorf("of the tunnel: %d in %d", own.Packets, len(own.By))
	}
	if other := b.ofTunnel("tun1"); other.Packets != 0 || len(other.By) != 0 {
		t.Errorf("of another tunnel: %+v", other)
	}
}

// TestFindingOfNoPolicy: a prefix that no policy has any more, and counters that are full, have no owner to be named by.
func TestFindingOfNoPolicy(t *testing.T) {
	b := newBook()
	b.counters = []loader.Counter{
		{Interface: 2, Prefix: 99, Reason: loader.LeakProtected, Packets: 2, Bytes: 200},
		{Reason: loader.LeakOverflow, Packets: 3, Bytes: 300},
	}
	b.readAt(time.Second)
	if got := lines(b.leaks(9).By); got != " any   3\n eth0   2" {
		t.Errorf("got %q", got)
	}
}

// TestForwardedHasASource: senders that are not of this host are told apart by their address, and have no user.
func TestForwardedHasASource(t *testing.T) {
	src := netip.MustParseAddr("192.168.9.2")
	sample := loader.Sample{Interface: 2, Ingress: 4, Origin: loader.Forwarded, UID: 7, Source: netip.AddrPortFrom(src, 5000)}
	sender := loader.Sender{Interface: 2, Ingress: 4, Origin: loader.Forwarded, UID: 7, Source: src}
	if a, b := sampleWho(&sample), senderWho(&sender); a != b || a.source != src {
		t.Errorf("the sample is of %+v, the sum of %+v", a, b)
	}
	sample.Origin = loader.Socket
	if a := sampleWho(&sample); a.source.IsValid() || a.uid != 7 {
		t.Errorf("a process of this host: %+v", a)
	}
	l := newBook().ledger
	if s := l.sender(senderWho(&sender), ""); s.Ingress != "cont0" || s.Source != src.String() || s.UID != -1 || s.Cgroup != "" {
		t.Errorf("a guest: %+v", s)
	}
	if s := l.sender(who{pid: 1, uid: 7, origin: loader.Socket}, "init"); s.Ingress != "" || s.Source != "" || s.UID != 7 || s.Cgroup != "/init.scope" {
		t.Errorf("a process: %+v", s)
	}
}

// TestEventsAreNew: an event has what was added since the last ones, in the order in which it began, and is told once.
func TestEventsAreNew(t *testing.T) {
	b := newBook()
	b.readAt(0)
	b.now = start.Add(2 * time.Millisecond)
	b.leak(2, "172.31.1.2:7", 4, bound)
	b.now = start.Add(time.Millisecond)
	b.leak(1, "172.31.1.1:7", 3, bound)
	b.leak(3, "172.31.1.3:7", 6) // an incident's, it turns out before anybody is told
	b.readAt(10 * time.Millisecond)
	b.attack(1, attackNet, time.Millisecond, time.Millisecond)
	b.readAt(20 * time.Millisecond)
	told := func(at time.Duration) string {
		var out []string
		for _, ev := range b.events(start.Add(at)) {
			switch {
			case ev.Leak != nil:
				out = append(out, fmt.Sprintf("%s %d", ev.Leak.Process, ev.Leak.Packets))
			default:
				out = append(out, fmt.Sprintf("incident %d of %d", ev.Incident.ID, ev.Incident.Packets))
			}
		}
		return strings.Join(out, ", ")
	}
	if got := told(30 * time.Millisecond); got != "p1 3, p3 6, p2 4" && got != "p3 6, p1 3, p2 4" {
		t.Errorf("at first: %s", got)
	}
	due := b.incidents[0].due
	if at := b.untold(); !at.Equal(due) {
		t.Errorf("the incident is to be told at %v, not %v", at, due)
	}
	if got := told(due.Sub(start) - 1); got != "" {
		t.Errorf("too early: %s", got)
	}
	if got := told(due.Sub(start)); got != "incident 1 of 6" {
		t.Errorf("when it is due: %s", got)
	}
	if at := b.untold(); !at.IsZero() {
		t.Errorf("nothing is left to tell, at %v", at)
	}
	b.now = start.Add(time.Second)
	b.leak(2, "172.31.1.2:7", 5, bound)
	b.readAt(2 * time.Second)
	if got := told(3 * time.Second); got != "p2 5" {
		t.Errorf("then: %s", got)
	}
	if got := told(4 * time.Second); got != "" {
		t.Errorf("again: %s", got)
	}
}

// TestUntoldIsTheNext: of several incidents the one that is due first.
func TestUntoldIsTheNext(t *testing.T) {
	b := newBook()
	for i, due := range []time.Duration{5, 3, 4} {
		b.incident(&tracked{Incident: enforce.Incident{ID: uint64(i)}, due: start.Add(due * time.Second)})
	}
	if at := b.untold(); !at.Equal(start.Add(3 * time.Second)) {
		t.Errorf("at %v", at)
	}
	b.incidents[1].told = true
	if at := b.untold(); !at.Equal(start.Add(4 * time.Second)) {
		t.Errorf("then at %v", at)
	}
}

// TestSampleAsksAgain: a sender's way is asked for with its first sample, and again when a second has passed; what is known
// of its interface outlives that.
func TestSampleAsksAgain(t *testing.T) {
	b := newBook()
	s := aSample()
	s.Prefix, s.Bound = 1, 0
	take := func(at time.Duration) (fresh bool, asked int) {
		fresh = b.sample(context.Background(), &s, start.Add(at))
		return fresh, len(b.sys.asked)
	}
	for _, c := range []struct {
		at    time.Duration
		fresh bool
		asked int
	}{{0, true, 1}, {causeFor - 1, false, 1}, {causeFor, false, 2}, {causeFor + 1, false, 2}, {3 * causeFor, false, 3}} {
		if fresh, asked := take(c.at); fresh != c.fresh || asked != c.asked {
			t.Errorf("after %v: fresh %t, asked %d times", c.at, fresh, asked)
		}
	}
	if b.names[2] != "eth0" || b.causes[sampleWho(&s)].text == "" {
		t.Errorf("kept are %v, %+v", b.names, b.causes)
	}
	b.names[77] = "gone0"
	if n := b.deviceName(77); n != "gone0" || b.names[77] != "gone0" {
		t.Errorf("an interface that is gone is %q", n)
	}
}

// TestSamplesAreBounded: they make room by the oldest.
func TestSamplesAreBounded(t *testing.T) {
	b := newBook()
	s := aSample()
	for i := range 2 * samplesKept {
		s.Segments = i
		b.sample(context.Background(), &s, start)
		if len(b.samples) > samplesKept {
			t.Fatalf("%d samples", len(b.samples))
		}
	}
	if last := b.samples[len(b.samples)-1]; last.n != 2*samplesKept-1 || len(b.samples) < samplesKept/2 {
		t.Errorf("the last of %d has %d", len(b.samples), last.n)
	}
}

// TestSampledBySamples: samples that came in by themselves divide an amount, each packet in them; those of others, of other
// times and to other places do not.
func TestSampledBySamples(t *testing.T) {
	b := newBook()
	b.readAt(0)
	b.attack(1, attackNet, 10*time.Millisecond, time.Millisecond)
	b.attack(2, attackNet, 40*time.Millisecond, time.Millisecond)
	b.now = start.Add(10 * time.Millisecond)
	b.leak(1, "172.31.1.10:80", 4)
	b.now = start.Add(40 * time.Millisecond)
	b.leak(1, "172.31.1.10:80", 8)
	for _, x := range []struct {
		at  time.Duration
		pid int
		to  string
		n   int
	}{
		{10, 1, "172.31.1.10:80", 1}, {40, 1, "172.31.1.10:80", 2},
		{10, 2, "172.31.1.10:80", 50}, {300, 1, "172.31.1.10:80", 50}, {10, 1, "172.31.9.10:80", 50},
	} {
		s := loader.Sample{Time: start.Add(x.at * time.Millisecond), Interface: 2, Prefix: 1, Reason: loader.LeakProtected,
			Origin: loader.Socket, PID: x.pid, UID: 1000, Destination: netip.MustParseAddrPort(x.to), Segments: x.n}
		b.sample(context.Background(), &s, start)
	}
	b.readAt(100 * time.Millisecond)
	b.check(t, "one third, two thirds", "p1 4 route of 1\np1 8 route of 2\n1: 4 shared p1=4\n2: 8 shared p1=8")
	for _, s := range b.incidents {
		if e := s.exposure(); e.Bytes != 100*e.Packets {
			t.Errorf("%d bytes of %d packets", e.Bytes, e.Packets)
		}
	}
}

// TestCausesAreForgotten: what led a sender past is forgotten a minute after the last word of it, and only when it is gone.
func TestCausesAreForgotten(t *testing.T) {
	b := newBook()
	b.leak(1, "172.31.1.1:7", 1, bound)
	b.leak(2, "172.31.1.2:7", 1, bound)
	b.readAt(0)
	b.senders = b.senders[:1]
	b.readAt(looseFor)
	if len(b.causes) != 2 {
		t.Errorf("after a minute %d are kept", len(b.causes))
	}
	b.readAt(looseFor + 1)
	if _, ok := b.causes[senderWho(&b.senders[0])]; !ok || len(b.causes) != 1 || len(b.charged) != 1 {
		t.Errorf("then %d and %d are kept", len(b.causes), len(b.charged))
	}
}

func TestArithmetic(t *testing.T) {
	big, small := report.Totals{Packets: 10, Bytes: 900, Dropped: 4}, report.Totals{Packets: 3, Bytes: 200, Dropped: 1}
	if got := minus(big, small); got != (report.Totals{Packets: 7, Bytes: 700, Dropped: 3}) {
		t.Errorf("minus: %+v", got)
	}
	if got := minus(small, big); got != (report.Totals{}) {
		t.Errorf("minus more than there is: %+v", got)
	}
	if got := fraction(report.Totals{Packets: 9, Bytes: 90, Dropped: 6}, 1, 3); got != (report.Totals{Packets: 3, Bytes: 30, Dropped: 2}) {
		t.Errorf("fraction: %+v", got)
	}
	if got := later(start, start.Add(1)); !got.Equal(start.Add(1)) {
		t.Errorf("later: %v", got)
	}
	if got := later(start.Add(1), start); !got.Equal(start.Add(1)) {
		t.Errorf("later the other way round: %v", got)
	}
}

// TestTrackedDetails: how far a moment is from an incident, who is told of it, and what stays shared.
func TestTrackedDetails(t *testing.T) {
	stood := track(enforce.Incident{Seen: start, Gone: start.Add(time.Second), Route: "10.0.0.0/8 dev eth0"}, start)
	stands := track(enforce.Incident{Seen: start, Route: "10.0.0.0/8 dev eth0"}, start)
	for _, c := range []struct {
		t    *tracked
		at   time.Duration
		want time.Duration
	}{{stood, -5, 5}, {stood, 0, 0}, {stood, time.Second, 0}, {stood, time.Second + 7, 7}, {stands, time.Hour, 0}, {stands, -3, 3}} {
		if got := c.t.distance(start.Add(c.at)); got != c.want {
			t.Errorf("%v: %v, want %v", c.at, got, c.want)
		}
	}
	if e := stood.exposure(); e.Senders == nil || len(e.Senders) != 0 {
		t.Errorf("nobody is %v: it must not be null", e.Senders)
	}
	for i := range sendersKept + 5 {
		words := func() report.Sender { return report.Sender{PID: i} }
		stood.charge(who{pid: i}, words, report.Totals{Packets: uint64(i + 1)}, i == 0)
	}
	e := stood.exposure()
	if len(stood.senders) != sendersKept || len(e.Senders) != sendersShown || !e.Shared || e.Packets != (sendersKept+5)*(sendersKept+6)/2 {
		t.Errorf("kept %d, shown %d, shared %t, %d packets", len(stood.senders), len(e.Senders), e.Shared, e.Packets)
	}
	if top := e.Senders[0]; top.PID != sendersKept-1 || top.Packets != sendersKept {
		t.Errorf("the first is %+v", top)
	}
	if got := stood.cause().text; got != "route 10.0.0.0/8 dev eth0" {
		t.Errorf("cause %q", got)
	}
}

// TestPacketOfASender: a way is asked for as its sender would, and as nobody where the sender is not known.
func TestPacketOfASender(t *testing.T) {
	src := netip.MustParseAddr("192.168.9.2")
	for _, c := range []struct {
		name string
		id   who
		want Packet
	}{
		{"a process", who{uid: 1000, origin: loader.Socket}, Packet{UID: 1000}},
		{"nobody", who{uid: 1000, origin: loader.Unowned}, Packet{UID: -1}},
		{"a guest", who{uid: 1000, origin: loader.Forwarded, ingress: 4, source: src}, Packet{UID: -1, Src: src, Ingress: "cont0"}},
		{"bound", who{uid: 5, bound: 3, origin: loader.Socket}, Packet{UID: 5, Device: "br0"}},
	} {
		s := seen{id: c.id, to: netip.MustParseAddrPort("172.31.1.10:5000"), proto: 17, tos: 4, mark: 9}
		c.want.Dst, c.want.Port, c.want.Proto, c.want.TOS, c.want.Mark = s.to.Addr(), 5000, 17, 4, 9
		if got := s.packet(&fakeSystem{}); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// TestWaysThatExplain: which answers name a route, a VRF or a rule, and which do not.
func TestWaysThatExplain(t *testing.T) {
	sys := func(w Way) *fakeSystem { return &fakeSystem{way: w} }
	to := netip.MustParseAddrPort("172.31.1.10:5000")
	leak := loader.LeakProtected
	for _, c := range []struct {
		name    string
		id      who
		tunnel  int
		present bool
		way     Way
		want    string
		asked   int
	}{
		{"bound to where it left", who{device: 2, bound: 2, reason: leak}, 7, true, Way{Table: "200"}, "bound: SO_BINDTODEVICE eth0", 0},
		{"bound, table main", who{device: 2, bound: 3, reason: leak}, 7, true, Way{Table: "main"}, "bound: SO_BINDTODEVICE br0", 1},
		{"bound, table local", who{device: 2, bound: 3, reason: leak}, 7, true, Way{Table: "local"}, "bound: SO_BINDTODEVICE br0", 1},
		{"bound, no table", who{device: 2, bound: 3, reason: leak}, 7, true, Way{}, "bound: SO_BINDTODEVICE br0", 1},
		{"a policy that is gone", who{device: 2, reason: leak}, 0, false, Way{Table: "main", Links: []int{2}, Route: "R"}, "route: route R", 1},
		{"the tunnel is away", who{device: 2, reason: leak}, 0, true, Way{Table: "main", Links: []int{2}, Route: "R"}, "no-tunnel: the tunnel is away; R", 1},
		{"refused in main", who{device: 2, reason: leak}, 7, true, Way{Table: "main", Refused: true}, "in-flight: no route", 1},
		{"by table local", who{device: 2, reason: leak}, 7, true, Way{Table: "local", Links: []int{2}}, "in-flight: no route", 1},
		{"no rule has the table", who{device: 2, reason: leak}, 7, true, Way{Table: "100", Links: []int{2}}, "in-flight: no route", 1},
		{"refused in another table", who{device: 2, reason: leak}, 7, true,
			Way{Table: "100", Refused: true, Rules: []Rule{{"100", "100: from all lookup 100", true}}}, "in-flight: no route", 1},
	} {
		fake := sys(c.way)
		s := seen{id: c.id, to: to, tunnel: c.tunnel, present: c.present}
		got := explain(context.Background(), fake, &s)
		if text := string(got.mechanism) + ": " + got.text; !strings.HasPrefix(text, c.want) || len(fake.asked) != c.asked {
			t.Errorf("%s: %q after %d questions, want %q", c.name, text, len(fake.asked), c.want)
		}
	}
}
