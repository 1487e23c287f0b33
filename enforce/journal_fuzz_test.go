package enforce

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
)

// FuzzJournal: whatever is in the file, reading it ends, binds only by its
// header, and what was read is written and read again as it is.
func FuzzJournal(f *testing.F) {
	b := Binding{Boot: "1b4e", Namespace: "net:[4026531840]#1"}
	f.Fuzz(func(t *testing.T, data []byte) {
		j := &FileJournal{binding: b, live: map[uint64]Entry{}}
		if j.readLines(data) && !bytes.Contains(data, []byte("1b4e")) {
			t.Fatal("bound without the boot's name")
		}
		var file bytes.Buffer
		entries, err := j.Load()
		if err != nil {
			t.Fatal(err)
		}
		enc := json.NewEncoder(&file)
		if err := enc.Encode(record{Journal: journalVersion, Binding: &b}); err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if err := enc.Encode(record{Hold: []wireEntry{toWire(e)}}); err != nil {
				t.Skip("no time that JSON can say") // a year of five digits
			}
		}
		again := &FileJournal{binding: b, live: map[uint64]Entry{}}
		if !again.readLines(file.Bytes()) || len(again.notes) > 0 {
			t.Fatalf("what was written does not read: %v\n%s", again.notes, file.Bytes())
		}
		if got, _ := again.Load(); !reflect.DeepEqual(got, entries) {
			t.Fatalf("%+v\nwas\n%+v", got, entries)
		}
	})
}
