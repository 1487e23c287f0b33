//go:build linux

package promise

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
)

// attack is what somebody else does to the table. Routes that it adds carry the
// protocol 78 while the sessions open, when they may count as having stood
// before, and 77 afterwards.
type attack struct {
	batches  [2][][]string // while opening, and afterwards
	prefixes map[netip.Prefix]bool
	objects  map[string]bool
	addrs    map[netip.Prefix]bool // of eth2: whether it has it in the end
}

// touches reports whether the attack itself may have changed an entry.
func (a *attack) touches(entry string) bool {
	if a.prefixes[destination(entry)] {
		return true
	}
	for _, m := range objectID.FindAllStringSubmatch(entry, -1) {
		if a.objects[m[1]] {
			return true
		}
	}
	return false
}

var objectID = regexp.MustCompile(`nhid (\d+)`)

// destination is the prefix that an entry is about.
func destination(entry string) netip.Prefix {
	word := strings.Fields(strings.TrimPrefix(entry, sharedMark))[1]
	if word == "default" {
		if isV6(entry) {
			word = "::/0"
		} else {
			word = "0.0.0.0/0"
		}
	}
	all := prefixesIn(word)
	if len(all) == 0 {
		return netip.Prefix{}
	}
	return all[0]
}

var attackAddrs = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.41/30"), netip.MustParsePrefix("10.0.0.9/29"),
	netip.MustParsePrefix("fd00::29/125"), netip.MustParsePrefix("fd00::2/126"),
}

func (w *world) makeAttack() *attack {
	a := &attack{prefixes: map[netip.Prefix]bool{}, objects: map[string]bool{}, addrs: map[netip.Prefix]bool{}}
	routes := slices.DeleteFunc(slices.Clone(w.lines), func(l string) bool { return !strings.HasPrefix(l, "route ") })
	for phase, proto := range []string{"78", "77"} {
		for range 2 + w.rng.IntN(4) {
			var batch []string
			for range 1 + w.rng.IntN(8) {
				batch = append(batch, w.strike(a, routes, proto))
			}
			a.batches[phase] = append(a.batches[phase], batch)
		}
	}
	return a
}

// strike is one line of an attack.
func (w *world) strike(a *attack, routes []string, proto string) string {
	switch {
	case w.chance(12):
		return a.touch(w.route("replace", proto))
	case w.chance(12): // the VPN's routes too
		words := strings.Fields(pick(w, routes))
		words[1] = "del"
		return a.touch(strings.Join(words, " "))
	case w.chance(10):
		id := pick(w, []uint32{1, 2, 4, 5, 8, 9})
		return a.touchObject(id, w.object(id, "replace"))
	case w.chance(3):
		return a.touchObject(8, "nexthop del id 8")
	case w.chance(8):
		return w.strikeAddress(a)
	}
	line := w.route(pick(w, []string{"append", "prepend"}), proto)
	if strings.Contains(line, "::") { // it may become a leg of one that stood
		a.touch(line)
	}
	return line
}

func (a *attack) touch(line string) string {
	for _, word := range strings.Fields(line)[2:4] { // a type may come first
		if p, err := netip.ParsePrefix(word); err == nil {
			a.prefixes[p] = true
		}
	}
	return line
}

func (a *attack) touchObject(id uint32, line string) string {
	a.objects[strings.Fields(line)[3]] = true
	switch id {
	case 1, 2:
		a.objects["3"] = true
	case 4, 5:
		a.objects["6"] = true
	}
	return line
}

// strikeAddress gives eth2 an address or takes it away again.
func (w *world) strikeAddress(a *attack) string {
	p := pick(w, attackAddrs)
	if a.addrs[p] = !a.addrs[p]; a.addrs[p] {
		a.prefixes[p.Masked()] = true // what is there may look like its route
		w.more = append(w.more, p.Addr(), last(p))
		w.lowest = append(w.lowest, p.Masked().Addr())
		return "addr add " + p.String() + " dev eth2 nodad"
	}
	return "addr del " + p.String() + " dev eth2"
}

