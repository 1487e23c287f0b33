package witness

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/loader"
)

// The bounds of what is kept.
const (
	incidentsKept = 256 // as many as the enforcer keeps
	rowsKept      = 2048
	othersKept    = 256 // beyond them, of those that there is no room to tell apart
	causesKept    = 4096
	namesKept     = 4096
	pastKept      = 256
	samplesKept   = 4096
	looseKept     = 512
	looseFor      = time.Minute // an incident may be told of this long after its packets were counted
	causeFor      = time.Second // a way is asked for again after it
	questions     = 200         // ways asked for between two readings
)

// ledger books each packet that was counted once: to the incident that let it
// out, or to a finding. It belongs to one goroutine.
type ledger struct {
	sys     System
	ownerOf func(id uint32) (owner, bool)
	names   map[int]string // of interfaces, also those that are gone

	measured bool // packets are counted at all
	budget   int  // of questions, until the next reading

	counted   map[counterKey]report.Totals // booked so far
	charged   map[charge]report.Totals     // booked so far
	past      map[string]report.Totals     // of interfaces that are gone, by name
	causes    map[who]dated
	rows      map[rowKey]*report.Finding
	fresh     map[rowKey]report.Totals // since the last events
	loose     []loose                  // booked to no incident, but may be some day
	incidents []*tracked
	samples   []note
	sums      sums
	resolvers resolvers
	passed    []report.Exempt // by rule, at the last reading
	lastRead  time.Time
}

type counterKey struct {
	device int
	prefix uint32
	reason loader.Reason
	upper  bool
}

// ofGone is the device of a sum of all interfaces that are gone.
const ofGone = 0

// charge is a sender, apart for packets that are counted once more below its
// interface and for those that are not.
type charge struct {
	id    who
	upper bool
}

type dated struct {
	cause
	at time.Time
}

type rowKey struct {
	id        who
	mechanism report.Mechanism
	incident  uint64
}

// loose is an amount that a route of table main may have let out.
type loose struct {
	id       who
	comm     string // the sender's name at the time
	to       netip.AddrPort
	from, by time.Time // when its packets left
	sum      report.Totals
	cause    cause
	row      rowKey // that it was added to
}

// note is what a sample teaches: which packets left when.
type note struct {
	at time.Time
	id who
	to netip.Addr
	n  uint64
}

func newLedger(sys System, ownerOf func(uint32) (owner, bool)) *ledger {
	return &ledger{
		sys: sys, ownerOf: ownerOf, names: map[int]string{},
		counted: map[counterKey]report.Totals{}, charged: map[charge]report.Totals{}, past: map[string]report.Totals{},
		causes: map[who]dated{}, rows: map[rowKey]*report.Finding{}, fresh: map[rowKey]report.Totals{},
		sums: newSums(), resolvers: resolvers{}, budget: questions,
	}
}

// incident takes in an incident.
func (l *ledger) incident(t *tracked) {
	if len(l.incidents) == incidentsKept {
		l.incidents = slices.Delete(l.incidents, 0, 1)
	}
	l.incidents = append(l.incidents, t)
}

// sample takes in a sample, and asks for its way while that may still be as it
// was. It reports whether its sender is new.
func (l *ledger) sample(ctx context.Context, s *loader.Sample, now time.Time) (fresh bool) {
	id := sampleWho(s)
	if len(l.samples) >= samplesKept {
		l.samples = slices.Delete(l.samples, 0, samplesKept/4)
	}
	l.samples = append(l.samples, note{s.Time, id, s.Destination.Addr(), uint64(max(1, s.Segments))})
	own, _ := l.ownerOf(id.prefix)
	l.resolvers.note(s.Destination, s.Proto, s.Reason, own.tunnel, s.Dropped, s.Time)
	known, ok := l.causes[id]
	if !ok || now.Sub(known.at) >= causeFor {
		l.ask(ctx, seen{id: id, to: s.Destination, src: s.Source.Addr(), proto: s.Proto, tos: s.TOS, mark: s.Mark, cgroup: s.Cgroup}, now)
	}
	return !ok
}

