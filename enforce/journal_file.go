package enforce

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// FileJournal is a Journal in a file: one JSON object a line, only ever
// appended to, rewritten when most of it is crossed out. It is used by one
// goroutine at a time, and by one process: the daemon's lock sees to that.
//
// A line cut off by a crash is the last one, of a write that had not returned,
// so nothing relies on it.
type FileJournal struct {
	path    string
	binding Binding
	file    *os.File
	size    int64            // bytes that are whole lines
	live    map[uint64]Entry // not crossed out
	open    []KeptSession
	notes   []string
}

// record is one line: a header, entries, or what is crossed out.
type record struct {
	Journal int         `json:"culvert_journal,omitempty"`
	Binding *Binding    `json:"binding,omitempty"`
	Hold    []wireEntry `json:"hold,omitempty"`
	Forget  []uint64    `json:"forget,omitempty"`
	// Sessions replaces the sessions kept so far, when present.
	Sessions *[]KeptSession `json:"sessions,omitempty"`
}

// wireEntry carries the opaque bytes of a route as base64.
type wireEntry struct {
	Entry
	Raw  []byte `json:"raw,omitempty"`
	More []byte `json:"more,omitempty"`
}

const (
	journalVersion = 1
	journalCompact = 1 << 20 // bytes: below this, crossed-out lines do no harm
)

// OpenJournal opens the journal of a network namespace under dir, making both
// as needed. One that is bound to another boot or namespace is begun anew:
// what it names means nothing here.
func OpenJournal(dir string, b Binding) (*FileJournal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	j := &FileJournal{path: filepath.Join(dir, journalName(b)), binding: b, live: map[uint64]Entry{}}
	f, err := os.OpenFile(j.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	j.file = f
	if err := j.replay(); err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

// journalName is "journal-<inode>.jsonl" on Linux: one file per namespace.
func journalName(b Binding) string {
	digits := strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, strings.SplitN(b.Namespace, "#", 2)[0])
	return "journal-" + digits + ".jsonl"
}

// Path returns the file's name.
func (j *FileJournal) Path() string { return j.path }

// Notes returns what was found odd when the journal was opened, in words.
func (j *FileJournal) Notes() []string { return j.notes }

// Close closes the file.
func (j *FileJournal) Close() error {
	if err := j.file.Close(); err != nil {
		return fmt.Errorf("close journal: %w", err)
	}
	return nil
}

// replay reads the file into live, and begins it anew where it is not ours.
func (j *FileJournal) replay() error {
	data, err := io.ReadAll(j.file)
	if err != nil {
		return fmt.Errorf("read journal %s: %w", j.path, err)
	}
	if !j.readLines(data) {
		clear(j.live)
		j.open = nil
		return j.rewrite()
	}
	if err := j.rewrite(); err != nil {
		// A full disk must not keep what is written down from being read.
		j.size = int64(bytes.LastIndexByte(data, '\n') + 1)
		j.notes = append(j.notes, err.Error())
	}
	return nil
}

// readLines applies each line and reports whether the header binds the file to
// this boot and namespace.
func (j *FileJournal) readLines(data []byte) (bound bool) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, len(data)+1)
	for n := 1; lines.Scan(); n++ {
		var r record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			j.notes = append(j.notes, fmt.Sprintf("journal %s line %d is damaged and passed over: %v", j.path, n, err))
			continue
		}
		if r.Binding != nil {
			bound = r.Journal == journalVersion && *r.Binding == j.binding
			if !bound {
				j.notes = append(j.notes, "the journal was left by another boot or network namespace: discarded")
			}
		}
		j.apply(r)
	}
	return bound
}

func (j *FileJournal) apply(r record) {
	for _, w := range r.Hold {
		w.Route.Raw, w.Route.More = string(w.Raw), string(w.More)
		j.live[w.ID] = w.Entry
	}
	for _, id := range r.Forget {
		delete(j.live, id)
	}
	if r.Sessions != nil {
		j.open = *r.Sessions
	}
}

// LoadSessions implements SessionStore.
func (j *FileJournal) LoadSessions() ([]KeptSession, error) { return slices.Clone(j.open), nil }

// KeepSessions implements SessionStore.
func (j *FileJournal) KeepSessions(open []KeptSession) error {
	open = append([]KeptSession{}, open...)
	if err := j.append(record{Sessions: &open}); err != nil {
		return err
	}
	j.open = open
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("sync journal %s: %w", j.path, err)
	}
	return nil
}

