package enforce

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/culvert-project/culvert/enforce/plan"
)

// FileJournal is a Journal in a file: one record a line with a checksum, only
// ever appended to, rewritten when most of it is crossed out. It is used by one
// goroutine at a time, and by one process: the daemon's lock sees to that.
//
// A line that is not what was written is never acted on. It is told of in
// Notes and kept in a file beside the journal's, with the suffix ".damaged"; the
// rest is read. A line cut off by a crash is the last one, of a write that had
// not returned, so nothing relies on it.
type FileJournal struct {
	path    string
	binding Binding
	file    *os.File
	size    int64            // bytes that are whole lines
	live    map[uint64]Entry // not crossed out
	open    []KeptSession
	marks   map[Mark]bool // our own routes
	marked  bool          // those are all
	check   func(*plan.Route) error
	damaged [][]byte // lines that are not what was written
	torn    bool     // the line being read has no end: the file's last one
	lost    int      // damaged lines but a torn one, which nothing relied on
	notes   []string
	folder  func() error // makes the folder, or says why nothing may be kept in it
	sync    func(*os.File) error
}

const (
	journalVersion = 2
	journalCompact = 1 << 20 // bytes: below this, crossed-out lines do no harm
	lineSlack      = 16      // bytes by which one line is longer than another
)

// OpenJournal opens the journal of a network namespace under dir, making both
// as needed. One that is bound to another boot or namespace is begun anew:
// what it names means nothing here. Check, when not nil, says what is wrong
// with a route whose Raw a System made; see [RouteCheck].
func OpenJournal(dir string, b Binding, check func(*plan.Route) error) (*FileJournal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	j := &FileJournal{path: filepath.Join(dir, journalName(b)), binding: b, check: check, live: map[uint64]Entry{}, marks: map[Mark]bool{},
		sync: (*os.File).Sync}
	f, err := openRegular(j.path, os.O_RDWR|os.O_CREATE)
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

// Damaged returns how many lines were damaged when the journal was opened. What
// they said is lost, unless a person finds it in the file that they are kept in.
// A last line that a crash cut off is none: nothing relied on it.
func (j *FileJournal) Damaged() int { return j.lost }

// Close closes the file.
func (j *FileJournal) Close() error {
	if err := j.file.Close(); err != nil {
		return fmt.Errorf("close journal: %w", err)
	}
	return nil
}

// LoadSessions implements SessionStore.
func (j *FileJournal) LoadSessions() ([]KeptSession, error) { return slices.Clone(j.open), nil }

// KeepSessions implements SessionStore.
func (j *FileJournal) KeepSessions(open []KeptSession) error {
	if err := j.Secure(); err != nil {
		return err
	}
	open = append([]KeptSession{}, open...)
	if err := j.append(&record{Sessions: &open}); err != nil {
		return err
	}
	j.open = open
	if err := j.sync(j.file); err != nil {
		return fmt.Errorf("sync journal %s: %w", j.path, err)
	}
	return nil
}

// LoadMarks implements MarkStore.
func (j *FileJournal) LoadMarks() (marks []Mark, known bool) {
	return slices.SortedFunc(maps.Keys(j.marks), compareMarks), j.marked
}

// KeepMarks implements MarkStore. What is dropped need not be durable: a mark of
// a route that is not there does no harm.
func (j *FileJournal) KeepMarks(c MarkChange) error {
	if err := j.Secure(); err != nil {
		return err
	}
	if err := j.append(&record{Marks: &c}); err != nil {
		return err
	}
	j.mark(&c)
	if len(c.Add) == 0 {
		if j.isLong() {
			return j.rewrite()
		}
		return nil
	}
	if err := j.sync(j.file); err != nil {
		return fmt.Errorf("sync journal %s: %w", j.path, err)
	}
	return nil
}

func (j *FileJournal) mark(c *MarkChange) {
	for _, k := range c.Add {
		j.marks[k] = true
	}
	for _, k := range c.Drop {
		delete(j.marks, k)
	}
	j.marked = j.marked || c.All
}

// Load implements Journal.
func (j *FileJournal) Load() ([]Entry, error) {
	out := make([]Entry, 0, len(j.live))
	for _, e := range j.live {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Entry) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// Hold implements Journal.
func (j *FileJournal) Hold(entries []Entry) error {
	if err := j.Secure(); err != nil {
		return err
	}
	records := make([]*record, len(entries))
	for i, e := range entries {
		records[i] = &record{Hold: toWire(e)}
	}
	start := j.size
	if err := j.append(records...); err != nil {
		return err
	}
	if err := j.sync(j.file); err != nil {
		j.size = start // the lines that are whole but not durable go too
		return errors.Join(fmt.Errorf("sync journal %s: %w", j.path, err), j.cut())
	}
	for _, e := range entries {
		j.live[e.ID] = e
	}
	return nil
}

// Forget implements Journal. It need not be durable: an entry that is crossed
// out in vain is given back once more and found to be there.
func (j *FileJournal) Forget(ids []uint64) error {
	for _, id := range ids {
		delete(j.live, id)
	}
	if len(j.live) == 0 || j.isLong() {
		return j.rewrite()
	}
	return j.append(&record{Forget: ids})
}

// isLong reports whether most of the file says what is true no longer.
func (j *FileJournal) isLong() bool {
	const entry, mark = 512, 64 // bytes each, near enough to decide by
	return j.size > journalCompact+4*int64(entry*len(j.live)+mark*len(j.marks))
}

// append writes one line for each record, all of them or none.
func (j *FileJournal) append(records ...*record) (err error) {
	var lines []byte
	for i, r := range records {
		if lines, err = appendLine(lines, j.binding.seal(), r); err != nil {
			return err
		}
		if i == 0 { // they are of about one length
			lines = slices.Grow(lines, len(records)*(len(lines)+lineSlack))
		}
	}
	if _, err := j.file.WriteAt(lines, j.size); err != nil {
		return errors.Join(fmt.Errorf("write journal %s: %w", j.path, err), j.cut())
	}
	j.size += int64(len(lines))
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
	tmp, err := openRegular(j.path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC)
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
// Windows wants. Should the journal not open again, every later Hold fails until
// it does, and nothing is deleted that could not be given back.
func (j *FileJournal) swap(name string, size int64) error {
	j.file.Close()
	renamed := os.Rename(name, j.path)
	f, err := openRegular(j.path, os.O_RDWR)
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
	b := j.binding
	lines, err := appendLine(nil, 0, &record{Journal: journalVersion, Binding: &b, Marked: j.marked})
	if len(j.marks) > 0 && err == nil {
		lines, err = appendLine(lines, b.seal(), &record{Marks: &MarkChange{Add: slices.SortedFunc(maps.Keys(j.marks), compareMarks)}})
	}
	if len(j.open) > 0 && err == nil {
		lines, err = appendLine(lines, b.seal(), &record{Sessions: &j.open})
	}
	entries, _ := j.Load()
	for _, e := range entries {
		if err == nil {
			lines, err = appendLine(lines, b.seal(), &record{Hold: toWire(e)})
		}
	}
	if err != nil {
		return 0, err
	}
	if _, err := f.Write(lines); err != nil {
		return 0, err
	}
	return int64(len(lines)), j.sync(f)
}
