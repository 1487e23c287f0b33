package enforce_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

var here = enforce.Binding{Boot: "1b4e", Namespace: "net:[4026531840]#1"}

func openJournal(t *testing.T, dir string, b enforce.Binding) *enforce.FileJournal {
	t.Helper()
	j, err := enforce.OpenJournal(dir, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

// entry makes one whose bytes are no text.
func entry(id uint64) enforce.Entry {
	r := plan.Route{
		Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 31, byte(id >> 8), byte(id)}), 32), PrefSrc: netip.MustParseAddr("192.168.1.10"),
		Raw: "\x02\x18\x00\xfe\xff\x80" + fmt.Sprint(id), Metric: uint32(id), Expires: 7, NexthopID: 3, TOS: 0x10, Type: plan.Throw, Protocol: 16, Pref: plan.PrefLow,
	}
	r = r.WithHops(plan.Hop{Link: 2, Via: netip.MustParseAddr("192.168.1.1")}, plan.Hop{Link: 0xfffffffe, Via: netip.MustParseAddr("fe80::1")})
	return enforce.Entry{
		ID: id, Route: r, Links: []enforce.LinkID{{Index: 2, Name: "eth0", HW: "02:00:00:00:00:02"}},
		Taken: 3 * time.Second, Since: time.Unix(1700000000, 5).UTC(), First: id%2 == 0,
	}
}

func entriesOf(ids ...uint64) (all []enforce.Entry) {
	for _, id := range ids {
		all = append(all, entry(id))
	}
	return all
}

func hold(t *testing.T, j *enforce.FileJournal, ids ...uint64) {
	t.Helper()
	if err := j.Hold(entriesOf(ids...)); err != nil {
		t.Fatal(err)
	}
}

// keeps checks that a journal holds exactly these entries, oldest first.
func keeps(t *testing.T, j *enforce.FileJournal, ids ...uint64) {
	t.Helper()
	got, err := j.Load()
	want := append([]enforce.Entry{}, entriesOf(ids...)...)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v\n%+v\nwant\n%+v", err, got, want)
	}
}

func content(t *testing.T, j *enforce.FileJournal) []byte {
	t.Helper()
	b, err := os.ReadFile(j.Path())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestJournalKeeps(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir, here)
	hold(t, j, 1, 2)
	hold(t, j, 10, 3)
	keeps(t, j, 1, 2, 3, 10)
	if err := j.Forget([]uint64{2, 99}); err != nil {
		t.Fatal(err)
	}
	keeps(t, j, 1, 3, 10)
	again := openJournal(t, dir, here) // the first was not closed: its process died
	keeps(t, again, 1, 3, 10)
	hold(t, again, 4)
	keeps(t, openJournal(t, dir, here), 1, 3, 4, 10)
	if n := again.Notes(); len(n) > 0 {
		t.Errorf("notes on a sound journal: %v", n)
	}
}

func TestJournalForgetsAll(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir, here)
	empty := len(content(t, j))
	hold(t, j, 1, 2)
	if err := j.Forget([]uint64{1, 2}); err != nil {
		t.Fatal(err)
	}
	if n := len(content(t, j)); n != empty {
		t.Errorf("%d bytes are left, an empty journal has %d", n, empty)
	}
	keeps(t, openJournal(t, dir, here))
}

// TestJournalIsCompacted: what comes and goes for ever does not fill the disk,
// and what stays is not lost on the way.
func TestJournalIsCompacted(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir, here)
	hold(t, j, 1)
	largest := 0
	for round := range uint64(100) {
		var ids []uint64
		for i := range uint64(100) {
			ids = append(ids, 2+round*100+i)
		}
		hold(t, j, ids...)
		largest = max(largest, len(content(t, j)))
		if err := j.Forget(ids); err != nil {
			t.Fatal(err)
		}
	}
	if largest > 2<<20 {
		t.Errorf("it grew to %d bytes", largest)
	}
	keeps(t, j, 1)
	keeps(t, openJournal(t, dir, here), 1)
}

// TestJournalCutAnywhere cuts the file all over, as a crash may. What the whole
// lines say is kept, and the journal goes on to be one.
func TestJournalCutAnywhere(t *testing.T) {
	j := openJournal(t, t.TempDir(), here)
	hold(t, j, 1)
	hold(t, j, 2)
	if err := j.Forget([]uint64{1}); err != nil {
		t.Fatal(err)
	}
	byLines := [][]uint64{{}, {}, {1}, {1, 2}, {2}} // the header, two routes, one crossed out
	whole := content(t, j)
	for cut := bytes.IndexByte(whole, '\n') + 1; cut <= len(whole); cut++ {
		left := whole[:cut]
		nearEnd := bytes.Contains(whole[max(0, cut-4):min(len(whole), cut+4)], []byte("\n"))
		if cut%17 != 0 && !nearEnd {
			continue
		}
		lines := bytes.Count(left, []byte("\n"))
		if cut < len(whole) && whole[cut] == '\n' { // only its end is missing
			lines++
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(j.Path())), left, 0o600); err != nil {
			t.Fatal(err)
		}
		torn := openJournal(t, dir, here)
		keeps(t, torn, byLines[lines]...)
		hold(t, torn, 9)
		keeps(t, openJournal(t, dir, here), append(slices.Clone(byLines[lines]), 9)...)
	}
}

