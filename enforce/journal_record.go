package enforce

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/culvert-project/culvert/enforce/plan"
)

// A line of the journal is eight hexadecimal digits, a space, and one record as
// a JSON object. The digits are a CRC-32C of the object, so that no damaged
// record is believed. The checksum of every record but the header begins with
// the binding's: a record says by itself that it is of this boot and namespace,
// also where the header is damaged.

// record is one line's object: the header, one held route, what is crossed out,
// our own routes, or the sessions.
type record struct {
	Journal int         `json:"culvert_journal,omitempty"`
	Binding *Binding    `json:"binding,omitempty"`
	Marked  bool        `json:"marked,omitempty"` // of the header: no route is ours but those marked
	Hold    *wireEntry  `json:"hold,omitempty"`
	Forget  []uint64    `json:"forget,omitempty"`
	Marks   *MarkChange `json:"marks,omitempty"` // of our own routes
	// Sessions replaces the sessions kept so far, when present.
	Sessions *[]KeptSession `json:"sessions,omitempty"`
}

// wireEntry carries the opaque bytes of a route as base64.
type wireEntry struct {
	Entry
	Raw  []byte `json:"raw,omitempty"`
	More []byte `json:"more,omitempty"`
}

func toWire(e Entry) *wireEntry {
	w := wireEntry{Entry: e, Raw: []byte(e.Route.Raw), More: []byte(e.Route.More)}
	w.Route.Raw, w.Route.More = "", ""
	return &w
}

func (w *wireEntry) entry() Entry {
	e := w.Entry
	e.Route.Raw, e.Route.More = string(w.Raw), string(w.More)
	return e
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal is what the checksums of a binding's records begin with.
func (b Binding) seal() uint32 {
	return crc32.Checksum([]byte(b.Boot+"\x00"+b.Namespace+"\x00"), castagnoli)
}

const sumDigits = 8

// appendLine appends the record as a line.
func appendLine(b []byte, seal uint32, r *record) ([]byte, error) {
	object, err := json.Marshal(r)
	if err != nil {
		return b, fmt.Errorf("encode journal record: %w", err)
	}
	b = fmt.Appendf(b, "%08x ", crc32.Update(seal, castagnoli, object))
	return append(append(b, object...), '\n'), nil
}

// parseLine reads a line that was sealed so; ok is false when it is not what
// was written.
func parseLine(line []byte, seal uint32) (r record, ok bool) {
	if len(line) <= sumDigits || line[sumDigits] != ' ' {
		return r, false
	}
	object := line[sumDigits+1:]
	if string(line[:sumDigits]) != fmt.Sprintf("%08x", crc32.Update(seal, castagnoli, object)) {
		return r, false
	}
	return r, json.Unmarshal(object, &r) == nil
}

// checkEntry says what is wrong with an entry that nobody may act on. Check,
// when not nil, knows the bytes of the System's routes.
func checkEntry(e *Entry, check func(*plan.Route) error) error {
	if e.ID == 0 || e.ID > math.MaxInt64 {
		return errors.New("its number is not one that is given out")
	}
	if flaw := e.Route.Flaw(); flaw != "" {
		return errors.New(flaw)
	}
	if check == nil || e.Route.Raw == "" {
		return nil
	}
	return check(&e.Route)
}
