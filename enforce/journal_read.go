package enforce

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// replay reads the file into live, and begins it anew where it is not ours.
// What is damaged is kept aside before the file is written without it.
func (j *FileJournal) replay() error {
	data, err := io.ReadAll(j.file)
	if err != nil {
		return fmt.Errorf("read journal %s: %w", j.path, err)
	}
	if other := j.read(data); other {
		j.marked = true
		return j.rewrite()
	}
	// An earlier version kept no marks: what it may have left is not known. It put
	// nothing that outlives it without a session or a held route.
	j.marked = j.marked || len(j.open) == 0 && len(j.live) == 0 && j.lost == 0
	if err = j.keepAside(); err == nil {
		err = j.rewrite()
	}
	if err != nil {
		// A full disk must not keep what is written down from being read.
		j.size = int64(bytes.LastIndexByte(data, '\n') + 1)
		j.notes = append(j.notes, err.Error())
	}
	return nil
}

// read takes in the whole file, unless it is another boot's or namespace's.
func (j *FileJournal) read(data []byte) (other bool) {
	b, old := oldHeader(firstLine(data))
	other = old && b != j.binding
	for n := 1; len(data) > 0 && !other; n++ {
		line := firstLine(data)
		j.torn = len(line) == len(data)
		data = data[min(len(line)+1, len(data)):]
		other = j.readLine(n, line, old)
	}
	if other {
		clear(j.live)
		j.open, j.damaged, j.lost = nil, nil, 0
		j.marks, j.marked = map[Mark]bool{}, false
		j.notes = []string{"the journal was left by another boot or network namespace: discarded"}
	}
	return other
}

func firstLine(data []byte) []byte {
	line, _, _ := bytes.Cut(data, []byte("\n"))
	return line
}

// readLine takes in one line. It reports whether the line is the header of
// another boot or namespace.
func (j *FileJournal) readLine(n int, line []byte, old bool) (other bool) {
	if r, ok := parseLine(line, 0); ok && r.Binding != nil {
		j.marked = r.Marked
		return r.Journal != journalVersion || *r.Binding != j.binding
	}
	r, ok := parseLine(line, j.binding.seal())
	switch {
	case ok:
		if r.Hold != nil {
			j.readHold(n, line, r.Hold)
		}
		j.apply(&r)
	case old:
		j.readOldLine(n, line)
	default:
		j.isDamaged(n, line, "its checksum is wrong")
	}
	return false
}

func (j *FileJournal) readHold(n int, line []byte, w *wireEntry) {
	e := w.entry()
	if err := checkEntry(&e, j.check); err != nil {
		j.isDamaged(n, line, err.Error())
		return
	}
	j.live[e.ID] = e
}

func (j *FileJournal) apply(r *record) {
	for _, id := range r.Forget {
		delete(j.live, id)
	}
	if r.Sessions != nil {
		j.open = *r.Sessions
	}
	if r.Marks != nil {
		j.mark(r.Marks)
	}
}

func (j *FileJournal) isDamaged(n int, line []byte, why string) {
	if j.torn {
		why = "it was cut off, by a crash while it was written if not by damage"
	} else {
		j.lost++
	}
	j.damaged = append(j.damaged, bytes.Clone(line))
	j.notes = append(j.notes, fmt.Sprintf("journal %s line %d is damaged and kept aside in %s: %s", j.path, n, j.aside(), why))
}

// aside is the file for what is damaged: for people, no program reads it.
func (j *FileJournal) aside() string { return j.path + ".damaged" }

// keepAside appends the damaged lines to their file.
func (j *FileJournal) keepAside() error {
	if len(j.damaged) == 0 {
		return nil
	}
	f, err := openRegular(j.aside(), os.O_WRONLY|os.O_CREATE|os.O_APPEND)
	if err != nil {
		return fmt.Errorf("keep damaged journal lines aside: %w", err)
	}
	_, err = f.Write(append(bytes.Join(j.damaged, []byte("\n")), '\n'))
	if err == nil {
		err = j.sync(f)
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("keep damaged journal lines aside: %w", err)
	}
	return nil
}

// The first version had no checksums and several routes a line. It is read once,
// after an upgrade, and written anew in today's.

// oldRecord is a line of the first version.
type oldRecord struct {
	Journal  int            `json:"culvert_journal"`
	Binding  *Binding       `json:"binding"`
	Hold     []wireEntry    `json:"hold"`
	Forget   []uint64       `json:"forget"`
	Sessions *[]KeptSession `json:"sessions"`
}

// oldHeader reports whether a line is a header of the first version, and whose.
func oldHeader(line []byte) (b Binding, ok bool) {
	var r oldRecord
	if json.Unmarshal(line, &r) != nil || r.Journal != 1 || r.Binding == nil {
		return b, false
	}
	return *r.Binding, true
}

func (j *FileJournal) readOldLine(n int, line []byte) {
	var r oldRecord
	if err := json.Unmarshal(line, &r); err != nil {
		j.isDamaged(n, line, err.Error())
		return
	}
	for i := range r.Hold {
		j.readHold(n, line, &r.Hold[i])
	}
	j.apply(&record{Forget: r.Forget, Sessions: r.Sessions})
}