// ask notes what led a sender past the tunnel. An answer that explains stands
// until there is a better one than "no route leads there now".
func (l *ledger) ask(ctx context.Context, s seen, now time.Time) cause {
	if own, ok := l.ownerOf(s.id.prefix); ok {
		s.tunnel, s.present = own.link, true
	}
	l.name(s.id.device)
	c := explain(ctx, l.limited(), &s)
	l.keepCause(s.id, dated{c, now})
	return c
}

// keepCause makes room by letting go of any other: whose it was is asked again.
func (l *ledger) keepCause(id who, c dated) {
	if _, ok := l.causes[id]; !ok && len(l.causes) >= causesKept {
		for victim := range l.causes {
			delete(l.causes, victim)
			break
		}
	}
	l.causes[id] = c
}

// limited is the system while the budget lasts.
func (l *ledger) limited() System {
	if l.budget == 0 {
		return busy{l.sys}
	}
	l.budget--
	return l.sys
}

// busy answers no questions that cost much.
type busy struct{ System }

var errBusy = errors.New("too many senders at once")

// Way fails.
func (busy) Way(context.Context, Packet) (Way, error) { return Way{}, errBusy }

func (l *ledger) name(index int) string {
	if n := l.sys.Link(index); n != "" {
		l.names[index] = n
	}
	return l.names[index]
}

// read books what was counted since the last reading. Counters are read before
// senders, so that no sender lacks what a counter has.
func (l *ledger) read(ctx context.Context, counters []loader.Counter, senders []loader.Sender, now time.Time) {
	l.budget = questions
	l.adopt(now)
	by := map[counterKey][]loader.Sender{}
	present := map[who]bool{}
	for _, s := range senders {
		key := counterKey{s.Interface, s.Prefix, s.Reason, s.Upper}
		by[key] = append(by[key], s)
		present[senderWho(&s)] = true
		own, _ := l.ownerOf(s.Prefix)
		l.resolvers.note(s.To, s.Proto, s.Reason, own.tunnel, s.Dropped > 0, s.Last)
	}
	keys, totals := leaking(counters)
	moved := l.pass(totals)
	l.sums = newSums()
	for _, key := range keys {
		total := totals[key]
		l.sums.add(l, key, total)
		l.book(ctx, key, minus(minus(total, l.counted[key]), moved[key]), by[key], now)
		l.counted[key] = total
	}
	l.sums.addPast(l.past)
	gone := func(id who) bool { return !present[id] }
	maps.DeleteFunc(l.charged, func(c charge, _ report.Totals) bool { return gone(c.id) })
	maps.DeleteFunc(l.causes, func(id who, c dated) bool { return gone(id) && now.Sub(c.at) > looseFor })
	l.passed = l.exempt(counters)
	l.forgetNames(counters)
	l.lastRead = now
}

// leaking is what of each leak counts, in the order of the counters.
func leaking(counters []loader.Counter) (keys []counterKey, totals map[counterKey]report.Totals) {
	totals = map[counterKey]report.Totals{}
	for _, c := range counters {
		if c.Reason.Leak() {
			key := counterKey{c.Interface, c.Prefix, c.Reason, c.Upper}
			keys = append(keys, key)
			totals[key] = effective(c.Upper, report.Totals{Packets: c.Packets, Bytes: c.Bytes, Dropped: c.Dropped})
		}
	}
	return keys, totals
}

// pass forgets interfaces that are gone. Their sums have moved into the one for all
// that are gone, and are no new leaks there: pass returns how much moved.
func (l *ledger) pass(totals map[counterKey]report.Totals) (moved map[counterKey]report.Totals) {
	moved = map[counterKey]report.Totals{}
	for key, t := range l.counted {
		if _, ok := totals[key]; ok {
			continue
		}
		delete(l.counted, key)
		to := key
		to.device = ofGone
		sum := moved[to]
		sum.Add(t)
		moved[to] = sum
		name := l.deviceName(key.device)
		if own, ok := l.past[name]; ok || len(l.past) < pastKept {
			own.Add(t)
			l.past[name] = own
		}
	}
	return moved
}

// forgetNames lets go of interfaces that no sum is of any more, once there are
// too many.
func (l *ledger) forgetNames(counters []loader.Counter) {
	if len(l.names) <= namesKept {
		return
	}
	counted := map[int]bool{}
	for _, c := range counters {
		counted[c.Interface] = true
	}
	maps.DeleteFunc(l.names, func(index int, _ string) bool { return !counted[index] })
}

