package enforce

import (
	"errors"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

// counting is a Journal that counts what it is told to hold.
type counting struct {
	noJournal
	n int
}

func (c *counting) Hold(list []Entry) error { c.n += len(list); return nil }

// TestLivesAreWritten: once a minute, as many as are still held.
func TestLivesAreWritten(t *testing.T) {
	e, _ := protecting(t)
	j := &counting{}
	e.journal, e.facts.Uptime = j, time.Hour
	e.held.add(Entry{ID: 1, Route: route("172.31.5.0/24", "192.168.1.66")})
	e.lives, e.livesAt = map[uint64]bool{1: true, 2: true}, time.Hour-livesPause+1
	if e.writeLives(); j.n != 0 || len(e.lives) != 2 {
		t.Errorf("%d written before the minute is over", j.n)
	}
	e.livesAt = time.Hour - livesPause
	if e.writeLives(); j.n != 1 || len(e.lives) != 0 || e.livesAt != time.Hour {
		t.Errorf("%d written, at %v", j.n, e.livesAt)
	}
}

// markBook is a Journal that notes what it is told of marks.
type markBook struct {
	noJournal
	told []MarkChange
	err  error
}

func (m *markBook) LoadMarks() ([]Mark, bool) {
	return []Mark{{Dst: pfx("10.9.0.0/16"), Link: vpn}}, true
}
func (m *markBook) KeepMarks(c MarkChange) error {
	m.told = append(m.told, c)
	return m.err
}

// TestMarks: what we put is written down before it is put, once, and crossed out when it
// neither stands nor may be put. Where it cannot be written it is known all the same.
func TestMarks(t *testing.T) {
	e, _ := protecting(t)
	book := &markBook{err: errors.New("no space")}
	e.marks.load(book)
	put := plan.Route{Dst: pfx("10.9.0.0/16"), Hop: plan.Hop{Link: vpn}, Origin: plan.Own}
	nowhere := plan.Route{Dst: pfx("2000::/3"), Type: plan.Unreachable, Hop: plan.Hop{Link: 7}, Origin: plan.Own}
	back, direct := route("203.0.113.0/24", "192.168.1.66"), plan.Route{Dst: pfx("203.0.114.0/24"), Hop: plan.Hop{Link: lan}}
	object := route("203.0.115.0/24", "192.168.1.77")
	object.NexthopID = 4
	actions := []plan.Action{{Kind: plan.Put, Route: put}, {Kind: plan.Put, Route: nowhere}, {Kind: plan.Restore, Route: back}, {Kind: plan.Restore, Route: direct},
		{Kind: plan.Restore, Route: object}, {Kind: plan.Remove, Route: route("172.31.5.0/24", "192.168.1.88")}}
	e.markActions(actions)
	want := []Mark{{Dst: pfx("192.168.1.66/32"), Link: lan}, {Dst: pfx("2000::/3")}}
	slices.SortFunc(want, compareMarks)
	check := func(what string) {
		t.Helper()
		if len(book.told) != 1 {
			t.Fatalf("%s: told %+v", what, book.told)
		}
		if got := book.told[0].Add; !slices.Equal(slices.SortedFunc(slices.Values(got), compareMarks), want) {
			t.Errorf("%s: added %v, want %v", what, got, want)
		}
	}
	check("the disk is full")
	e.marks.begin()
	if e.marks.judge(&nowhere); nowhere.Origin != plan.Own || !e.unmarked || len(e.marks.set) != 1 {
		t.Errorf("what could not be written is another's: %+v", e.marks)
	}
	copied := e.marks.copied()
	if len(copied.set) != 1 || !copied.unsaved[Mark{Dst: pfx("2000::/3")}] || !copied.known {
		t.Errorf("a copy knows %+v", copied)
	}
	book.told, book.err = nil, nil
	e.markActions(actions)
	check("there is room again")
	if book.told = nil; e.unmarked || len(e.marks.unsaved) != 0 {
		t.Errorf("it is not known to be written: %+v", e.marks)
	}
	e.markActions(actions)
	if len(book.told) != 0 {
		t.Errorf("written again: %+v", book.told)
	}
	e.opt.Audit = true
	e.sessions[0].Exclude = []netip.Prefix{pfx("172.31.9.0/24")}
	e.rebuild()
	e.markPolicy(e.policy())
	if e.settleMarks(); len(book.told) != 0 {
		t.Errorf("where nothing is changed: %+v", book.told)
	}
	e.opt.Audit = false
	if got := policyMarks(e.policy()); !slices.Equal(got, []Mark{{Dst: pfx("172.31.0.0/16"), Link: vpn}}) {
		t.Errorf("by the policy are put %v", got)
	}
	e.settleMarks()
	if len(book.told) != 1 || len(book.told[0].Drop) != 2 || slices.Contains(book.told[0].Drop, Mark{Dst: pfx("2000::/3")}) || !book.told[0].All {
		t.Errorf("at the end: %+v", book.told)
	}
	if !slices.Equal(book.told[0].Add, []Mark{{Dst: pfx("172.31.0.0/16"), Link: vpn}}) {
		t.Errorf("what may be put is not added: %v", book.told[0].Add)
	}
	if e.settleMarks(); len(book.told) != 1 {
		t.Errorf("nothing has changed, and it is told %+v", book.told)
	}
	stranger := plan.Route{Dst: pfx("203.0.113.9/32"), Hop: plan.Hop{Link: lan}, Origin: plan.Own}
	if e.marks.judge(&stranger); stranger.Origin != plan.Foreign {
		t.Error("another's is taken for ours")
	}
	book.told, book.err = nil, errors.New("no space")
	e.marks.begin()
	if err := e.marks.end(nil); err == nil || len(e.marks.set) == 0 {
		t.Errorf("what could not be crossed out is: %v, %+v", err, e.marks.set)
	}
}

// TestUnsoundEntries: what nobody may act on.
func TestUnsoundEntries(t *testing.T) {
	sound := soundEntries()[0]
	bad := errors.New("bad bytes")
	check := func(r *plan.Route) error {
		if r.Raw != soundEntries()[0].Route.Raw {
			return bad
		}
		return nil
	}
	for name, c := range map[string]struct {
		set  func(*Entry)
		want bool
	}{
		"sound": {func(*Entry) {}, true}, "the last number": {func(e *Entry) { e.ID = math.MaxInt64 }, true}, "no number": {func(e *Entry) { e.ID = 0 }, false},
		"beyond the last": {func(e *Entry) { e.ID = math.MaxInt64 + 1 }, false}, "no prefix": {func(e *Entry) { e.Route.Dst = netip.Prefix{} }, false},
		"bad bytes": {func(e *Entry) { e.Route.Raw = "x" }, false}, "no bytes": {func(e *Entry) { e.Route.Raw = "" }, true},
	} {
		e := sound
		c.set(&e)
		if err := checkEntry(&e, check); (err == nil) != c.want {
			t.Errorf("%s: %v", name, err)
		}
		if err := checkEntry(&e, nil); (err == nil) != (c.want || name == "bad bytes") {
			t.Errorf("%s, its bytes not known: %v", name, err)
		}
	}
	for _, line := range []string{"", "0123456", "00000000", "00000000 ", "00000000 {}"} {
		if _, ok := parseLine([]byte(line), 0); ok {
			t.Errorf("%q is believed", line)
		}
	}
	for line, want := range map[string]bool{
		`{"culvert_journal":1,"binding":{"boot":"b"}}`: true, `{"culvert_journal":2,"binding":{"boot":"b"}}`: false, `{"culvert_journal":1}`: false, `nonsense`: false,
	} {
		if _, ok := oldHeader([]byte(line)); ok != want {
			t.Errorf("%s is an old header: %t", line, ok)
		}
	}
	j := unread()
	if j.readOldLine(2, []byte("nonsense")); j.lost != 1 || len(j.damaged) != 1 {
		t.Errorf("a damaged line of the first version: %d lost", j.lost)
	}
}

// TestJournalsFolder: a journal that was taken away is made again only where its folder
// may be used.
func TestJournalsFolder(t *testing.T) {
	j, again := oneHeld(t)
	denied := errors.New("another user's")
	answer := denied
	j.Folder(func() error { return answer })
	if err := j.Secure(); err != nil {
		t.Errorf("it stands: %v", err)
	}
	if err := os.Remove(j.path); err != nil {
		t.Fatal(err)
	}
	if err := j.Secure(); !errors.Is(err, denied) || !strings.Contains(err.Error(), j.path) {
		t.Errorf("it was taken away: %v", err)
	}
	if _, err := os.Lstat(j.path); err == nil {
		t.Error("it was made in another's folder")
	}
	if answer = nil; j.Secure() != nil || len(again()) != 1 {
		t.Error("it is not made again")
	}
	if err := os.WriteFile(j.path+"2", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(j.path+"2", j.path); err != nil || j.stands() {
		t.Errorf("another file is taken for it: %v", err)
	}
	_ = j.Close()
	if j.stands() {
		t.Error("a closed file stands")
	}
	if _, err := openRegular(filepath.Join(j.path, "x"), os.O_RDWR); err == nil {
		t.Error("a file is a folder")
	}
	if err := j.replay(); err == nil || !strings.Contains(err.Error(), "read journal") {
		t.Errorf("what cannot be read: %v", err)
	}
}

// TestAllMarks: once no route is ours but those marked, it stays so.
func TestAllMarks(t *testing.T) {
	j := unread()
	j.marks = map[Mark]bool{}
	one := Mark{Dst: pfx("10.0.0.0/8"), Link: lan}
	for i, c := range []MarkChange{{Add: []Mark{one}}, {All: true}, {Drop: []Mark{one}}} {
		j.mark(&c)
		if list, all := j.LoadMarks(); all != (i > 0) || (len(list) == 1) != (i < 2) {
			t.Errorf("change %d: %v, all %t", i, list, all)
		}
	}
}