// Load implements Journal.
func (j *FileJournal) Load() ([]Entry, error) {
	out := make([]Entry, 0, len(j.live))
	for _, e := range j.live {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Entry) int { return int(int64(a.ID) - int64(b.ID)) })
	return out, nil
}

// Hold implements Journal.
func (j *FileJournal) Hold(entries []Entry) error {
	r := record{}
	for _, e := range entries {
		r.Hold = append(r.Hold, toWire(e))
	}
	start := j.size
	if err := j.append(r); err != nil {
		return err
	}
	if err := j.file.Sync(); err != nil {
		j.size = start // the line that is whole but not durable goes too
		return errors.Join(fmt.Errorf("sync journal %s: %w", j.path, err), j.cut())
	}
	for _, e := range entries {
		j.live[e.ID] = e
	}
	return nil
}

func toWire(e Entry) wireEntry {
	w := wireEntry{Entry: e, Raw: []byte(e.Route.Raw), More: []byte(e.Route.More)}
	w.Route.Raw, w.Route.More = "", ""
	return w
}

// Forget implements Journal. It need not be durable: an entry that is crossed
// out in vain is given back once more and found to be there.
func (j *FileJournal) Forget(ids []uint64) error {
	for _, id := range ids {
		delete(j.live, id)
	}
	if len(j.live) == 0 || j.size > journalCompact+4*j.liveSize() {
		return j.rewrite()
	}
	return j.append(record{Forget: ids})
}

func (j *FileJournal) liveSize() int64 {
	const typical = 512 // bytes per entry, near enough to decide by
	return int64(len(j.live)) * typical
}

// append writes one line, whole or not at all.
func (j *FileJournal) append(r record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode journal entry: %w", err)
	}
	line = append(line, '\n')
	if _, err := j.file.WriteAt(line, j.size); err != nil {
		return errors.Join(fmt.Errorf("write journal %s: %w", j.path, err), j.cut())
	}
	j.size += int64(len(line))
	return nil
}

// cut takes away what a failed write may have left.
func (j *FileJournal) cut() error {
	if err := j.file.Truncate(j.size); err != nil {
		return fmt.Errorf("truncate journal %s: %w", j.path, err)
	}
	return nil
}

// rewrite replaces the file by one with a header and the live entries alone.
// The new one is complete and durable before it takes the old one's name.
func (j *FileJournal) rewrite() error {
	tmp, err := os.OpenFile(j.path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("rewrite journal: %w", err)
	}
	n, err := j.writeAll(tmp)
	if err = errors.Join(err, tmp.Close()); err != nil {
		os.Remove(tmp.Name())
		return fmt.Errorf("rewrite journal: %w", err)
	}
	return j.swap(tmp.Name(), n)
}

// swap gives the new file the journal's name. Both are closed for it, which
// Windows wants. Should the journal not open again, every later Hold fails and
// nothing is deleted that could not be given back.
func (j *FileJournal) swap(name string, size int64) error {
	j.file.Close()
	renamed := os.Rename(name, j.path)
	f, err := os.OpenFile(j.path, os.O_RDWR, 0o600)
	if err != nil {
		return errors.Join(renamed, fmt.Errorf("reopen journal: %w", err))
	}
	if j.file = f; renamed != nil {
		return fmt.Errorf("rewrite journal: %w", renamed)
	}
	j.size = size
	if err := syncDir(filepath.Dir(j.path)); err != nil {
		return fmt.Errorf("sync state directory: %w", err)
	}
	return nil
}

func (j *FileJournal) writeAll(f *os.File) (int64, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	entries, _ := j.Load()
	b := j.binding
	if err := enc.Encode(record{Journal: journalVersion, Binding: &b}); err != nil {
		return 0, err
	}
	if len(j.open) > 0 {
		if err := enc.Encode(record{Sessions: &j.open}); err != nil {
			return 0, err
		}
	}
	for _, e := range entries {
		if err := enc.Encode(record{Hold: []wireEntry{toWire(e)}}); err != nil {
			return 0, err
		}
	}
	if _, err := f.Write(buf.Bytes()); err != nil {
		return 0, err
	}
	return int64(buf.Len()), f.Sync()
}