// effective is what of an interface's sum counts: one that sits on others only
// counts what it stopped, the rest is counted below it.
func effective(upper bool, t report.Totals) report.Totals {
	if !upper || t.Packets == 0 {
		return t
	}
	return report.Totals{Packets: t.Dropped, Bytes: t.Bytes * t.Dropped / t.Packets, Dropped: t.Dropped}
}

func minus(a, b report.Totals) report.Totals {
	return report.Totals{Packets: a.Packets - min(a.Packets, b.Packets), Bytes: a.Bytes - min(a.Bytes, b.Bytes), Dropped: a.Dropped - min(a.Dropped, b.Dropped)}
}

// book shares what one counter gained among its senders, and books the rest to
// nobody known.
func (l *ledger) book(ctx context.Context, key counterKey, gain report.Totals, senders []loader.Sender, now time.Time) {
	for i := range senders {
		s := &senders[i]
		id := senderWho(s)
		own := charge{id, key.upper}
		total := effective(key.upper, report.Totals{Packets: s.Packets, Bytes: s.Bytes, Dropped: s.Dropped})
		was := l.charged[own]
		if total.Packets < was.Packets {
			was = report.Totals{} // it gave way to others, and came again
		}
		share := upTo(minus(total, was), gain)
		was.Add(share)
		l.charged[own] = was
		if share.Packets == 0 {
			continue
		}
		gain = minus(gain, share)
		c := l.causeOf(ctx, seen{id: id, to: s.To, proto: s.Proto, tos: s.TOS, mark: s.Mark, cgroup: s.Cgroup}, now)
		l.enter(loose{id: id, comm: s.Comm, to: s.To, from: later(s.First, l.lastRead), by: s.Last, sum: share, cause: c})
	}
	if gain.Packets > 0 {
		id := who{device: key.device, prefix: key.prefix, reason: key.reason, pid: 0, uid: -1}
		c := l.causeOf(ctx, seen{id: id}, now)
		l.enter(loose{id: id, from: l.lastRead, by: now, sum: gain, cause: c})
	}
}

