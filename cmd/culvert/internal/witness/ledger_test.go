package witness

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/loader"
)

// book is a ledger with a kernel whose sums are set by hand.
type book struct {
	*ledger
	sys      *fakeSystem
	counters []loader.Counter
	senders  []loader.Sender
	now      time.Time
}

func newBook() *book {
	sys := &fakeSystem{way: Way{Route: "172.31.0.0/16 dev tun0", Table: "main", Links: []int{7}}}
	own := func(id uint32) (owner, bool) {
		return owner{"tun0", netip.MustParsePrefix("172.31.0.0/16"), 7}, id == 1
	}
	b := &book{ledger: newLedger(sys, own), sys: sys, now: start}
	b.measured = true
	return b
}

// leak lets a sender leak n packets of 100 bytes by eth0.
func (b *book) leak(pid int, to string, n uint64, change ...func(*loader.Sender)) {
	s := loader.Sender{Interface: 2, Prefix: 1, Reason: loader.LeakProtected, Origin: loader.Socket, PID: pid, UID: 1000,
		Comm: fmt.Sprint("p", pid), To: netip.MustParseAddrPort(to), First: b.now}
	for _, f := range change {
		f(&s)
	}
	b.count(s.Interface, s.Reason, n)
	for i := range b.senders {
		if o := &b.senders[i]; senderWho(o) == senderWho(&s) {
			o.Packets, o.Bytes, o.Last, o.To = o.Packets+n, o.Bytes+100*n, b.now, s.To
			return
		}
	}
	s.Packets, s.Bytes, s.Last = n, 100*n, b.now
	b.senders = append(b.senders, s)
}

func (b *book) count(device int, why loader.Reason, n uint64) {
	for i := range b.counters {
		if c := &b.counters[i]; c.Interface == device && c.Reason == why {
			c.Packets, c.Bytes = c.Packets+n, c.Bytes+100*n
			return
		}
	}
	b.counters = append(b.counters, loader.Counter{Interface: device, Prefix: 1, Reason: why, Packets: n, Bytes: 100 * n})
}

func bound(s *loader.Sender) { s.Bound = 2 }

func (b *book) readAt(after time.Duration) {
	b.now = start.Add(after)
	b.read(context.Background(), b.counters, b.senders, b.now)
}

// attack tells of a route that stood for a while.
func (b *book) attack(id uint64, route string, seen, stood time.Duration) {
	in := enforce.Incident{ID: id, Tunnel: "tun0", What: "removed", Path: "edge", Route: route + " via 10.77.0.66 dev eth0 proto dhcp", Seen: start.Add(seen)}
	if stood > 0 {
		in.Gone = in.Seen.Add(stood)
	} else {
		in.What = "reported"
	}
	b.incident(track(in, b.now))
}