func TestJournalDamagedLine(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir, here)
	hold(t, j, 1)
	hold(t, j, 2)
	hold(t, j, 3)
	lines := bytes.SplitAfter(content(t, j), []byte("\n"))
	copy(lines[2][10:], "\x00\xff\"}")
	if err := os.WriteFile(j.Path(), bytes.Join(lines, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := openJournal(t, dir, here)
	keeps(t, damaged, 1, 3)
	if n := damaged.Notes(); len(n) != 1 || !strings.Contains(n[0], "line 3 is damaged") {
		t.Errorf("notes: %v", n)
	}
	aside, err := os.ReadFile(j.Path() + ".damaged")
	if err != nil || !bytes.Equal(aside, lines[2]) || damaged.Damaged() != 1 {
		t.Errorf("kept aside is %q, %v, of %d lines, want %q", aside, err, damaged.Damaged(), lines[2])
	}
	if n := openJournal(t, dir, here).Notes(); len(n) != 0 {
		t.Errorf("the damage is told again: %v", n)
	}
}

// TestJournalWithoutItsHeader: each record says by itself whose it is.
func TestJournalWithoutItsHeader(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir, here)
	hold(t, j, 1, 2)
	whole := content(t, j)
	if err := os.WriteFile(j.Path(), whole[bytes.IndexByte(whole, '\n')+1:], 0o600); err != nil {
		t.Fatal(err)
	}
	other := here
	other.Boot = "2c5f"
	for _, e := range []struct {
		b    enforce.Binding
		want []uint64
	}{{here, []uint64{1, 2}}, {other, nil}} {
		copied := t.TempDir()
		if err := os.WriteFile(filepath.Join(copied, filepath.Base(j.Path())), content(t, j), 0o600); err != nil {
			t.Fatal(err)
		}
		keeps(t, openJournal(t, copied, e.b), e.want...)
	}
}

// TestJournalOfTheFirstVersion: an upgrade goes on with what the version before
// had written down, less what no kernel could have said.
func TestJournalOfTheFirstVersion(t *testing.T) {
	const (
		header = `{"culvert_journal":1,"binding":{"boot":"1b4e","namespace":"net:[4026531840]#1"}}`
		route  = `{"Dst":"172.31.%d.0/24","Src":"","PrefSrc":"","Hop":{"Link":2,"Via":"192.168.1.1"},"More":"","Raw":"","Metric":5,"Expires":0,"NexthopID":0,"TOS":0,"Type":0,"Protocol":4,"Origin":0,"Pref":0,"Dead":false}`
		entry  = `{"id":%d,"route":%s,"links":[{"index":2,"name":"eth0"}],"taken":3,"since":"2023-11-14T22:13:20Z","raw":"AhgAAA==","more":%q}`
	)
	one := func(id int, more string) string { return fmt.Sprintf(entry, id, fmt.Sprintf(route, id), more) }
	file := strings.Join([]string{header, `{"hold":[` + one(1, "") + "," + one(2, "") + `]}`,
		`{"hold":[` + one(3, "") + "," + one(4, "AAAAAv8BAQEBAQEBAQEBAQEBAQEB") + `]}`, // a leg whose address has 255 bytes
		`{"forget":[2]}`, `{"sessions":[{"session":{"tunnel":"tun0","protect":["172.31.0.0/16"]},"link":{"index":5,"name":"tun0"}}]}`, ""}, "\n")
	dir := t.TempDir()
	path := filepath.Join(dir, "journal-4026531840.jsonl")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is today's
		j := openJournal(t, dir, here)
		var ids []uint64
		entries, err := j.Load()
		for _, e := range entries {
			ids = append(ids, e.ID)
		}
		open, _ := j.LoadSessions()
		if err != nil || !slices.Equal(ids, []uint64{1, 3}) || entries[1].Route.Metric != 5 || len(open) != 1 {
			t.Errorf("%v: %+v, sessions %v", err, entries, open)
		}
	}
	if aside, err := os.ReadFile(path + ".damaged"); err != nil || !strings.Contains(string(aside), `"id":4`) {
		t.Errorf("kept aside is %q, %v", aside, err)
	}
}

func TestJournalOfAnother(t *testing.T) {
	others := map[string]enforce.Binding{
		"boot":             {Boot: "2c5f", Namespace: here.Namespace},
		"namespace's life": {Boot: here.Boot, Namespace: "net:[4026531840]#2"},
	}
	for name, b := range others {
		dir := t.TempDir()
		hold(t, openJournal(t, dir, here), 1)
		j := openJournal(t, dir, b)
		keeps(t, j)
		if n := j.Notes(); len(n) != 1 || !strings.Contains(n[0], "discarded") {
			t.Errorf("%s: notes: %v", name, n)
		}
		hold(t, j, 5)
		keeps(t, openJournal(t, dir, b), 5)
		keeps(t, openJournal(t, dir, here))
	}
}

func TestJournalPerNamespace(t *testing.T) {
	dir := t.TempDir()
	there := enforce.Binding{Boot: here.Boot, Namespace: "net:[4026532999]#7"}
	a, b := openJournal(t, dir, here), openJournal(t, dir, there)
	hold(t, a, 1)
	hold(t, b, 2)
	keeps(t, openJournal(t, dir, here), 1)
	keeps(t, openJournal(t, dir, there), 2)
}

func TestJournalCannotBeOpened(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := enforce.OpenJournal(dir, here, nil); err == nil {
		t.Error("a file was taken for the state folder")
	}
}

func TestJournalKeepsSessions(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir, here)
	want := []enforce.KeptSession{{Session: split, Link: enforce.LinkID{Index: 5, Name: "tun0"}}}
	if err := j.KeepSessions(want); err != nil {
		t.Fatal(err)
	}
	hold(t, j, 1)
	again := openJournal(t, dir, here)
	keeps(t, again, 1)
	if got, err := again.LoadSessions(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if err := again.KeepSessions(nil); err != nil {
		t.Fatal(err)
	}
	if got, _ := openJournal(t, dir, here).LoadSessions(); len(got) > 0 {
		t.Errorf("still kept: %v", got)
	}
}