// upTo is no more of a than there is of limit.
func upTo(a, limit report.Totals) report.Totals {
	return report.Totals{Packets: min(a.Packets, limit.Packets), Bytes: min(a.Bytes, limit.Bytes), Dropped: min(a.Dropped, limit.Dropped)}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (l *ledger) causeOf(ctx context.Context, s seen, now time.Time) cause {
	if c, ok := l.causes[s.id]; ok {
		return c.cause
	}
	if !s.to.IsValid() && s.id.reason == loader.LeakProtected {
		return cause{report.Unknown, "its sender gave way to others before it was read"}
	}
	return l.ask(ctx, s, now)
}

// enter books an amount to the incidents that let it out, else to a finding.
func (l *ledger) enter(x loose) {
	if !x.cause.ofTable() {
		l.add(x, 0, x.sum)
		return
	}
	if !l.settle(x) {
		x.row = l.add(x, 0, x.sum)
		if len(l.loose) < looseKept {
			l.loose = append(l.loose, x)
		}
	}
}

// settle books an amount to the incidents that let it out, if there are any.
func (l *ledger) settle(x loose) bool {
	list := l.candidates(&x)
	if len(list) == 0 {
		return false
	}
	for _, s := range l.split(&x, list) {
		if s.sum.Packets == 0 {
			continue
		}
		own := x
		own.cause = s.to.cause()
		l.add(own, s.to.ID, s.sum)
		s.to.charge(x.id, func() report.Sender { return l.sender(x.id, x.comm) }, s.sum, s.shared)
	}
	return true
}

// adopt looks again at what was booked to no incident, now that more are known.
func (l *ledger) adopt(now time.Time) {
	l.loose = slices.DeleteFunc(l.loose, func(x loose) bool {
		if now.Sub(x.by) > looseFor {
			return true
		}
		if !l.settle(x) {
			return false
		}
		l.take(x)
		return true
	})
}

// candidates are the incidents that may have let an amount out.
func (l *ledger) candidates(x *loose) (out []*tracked) {
	device := l.names[x.id.device]
	for _, t := range l.incidents {
		if t.near(x.from, x.by) && (t.fits(device, x.to.Addr()) || l.sampled(t, x, device)) {
			out = append(out, t)
		}
	}
	return out
}

// sampled reports whether any sample of an amount went by an incident's route.
func (l *ledger) sampled(t *tracked, x *loose, device string) bool {
	return slices.ContainsFunc(l.samples, func(n note) bool { return x.covers(&n) && t.fits(device, n.to) })
}

// covers reports whether a sample is of the amount.
func (x *loose) covers(n *note) bool {
	return n.id == x.id && !n.at.Before(x.from.Add(-time.Millisecond)) && !n.at.After(x.by.Add(time.Millisecond))
}

// part is an incident's share of an amount.
type part struct {
	to     *tracked
	sum    report.Totals
	shared bool
}

// split divides an amount among incidents: each sample goes to the one that was
// nearest in time. Without samples the latest has it all.
func (l *ledger) split(x *loose, list []*tracked) []part {
	parts := make([]part, len(list))
	for i, t := range list {
		parts[i].to = t
	}
	if len(list) == 1 {
		parts[0].sum = x.sum
		return parts
	}
	weights, all := l.weigh(x, list)
	if all == 0 {
		weights[len(list)-1], all = 1, 1
		parts[len(list)-1].shared = true
	}
	rest, left := x.sum, all
	for i, w := range weights {
		if w == 0 {
			continue
		}
		parts[i].sum = fraction(rest, w, left)
		parts[i].shared = parts[i].shared || w < all
		rest, left = minus(rest, parts[i].sum), left-w
	}
	return parts
}

// weigh counts the sampled packets that each incident is nearest to.
func (l *ledger) weigh(x *loose, list []*tracked) (weights []uint64, all uint64) {
	weights = make([]uint64, len(list))
	device := l.names[x.id.device]
	for i := range l.samples {
		n := &l.samples[i]
		if !x.covers(n) {
			continue
		}
		best, at := -1, time.Duration(0)
		for j, t := range list {
			if d := t.distance(n.at); t.fits(device, n.to) && (best < 0 || d <= at) {
				best, at = j, d
			}
		}
		if best >= 0 {
			weights[best] += n.n
			all += n.n
		}
	}
	return weights, all
}

func fraction(t report.Totals, w, all uint64) report.Totals {
	return report.Totals{Packets: t.Packets * w / all, Bytes: t.Bytes * w / all, Dropped: t.Dropped * w / all}
}

// add books an amount to a row, and returns which.
func (l *ledger) add(x loose, incident uint64, sum report.Totals) rowKey {
	key := l.rowOf(x.id, rowKey{x.id, x.cause.mechanism, incident})
	r := l.rows[key]
	if r == nil {
		r = l.finding(key, &x)
		l.rows[key] = r
	}
	r.Add(sum)
	r.Last, r.Why = later(r.Last, x.by), x.cause.text
	if x.comm != "" && !key.id.others {
		r.Process = x.comm
	}
	if x.to.IsValid() {
		r.To = destination(x)
	}
	now := l.fresh[key]
	now.Add(sum)
	l.fresh[key] = now
	return key
}

// rowOf finds a row that there is room for: a sender's own, else one for the
// others of its interface, prefix and mechanism, else the one for all.
func (l *ledger) rowOf(id who, own rowKey) rowKey {
	if _, ok := l.rows[own]; ok || len(l.rows) < rowsKept {
		return own
	}
	others := rowKey{who{device: id.device, prefix: id.prefix, reason: id.reason, others: true}, own.mechanism, 0}
	if _, ok := l.rows[others]; ok || len(l.rows) < rowsKept+othersKept {
		return others
	}
	return rowKey{who{others: true}, report.Unknown, 0}
}

// take undoes add for an amount that went to an incident after all.
func (l *ledger) take(x loose) {
	r := l.rows[x.row]
	if r == nil {
		return
	}
	r.Totals = minus(r.Totals, x.sum)
	if r.Packets == 0 {
		delete(l.rows, x.row)
	}
}