// shown is all rows, and what each incident let out.
func (b *book) shown() string {
	var lines []string
	for _, f := range b.findings(99, func(*report.Finding) bool { return true }) {
		line := fmt.Sprintf("%s %d %s", f.Process, f.Packets, f.Mechanism)
		if f.Incident != 0 {
			line += fmt.Sprint(" of ", f.Incident)
		}
		lines = append(lines, line)
	}
	for _, t := range b.incidents {
		e := t.exposure()
		line := fmt.Sprintf("%d: %d", t.ID, e.Packets)
		if e.Shared {
			line += " shared"
		}
		for _, s := range e.Senders {
			line += fmt.Sprintf(" %s=%d", s.Process, s.Packets)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (b *book) check(t *testing.T, when, want string) {
	t.Helper()
	lines := strings.Split(want, "\n")
	slices.Sort(lines)
	if got := b.shown(); got != strings.Join(lines, "\n") {
		t.Errorf("%s: got\n%s\nwant\n%s", when, got, want)
	}
	var rows uint64
	for _, f := range b.rows {
		rows += f.Packets
	}
	if rows != b.sums.all.Packets {
		t.Errorf("%s: the rows hold %d packets of %d", when, rows, b.sums.all.Packets)
	}
}

const attackNet = "172.31.1.0/24"

func TestIncidentHasItsPackets(t *testing.T) {
	b := newBook()
	b.readAt(0)
	b.now = start.Add(time.Millisecond)
	b.leak(1, "172.31.1.10:80", 3)
	b.leak(2, "172.31.1.11:80", 1)
	b.attack(1, attackNet, time.Millisecond, time.Millisecond)
	b.attack(2, attackNet, 10*time.Second, time.Millisecond) // another, later
	b.readAt(100 * time.Millisecond)
	b.check(t, "once", "p1 3 route of 1\np2 1 route of 1\n1: 4 p1=3 p2=1\n2: 0")
	b.readAt(200 * time.Millisecond)
	b.check(t, "read again", "p1 3 route of 1\np2 1 route of 1\n1: 4 p1=3 p2=1\n2: 0")
}

func TestFindingIsNotTheIncidents(t *testing.T) {
	b := newBook()
	b.readAt(0)
	b.attack(1, attackNet, time.Millisecond, time.Millisecond)
	b.now = start.Add(time.Millisecond)
	b.leak(1, "172.31.1.10:80", 3)
	b.leak(2, "172.31.1.10:80", 5, bound)
	b.leak(3, "172.31.9.9:80", 7) // not by that route
	b.leak(4, "172.31.1.10:80", 9, func(s *loader.Sender) { s.Interface = 4 })
	b.readAt(100 * time.Millisecond)
	b.now = start.Add(5 * time.Second) // long after it
	b.leak(5, "172.31.1.10:80", 1)
	b.readAt(6 * time.Second)
	b.check(t, "", "p1 3 route of 1\np2 5 bound\np3 7 in-flight\np4 9 in-flight\np5 1 in-flight\n1: 3 p1=3")
}

// TestSendersAreAhead: they are read after the counters, and never booked beyond
// them.
func TestSendersAreAhead(t *testing.T) {
	b := newBook()
	b.readAt(0)
	b.leak(1, "172.31.1.10:80", 5, bound)
	b.counters[0].Packets, b.counters[0].Bytes = 3, 300
	b.readAt(time.Second)
	b.check(t, "first", "p1 3 bound")
	b.counters[0].Packets, b.counters[0].Bytes = 5, 500
	b.readAt(2 * time.Second)
	b.check(t, "then", "p1 5 bound")
}

// TestLateIncident: what leaked is read before its incident is told of.
func TestLateIncident(t *testing.T) {
	b := newBook()
	b.readAt(0)
	b.now = start.Add(time.Millisecond)
	b.leak(1, "172.31.1.10:80", 3)
	b.readAt(100 * time.Millisecond)
	b.check(t, "before", "p1 3 in-flight")
	b.attack(1, attackNet, time.Millisecond, 200*time.Millisecond)
	b.readAt(300 * time.Millisecond)
	b.check(t, "after", "p1 3 route of 1\n1: 3 p1=3")
	b.attack(2, attackNet, 2*time.Millisecond, 200*time.Millisecond)
	b.readAt(400 * time.Millisecond)
	b.check(t, "it is booked once", "p1 3 route of 1\n1: 3 p1=3\n2: 0")
}

// TestShared: incidents of one moment divide what was sampled.
func TestShared(t *testing.T) {
	b := newBook()
	b.readAt(0)
	b.attack(1, attackNet, 10*time.Millisecond, time.Millisecond)
	b.attack(2, attackNet, 40*time.Millisecond, time.Millisecond)
	b.now = start.Add(10 * time.Millisecond)
	b.leak(1, "172.31.1.10:80", 1)
	b.now = start.Add(41 * time.Millisecond)
	b.leak(1, "172.31.1.10:80", 8)
	id := senderWho(&b.senders[0])
	for _, at := range []time.Duration{10, 40, 41} {
		b.samples = append(b.samples, note{start.Add(at * time.Millisecond), id, netip.MustParseAddr("172.31.1.10"), 1})
	}
	b.readAt(100 * time.Millisecond)
	b.check(t, "two thirds", "p1 3 route of 1\np1 6 route of 2\n1: 3 shared p1=3\n2: 6 shared p1=6")
}

// TestSharedByDestination: samples tell routes apart that stood at one time.
func TestSharedByDestination(t *testing.T) {
	b := newBook()
	b.readAt(0)
	b.attack(1, attackNet, 10*time.Millisecond, time.Millisecond)
	b.attack(2, "172.31.2.0/24", 10*time.Millisecond, time.Millisecond)
	b.now = start.Add(10 * time.Millisecond)
	b.leak(1, "172.31.1.10:80", 4)
	b.leak(1, "172.31.2.10:80", 4)
	id := senderWho(&b.senders[0])
	for range 4 {
		b.samples = append(b.samples, note{b.now, id, netip.MustParseAddr("172.31.1.10"), 1}, note{b.now, id, netip.MustParseAddr("172.31.2.10"), 1})
	}
	b.readAt(100 * time.Millisecond)
	b.check(t, "", "p1 4 route of 1\np1 4 route of 2\n1: 4 shared p1=4\n2: 4 shared p1=4")
}

func TestNoSamples(t *testing.T) {
	b := newBook()
	b.readAt(0)
	b.attack(1, attackNet, 10*time.Millisecond, time.Millisecond)
	b.attack(2, attackNet, 20*time.Millisecond, time.Millisecond)
	b.now = start.Add(20 * time.Millisecond)
	b.leak(1, "172.31.1.10:80", 4)
	b.readAt(100 * time.Millisecond)
	b.check(t, "the latest", "p1 4 route of 2\n1: 0\n2: 4 shared p1=4")
}

// TestStanding: a reported route (audit) goes on letting out.
func TestStanding(t *testing.T) {
	b := newBook()
	b.sys.way = Way{Route: attackNet + " dev eth0", Table: "main", Links: []int{2}}
	b.attack(1, attackNet, 0, 0)
	b.readAt(0)
	for i := range 3 {
		b.now = start.Add(time.Duration(i) * time.Hour)
		b.leak(1, "172.31.1.10:80", 10)
		b.readAt(time.Duration(i) * time.Hour)
	}
	b.check(t, "", "p1 30 route of 1\n1: 30 p1=30")
}

// TestSenderGaveWay: the kernel forgot a sender between two readings; the
// counters lose nothing.
func TestSenderGaveWay(t *testing.T) {
	b := newBook()
	b.readAt(0)
	b.leak(1, "172.31.1.10:80", 10, bound)
	b.readAt(time.Second)
	b.senders = nil
	b.count(2, loader.LeakProtected, 3)
	b.readAt(2 * time.Second)
	b.check(t, "gone", "p1 10 bound\n 3 unknown")
	b.leak(1, "172.31.1.10:80", 4, bound)
	b.readAt(3 * time.Second)
	b.check(t, "back", "p1 14 bound\n 3 unknown")
	// Gone and back between two readings.
	b.senders[0].Packets, b.senders[0].Bytes = 2, 200
	b.count(2, loader.LeakProtected, 2)
	b.readAt(4 * time.Second)
	b.check(t, "gone and back", "p1 16 bound\n 3 unknown")
}

func TestEarlyHasNoSender(t *testing.T) {
	b := newBook()
	b.readAt(0)
	b.count(4, loader.LeakEarly, 3)
	b.count(2, loader.ExemptND, 99)
	b.readAt(time.Second)
	b.check(t, "", " 3 early")
	if got := b.leaks(99); got.Packets != 3 || len(got.Interfaces) != 1 || got.Interfaces[0].Interface != "cont0" {
		t.Errorf("got %+v", got)
	}
}

// TestUpper: a bridge's packets are counted again at its ports, dropped ones are
// not.
func TestUpper(t *testing.T) {
	b := newBook()
	b.readAt(0)
	b.leak(1, "172.31.1.10:80", 10, bound)
	b.leak(1, "172.31.1.10:80", 10, bound, func(s *loader.Sender) { s.Interface = 3 })
	b.counters[1].Upper, b.counters[1].Dropped = true, 2
	b.senders[1].Dropped = 2
	b.readAt(time.Second)
	if got := b.leaks(99); got.Packets != 12 || got.Bytes != 1200 || got.Dropped != 2 {
		t.Errorf("got %+v", got.Totals)
	}
}

func TestManySenders(t *testing.T) {
	b := newBook()
	b.readAt(0)
	for i := range 2 * rowsKept {
		b.leak(i+1, "172.31.9.9:80", 1, func(s *loader.Sender) { s.Bound = 2 * (i % 2) })
	}
	b.readAt(time.Second)
	if len(b.rows) > rowsKept+8 || len(b.sys.asked) > questions || b.sums.all.Packets != 2*rowsKept {
		t.Errorf("%d rows, %d questions, %d packets", len(b.rows), len(b.sys.asked), b.sums.all.Packets)
	}
	var rows uint64
	for _, f := range b.rows {
		rows += f.Packets
	}
	if rows != b.sums.all.Packets {
		t.Errorf("the rows hold %d packets", rows)
	}
	b.readAt(2 * time.Second)
	if len(b.loose) > looseKept {
		t.Errorf("%d loose", len(b.loose))
	}
}

func TestRouteWords(t *testing.T) {
	for text, want := range map[string]string{
		"172.31.1.0/24 via 10.77.0.66 dev eth0 proto dhcp":                                                    "172.31.1.0/24 [eth0]",
		"blackhole 172.31.1.0/24 proto boot":                                                                  "172.31.1.0/24 []",
		"fd31::/64 from 2001:db8::/32 dev eth1 proto ra metric 5":                                             "fd31::/64 [eth1]",
		"10.0.0.0/9 nexthop via 10.1.0.1 dev eth0 nexthop via fd77::1 dev interface 9 proto static metric 10": "10.0.0.0/9 [eth0 interface]",
		"": "invalid Prefix []",
	} {
		dst, devices := routeWords(text)
		if got := fmt.Sprint(dst, " ", devices); got != want {
			t.Errorf("%s: %s", text, got)
		}
	}
}

// TestReadded: without the tunnel's own route packets leave by any interface.
func TestReadded(t *testing.T) {
	b := newBook()
	b.readAt(0)
	b.incident(track(enforce.Incident{ID: 1, What: "readded", Path: "edge", Route: "172.31.0.0/16 dev tun0 proto static",
		Seen: start.Add(time.Millisecond), Gone: start.Add(2 * time.Millisecond)}, b.now))
	b.now = start.Add(2 * time.Millisecond)
	b.leak(1, "172.31.9.9:80", 2)
	b.readAt(100 * time.Millisecond)
	b.check(t, "", "p1 2 route of 1\n1: 2 p1=2")
}

// TestSharedWhole: what several incidents divide is all there was, also where it divides
// unevenly.
func TestSharedWhole(t *testing.T) {
	b := newBook()
	b.readAt(0)
	b.leak(1, "172.31.1.10:80", 0)
	id := senderWho(&b.senders[0])
	for i := range 3 {
		at := time.Duration(10+30*i) * time.Millisecond
		b.attack(uint64(i+1), attackNet, at, time.Millisecond)
		b.samples = append(b.samples, note{start.Add(at), id, netip.MustParseAddr("172.31.1.10"), 1})
	}
	b.now = start.Add(71 * time.Millisecond)
	b.leak(1, "172.31.1.10:80", 10)
	b.readAt(100 * time.Millisecond)
	b.check(t, "", "p1 3 route of 1\np1 3 route of 2\np1 4 route of 3\n1: 3 shared p1=3\n2: 3 shared p1=3\n3: 4 shared p1=4")
}

// TestTooLate: an incident that is told of more than a minute after the packets were
// counted has none of them.
func TestTooLate(t *testing.T) {
	for after, want := range map[time.Duration]string{looseFor: "p1 3 route of 1\n1: 3 p1=3", looseFor + time.Second: "p1 3 in-flight\n1: 0"} {
		b := newBook()
		b.readAt(0)
		b.leak(1, "172.31.1.10:80", 3)
		b.readAt(100 * time.Millisecond)
		b.attack(1, attackNet, time.Millisecond, 200*time.Millisecond)
		b.readAt(after)
		b.check(t, after.String(), want)
	}
}

// TestLedgerIsBounded: the oldest incident makes way, and so do causes; a known one makes
// none go.
func TestLedgerIsBounded(t *testing.T) {
	b := newBook()
	for i := range incidentsKept + 2 {
		b.attack(uint64(i+1), attackNet, 0, time.Millisecond)
	}
	if n := len(b.incidents); n != incidentsKept || b.incidents[0].ID != 3 || b.incidents[n-1].ID != incidentsKept+2 {
		t.Errorf("%d incidents from %d", n, b.incidents[0].ID)
	}
	for i := range causesKept {
		b.keepCause(who{pid: i}, dated{})
	}
	if b.keepCause(who{pid: 7}, dated{at: start}); len(b.causes) != causesKept || !b.causes[who{pid: 7}].at.Equal(start) {
		t.Errorf("%d causes after a known one", len(b.causes))
	}
	if b.keepCause(who{pid: causesKept}, dated{at: start}); len(b.causes) != causesKept || b.causes[who{pid: causesKept}].at.IsZero() {
		t.Errorf("%d causes after a new one", len(b.causes))
	}
}

// TestQuestionsAgain: each reading may ask anew; where nothing may be asked nothing is known.
func TestQuestionsAgain(t *testing.T) {
	b := newBook()
	b.readAt(0)
	b.budget = 0
	if _, err := b.limited().Way(t.Context(), Packet{}); err == nil || len(b.sys.asked) != 0 {
		t.Errorf("asked %d times, %v", len(b.sys.asked), err)
	}
	b.leak(1, "172.31.1.10:80", 3)
	b.readAt(time.Second)
	if len(b.sys.asked) != 1 {
		t.Errorf("asked %d times", len(b.sys.asked))
	}
	for _, r := range b.rows {
		if !r.Last.Equal(start) || r.Why == "" {
			t.Errorf("the last packet at %v, why: %q", r.Last, r.Why)
		}
	}
}
