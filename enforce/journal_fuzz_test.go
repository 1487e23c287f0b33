package enforce

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

var fuzzed = Binding{Boot: "1b4e", Namespace: "net:[4026531840]#1"}

func unread() *FileJournal {
	return &FileJournal{binding: fuzzed, live: map[uint64]Entry{}}
}

// FuzzJournal: whatever is in the file, reading it ends, no entry is believed
// that cannot be one, and what was read is written and read again as it is.
func FuzzJournal(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		j := unread()
		j.read(data)
		soundAgain(t, j)
	})
}

// FuzzJournalRecord: the same of one record whose checksum is right.
func FuzzJournalRecord(f *testing.F) {
	f.Fuzz(func(t *testing.T, object []byte) {
		j := unread()
		line := fmt.Appendf(nil, "%08x %s", crc32.Update(fuzzed.seal(), castagnoli, object), object)
		j.readLine(1, line, false)
		soundAgain(t, j)
	})
}

// soundAgain checks what was read, and that it survives another time.
func soundAgain(t *testing.T, j *FileJournal) {
	t.Helper()
	entries, err := j.Load()
	if err != nil {
		t.Fatal(err)
	}
	var file []byte
	for _, e := range entries {
		if err := checkEntry(&e, nil); err != nil {
			t.Fatalf("%+v: %v", e, err)
		}
		for range e.Route.Hops() { //nolint:revive // it must not panic
		}
		if file, err = appendLine(file, fuzzed.seal(), &record{Hold: toWire(e)}); err != nil {
			t.Skip("no time that JSON can say") // a year of five digits
		}
	}
	again := unread()
	if again.read(file) || len(again.notes) > 0 {
		t.Fatalf("what was written does not read: %v\n%s", again.notes, file)
	}
	if got, _ := again.Load(); !reflect.DeepEqual(got, entries) {
		t.Fatalf("%+v\nwas\n%+v", got, entries)
	}
}

// TestJournalBitFlips turns every bit of a journal over: each route is read as
// it was written, or told of as damaged and not read at all.
func TestJournalBitFlips(t *testing.T) {
	whole := flippable(t)
	sound := unread()
	sound.read(whole)
	if len(sound.live) != 3 || len(sound.open) != 1 || len(sound.notes) > 0 {
		t.Fatalf("the sound journal reads as %+v, %v", sound.live, sound.notes)
	}
	lost := map[int]int{} // how many routes a flip costs
	for bit := range 8 * len(whole) {
		data := bytes.Clone(whole)
		data[bit/8] ^= 1 << (bit % 8)
		j := unread()
		if j.read(data) {
			t.Fatalf("bit %d: taken for another's", bit)
		}
		for id, e := range j.live {
			if !reflect.DeepEqual(e, sound.live[id]) {
				t.Fatalf("bit %d altered a route: %+v\nwas\n%+v", bit, e, sound.live[id])
			}
		}
		missing := len(sound.live) - len(j.live)
		if lost[missing]++; missing > 2 || (missing > 0 && (len(j.notes) == 0 || len(j.damaged) == 0)) {
			t.Fatalf("bit %d: %d routes are lost, and told is %v", bit, missing, j.notes)
		}
	}
	if lost[2] > 3*8 { // only a line's end, gone, takes the next line with it
		t.Errorf("flips by the routes that they cost: %v", lost)
	}
}

// flippable is a journal's bytes: three routes, the first with legs.
func flippable(t *testing.T) []byte {
	t.Helper()
	b := fuzzed
	file, err := appendLine(nil, 0, &record{Journal: journalVersion, Binding: &b})
	open := []KeptSession{{Session: Session{Tunnel: "tun0"}, Link: LinkID{Index: 5, Name: "tun0"}}}
	records := []*record{{Sessions: &open}}
	for _, e := range soundEntries() {
		records = append(records, &record{Hold: toWire(e)})
	}
	for _, r := range records {
		if err == nil {
			file, err = appendLine(file, fuzzed.seal(), r)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func soundEntries() (out []Entry) {
	for i, dst := range []string{"172.31.0.0/24", "172.31.1.0/24", "fd31::/48"} {
		r := plan.Route{Dst: netip.MustParsePrefix(dst), Metric: 7, Protocol: 4, Raw: "\x02\x18\x00\xfe" + dst}
		r = r.WithHops(plan.Hop{Link: 2, Via: netip.MustParseAddr("fe80::1")}, plan.Hop{Link: 3, Via: netip.MustParseAddr("192.168.1.1")})
		out = append(out, Entry{ID: uint64(i + 1), Route: r, Links: []LinkID{{Index: 2, Name: "eth0"}},
			Taken: time.Hour, Since: time.Unix(1700000000, 0).UTC()})
	}
	return out
}