// TestPromiseUnderAttack: random routes, deletions, nexthop objects and
// addresses come while sessions open and afterwards. When it has become quiet
// the promise holds, and after the disconnect what the attack left alone is
// back, and what it added while connected is not.
func TestPromiseUnderAttack(t *testing.T) {
	needs(t)
	var sum tally
	t.Cleanup(func() {
		t.Logf("%d tables under attack; protected answers wrong before %d, after %d, of %d",
			sum.tables.Load(), sum.before.Load(), sum.after.Load(), sum.of.Load())
	})
	eachSeed(t, *attackRuns, func(t *testing.T, l *lab, seed uint64) { l.underAttack(t, seed, &sum) })
}

func (l *lab) underAttack(t *testing.T, seed uint64, sum *tally) {
	w := newWorld(seed ^ 1<<32)
	if len(w.sessions) == 0 {
		return
	}
	a := w.makeAttack()
	l.build(t, w)
	before := l.table(t)
	wrong, _ := l.violations(t, w, questions(boundaries(w.sessions, before)))
	sum.before.Add(int64(len(wrong)))

	e := startEnforcer(t, l.sys, &enforcetest.Journal{}, seed%2 == 0)
	done := l.strikeAside(t, a.batches[0])
	for _, s := range w.sessions {
		if _, err := e.e.Open(t.Context(), s); err != nil {
			t.Errorf("open %s: %v", s.Tunnel, err)
		}
		e.tunnels = append(e.tunnels, s.Tunnel)
	}
	<-done
	<-l.strikeAside(t, a.batches[1])
	during := l.quiet(t, e.e)
	l.readObjects(t)
	l.readGateways(w, during)
	l.orphans = true
	wrong, of := l.violations(t, w, questions(boundaries(w.sessions, before, during)))
	e.end(t)
	after := l.table(t)

	sum.tables.Add(1)
	sum.after.Add(int64(len(wrong)))
	sum.of.Add(int64(of))
	complain(t, "quiet again, protected addresses", wrong)
	complain(t, "after the disconnect", l.aftermath(t, a, before, during, after))
	if t.Failed() {
		t.Logf("seed %d\n%sattack\n%v\nbefore\n%sconnected\n%safter\n%s", seed, w, a.batches, before, during, after)
	}
}

// strikeAside carries out batches beside the caller; the channel is closed at
// the end.
func (l *lab) strikeAside(t *testing.T, batches [][]string) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, b := range batches {
			l.batch(t, "-force", b)
		}
	}()
	return done
}

// quiet waits until every session enforces and the table has stopped changing,
// and returns it.
func (l *lab) quiet(t *testing.T, e *enforce.Enforcer) (table string) {
	t.Helper()
	const still = 600 * time.Millisecond // a busy machine takes that long from one reading to the next
	var since time.Time
	ok := func() bool {
		st, err := e.Status(t.Context())
		enforcing := err == nil && !slices.ContainsFunc(st.Sessions, func(s enforce.SessionStatus) bool { return s.State != enforce.Enforcing })
		now := l.table(t)
		if !enforcing || now != table {
			table, since = now, time.Now()
		}
		return time.Since(since) > still
	}
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			st, err := e.Status(t.Context())
			t.Fatalf("not quiet: %+v, %v\n%s", st.Sessions, err, table)
		}
	}
	return table
}

// aftermath says what is wrong with the table after the disconnect.
func (l *lab) aftermath(t *testing.T, a *attack, before, during, after string) (out []string) {
	t.Helper()
	for _, e := range gone(before, after) {
		if !a.touches(e) && !l.hidden(t, e, after) {
			out = append(out, "lost: "+e)
		}
	}
	for _, e := range gone(after, before) {
		switch {
		case strings.Contains(e, " proto 117 "):
			out = append(out, "culvert's own: "+e)
		case strings.Contains(e, " proto 77 ") && !a.touches(e) && slices.Contains(gone(after, during), e):
			out = append(out, "given back to the attacker: "+e)
		}
	}
	for p, has := range a.addrs {
		if has != connected(after, p) {
			out = append(out, "eth2 has "+p.String()+" or not, and its network's route the other way round")
		}
	}
	return out
}

// connected reports whether an address of eth2 has its network's route.
func connected(table string, p netip.Prefix) bool {
	return slices.ContainsFunc(entries(table), func(e string) bool {
		return strings.Contains(e, " "+p.Masked().String()+" dev eth2 proto kernel ")
	})
}
