package witness

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/loader"
)

// sums are the exact totals of a reading.
type sums struct {
	all     report.Totals
	tunnels map[string]report.Totals
	devices map[string]report.Totals
	gone    report.Totals // of all interfaces that are gone
}

func newSums() sums {
	return sums{tunnels: map[string]report.Totals{}, devices: map[string]report.Totals{}}
}

func (s *sums) add(l *ledger, key counterKey, t report.Totals) {
	s.all.Add(t)
	own, _ := l.ownerOf(key.prefix)
	tunnel := s.tunnels[own.tunnel]
	tunnel.Add(t)
	s.tunnels[own.tunnel] = tunnel
	if key.device == ofGone && key.reason != loader.LeakOverflow {
		s.gone.Add(t)
		return
	}
	s.addDevice(l.deviceName(key.device), t)
}

func (s *sums) addDevice(name string, t report.Totals) {
	device := s.devices[name]
	device.Add(t)
	s.devices[name] = device
}

// addPast divides the one sum of all interfaces that are gone among those whose
// names are known. The rest is put under goneName.
func (s *sums) addPast(past map[string]report.Totals) {
	rest := s.gone
	for name, t := range past {
		t = upTo(t, rest)
		rest = minus(rest, t)
		s.addDevice(name, t)
	}
	if rest.Packets > 0 {
		s.addDevice(goneName, rest)
	}
}

// goneName stands for interfaces that are gone and whose names are not known.
const goneName = "gone"

// deviceName names an interface by what was known of it at any time.
func (l *ledger) deviceName(index int) string {
	if index == 0 {
		return "any"
	}
	if n := l.name(index); n != "" {
		return n
	}
	return "interface " + strconv.Itoa(index)
}

// interfaceOf names the interface of a finding.
func (l *ledger) interfaceOf(id who) string {
	if id.device == ofGone && id.reason != loader.LeakOverflow && !id.others {
		return goneName
	}
	return l.deviceName(id.device)
}

func sampleWho(s *loader.Sample) who {
	w := who{
		device: s.Interface, ingress: s.Ingress, bound: s.Bound, prefix: s.Prefix, reason: s.Reason,
		origin: s.Origin, pid: s.PID, uid: s.UID,
	}
	if s.Origin == loader.Forwarded {
		w.source = s.Source.Addr()
	}
	return w
}

func senderWho(s *loader.Sender) who {
	return who{
		device: s.Interface, ingress: s.Ingress, bound: s.Bound, prefix: s.Prefix, reason: s.Reason,
		origin: s.Origin, pid: s.PID, uid: s.UID, source: s.Source,
	}
}

// finding begins a row.
func (l *ledger) finding(key rowKey, x *loose) *report.Finding {
	own, ok := l.ownerOf(key.id.prefix)
	f := &report.Finding{
		Sender: l.sender(key.id, x.comm), Tunnel: own.tunnel, Interface: l.interfaceOf(key.id),
		Mechanism: key.mechanism, Incident: key.incident, First: x.from,
	}
	if ok {
		f.Prefix = own.prefix.String()
	}
	return f
}

// othersName stands for the process of all that there was no room to tell apart.
const othersName = "others"

// sender puts who sent into words.
func (l *ledger) sender(id who, comm string) report.Sender {
	if id.others {
		return report.Sender{Process: othersName, UID: -1, Origin: loader.Unowned.String()}
	}
	s := report.Sender{Process: comm, PID: id.pid, UID: id.uid, Origin: id.origin.String()}
	if id.origin == loader.Forwarded {
		s.Ingress, s.Source = l.deviceName(id.ingress), id.source.String()
		s.UID = -1
	}
	if id.pid == 0 {
		s.UID = -1
	} else {
		s.Cgroup = l.sys.Cgroup(id.pid)
	}
	return s
}

func destination(x loose) string {
	if x.to.Port() == 0 {
		return x.to.Addr().String()
	}
	return netip.AddrPortFrom(x.to.Addr(), x.to.Port()).String()
}

// The bounds of what is shown of each sum in a status.
const shownBy = 16

// findings are the rows that a function chooses, most packets first. Those beyond
// the limit are added up in the last.
func (l *ledger) findings(limit int, choose func(*report.Finding) bool) []report.Finding {
	out := []report.Finding{}
	for _, r := range l.rows {
		if choose(r) {
			out = append(out, *r)
		}
	}
	slices.SortFunc(out, func(a, b report.Finding) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), a.First.Compare(b.First), cmp.Compare(a.PID, b.PID))
	})
	if len(out) <= limit {
		return out
	}
	rest := report.Finding{Sender: l.sender(who{others: true}, ""), Mechanism: report.Unknown, Why: "too many to tell apart", First: out[limit-1].First}
	for i := range out[limit-1:] {
		f := &out[limit-1+i]
		rest.Add(f.Totals)
		rest.Last = later(rest.Last, f.Last)
		if f.First.Before(rest.First) {
			rest.First = f.First
		}
	}
	return append(out[:limit-1], rest)
}

// leaks is everything that leaked.
func (l *ledger) leaks(limit int) *report.Leaks {
	out := &report.Leaks{Totals: l.sums.all, By: l.findings(limit, func(*report.Finding) bool { return true })}
	for name, t := range l.sums.devices {
		by := l.findings(min(limit, shownBy), func(f *report.Finding) bool { return f.Interface == name })
		out.Interfaces = append(out.Interfaces, report.Interface{Interface: name, Totals: t, By: by})
	}
	out.DNS, out.Exempt = l.resolvers.shown(l.lastRead), l.passed
	slices.SortFunc(out.Interfaces, func(a, b report.Interface) int { return cmp.Compare(a.Interface, b.Interface) })
	return out
}

// ofTunnel is what leaked of one tunnel's prefixes.
func (l *ledger) ofTunnel(tunnel string) *report.Leaks {
	return &report.Leaks{
		Totals: l.sums.tunnels[tunnel],
		By:     l.findings(shownBy, func(f *report.Finding) bool { return f.Tunnel == tunnel }),
	}
}

// exposure is what an incident let out, nil when it was not followed.
func (l *ledger) exposure(id uint64) *report.Exposure {
	for _, t := range l.incidents {
		if t.ID == id {
			return t.exposure()
		}
	}
	return nil
}

// events are what came to be known since the last call: leaks, and incidents
// whose packets have been counted.
func (l *ledger) events(now time.Time) (out []report.Event) {
	for key, sum := range l.fresh {
		r := l.rows[key]
		if r == nil {
			continue // booked to an incident since
		}
		f := *r
		f.Totals = sum
		out = append(out, report.Event{Time: now, Kind: "leak", Leak: &f})
	}
	clear(l.fresh)
	slices.SortFunc(out, func(a, b report.Event) int { return a.Leak.First.Compare(b.Leak.First) })
	for _, t := range l.incidents {
		if !t.told && !now.Before(t.due) {
			t.told = true
			in := report.Incident{Incident: t.Incident}
			if l.measured {
				in.Exposure = t.exposure()
			}
			out = append(out, report.Event{Time: now, Kind: "incident", Incident: &in})
		}
	}
	return out
}

// untold is when the next incident can be told, or zero.
func (l *ledger) untold() (at time.Time) {
	for _, t := range l.incidents {
		if !t.told && (at.IsZero() || t.due.Before(at)) {
			at = t.due
		}
	}
	return at
}
