package witness

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
)

// tracked is an incident and what was found to belong to it.
type tracked struct {
	enforce.Incident
	dst     netip.Prefix
	devices []string // by which its traffic left; nil is any
	due     time.Time
	told    bool
	sum     report.Exposure
	senders map[who]*report.Sender
}

// How far a packet may lie from the time that an incident is known to have
// stood. A route is in force before its announcement is read; one that a
// reading of the table found may have stood since the last one.
const (
	leadEdge  = 500 * time.Millisecond
	leadLevel = 35 * time.Second
	lag       = 100 * time.Millisecond
)

// settleAfter is how long the counters have for the last packets of an incident.
const settleAfter = 50 * time.Millisecond

// track begins to follow an incident.
func track(in enforce.Incident, now time.Time) *tracked {
	t := &tracked{Incident: in, due: now.Add(settleAfter), senders: map[who]*report.Sender{}}
	t.sum.Senders = []report.Sender{}
	t.dst, t.devices = routeWords(in.Route)
	if in.What == "readded" || strings.HasPrefix(in.Reason, "missing:") {
		t.devices = nil // it is the tunnel's own route: without it packets left by any other
	}
	return t
}

// routeWords reads the destination and the interfaces of a route in words.
func routeWords(text string) (dst netip.Prefix, devices []string) {
	words := strings.Fields(text)
	for i, w := range words {
		if p, err := netip.ParsePrefix(w); err == nil && !dst.IsValid() {
			dst = p
		}
		if w == "dev" && i+1 < len(words) {
			devices = append(devices, words[i+1])
		}
	}
	return dst, devices
}

// cause is how packets of the incident went past the tunnel.
func (t *tracked) cause() cause {
	if t.devices == nil {
		return cause{report.Route, "without " + t.Route}
	}
	return cause{report.Route, "route " + t.Route}
}

// stands reports whether nothing has ended the incident yet.
func (t *tracked) stands() bool { return t.Gone.IsZero() }

// near reports whether packets of a span of time may belong to the incident.
func (t *tracked) near(from, to time.Time) bool {
	lead := leadEdge
	if t.Path == "level" {
		lead = leadLevel
	}
	return !to.Before(t.Seen.Add(-lead)) && (t.stands() || !from.After(t.Gone.Add(lag)))
}

// distance is how far a moment lies from when the incident stood.
func (t *tracked) distance(at time.Time) time.Duration {
	switch {
	case at.Before(t.Seen):
		return t.Seen.Sub(at)
	case !t.stands() && at.After(t.Gone):
		return at.Sub(t.Gone)
	}
	return 0
}

// fits reports whether what leaked by a device to a destination may have taken
// the incident's route.
func (t *tracked) fits(device string, to netip.Addr) bool {
	return t.dst.Contains(to) && (t.devices == nil || slices.Contains(t.devices, device))
}

// charge adds what a sender leaked.
func (t *tracked) charge(id who, words func() report.Sender, sum report.Totals, shared bool) {
	t.sum.Add(sum)
	t.sum.Shared = t.sum.Shared || shared
	own := t.senders[id]
	if own == nil {
		if len(t.senders) >= sendersKept {
			return
		}
		s := words()
		own = &s
		t.senders[id] = own
	}
	own.Add(sum)
}

// sendersKept bounds the senders that are told apart for one incident.
const sendersKept = 64

// sendersShown is how many of them are told.
const sendersShown = 8

// exposure is what the incident is known to have let out.
func (t *tracked) exposure() *report.Exposure {
	e := t.sum
	e.Senders = []report.Sender{}
	for _, s := range t.senders {
		e.Senders = append(e.Senders, *s)
	}
	slices.SortFunc(e.Senders, func(a, b report.Sender) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.PID, b.PID), cmp.Compare(a.Process, b.Process))
	})
	e.Senders = e.Senders[:min(len(e.Senders), sendersShown)]
	return &e
}
