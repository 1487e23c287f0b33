package enforce

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

var errDisk = errors.New("the disk does not answer")

func noSync(*os.File) error { return errDisk }

// written opens a journal in which one route is written down.
func oneHeld(t *testing.T) (j *FileJournal, again func() []Entry) {
	t.Helper()
	dir := t.TempDir()
	open := func() *FileJournal {
		j, err := OpenJournal(dir, fuzzed, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = j.Close() })
		return j
	}
	j = open()
	if err := j.Hold(soundEntries()[:1]); err != nil {
		t.Fatal(err)
	}
	return j, func() []Entry {
		all, err := open().Load()
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
}

// TestJournalNotDurable: what is not known to be on the disk is not held, whatever of
// it was written; what is held already stays, and the next one can be.
func TestJournalNotDurable(t *testing.T) {
	fresh := soundEntries()[1:2]
	endless := soundEntries()[1:2]
	endless[0].Since = time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC) // no year of JSON's
	for name, c := range map[string]struct {
		entries []Entry
		fails   func(j *FileJournal)
		mended  func(j *FileJournal)
		want    string
	}{
		"it cannot be synced":  {fresh, func(j *FileJournal) { j.sync = noSync }, func(j *FileJournal) { j.sync = (*os.File).Sync }, errDisk.Error()},
		"it cannot be encoded": {endless, func(*FileJournal) {}, func(*FileJournal) {}, "encode"},
		"it cannot be written": {fresh, func(j *FileJournal) {
			ro, err := os.Open(j.path)
			if err != nil {
				panic(err)
			}
			_ = j.file.Close()
			j.file = ro
		}, func(j *FileJournal) { _ = j.file.Close(); j.file, _ = os.OpenFile(j.path, os.O_RDWR, 0) }, "write journal"},
	} {
		t.Run(name, func(t *testing.T) {
			j, again := oneHeld(t)
			before, err := os.ReadFile(j.path)
			if err != nil {
				t.Fatal(err)
			}
			c.fails(j)
			if err := j.Hold(c.entries); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("held: %v", err)
			}
			if after, _ := os.ReadFile(j.path); string(after) != string(before) {
				t.Errorf("the file is\n%s\nit was\n%s", after, before)
			}
			c.mended(j)
			if got, _ := j.Load(); !reflect.DeepEqual(got, soundEntries()[:1]) {
				t.Errorf("held now: %+v", got)
			}
			if err := j.Hold(fresh); err != nil {
				t.Error(err)
			}
			if got := again(); !reflect.DeepEqual(got, soundEntries()[:2]) {
				t.Errorf("read again: %+v", got)
			}
		})
	}
}

// TestJournalNotRewritten: a journal that cannot be written anew keeps what it says,
// and says that it could not. What is crossed out is given back once more.
func TestJournalNotRewritten(t *testing.T) {
	j, again := oneHeld(t)
	j.sync = noSync
	if err := j.Forget([]uint64{1}); !errors.Is(err, errDisk) {
		t.Errorf("crossed out: %v", err)
	}
	if _, err := os.Stat(j.path + ".new"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half of a new file is left: %v", err)
	}
	if err := os.Remove(j.path); err != nil {
		t.Fatal(err)
	}
	if err := j.Secure(); !errors.Is(err, errDisk) {
		t.Errorf("a journal that was taken away and cannot be written anew is secure: %v", err)
	}
	for what, err := range map[string]error{"sessions": j.KeepSessions(nil), "marks": j.KeepMarks(MarkChange{All: true}), "a route": j.Hold(soundEntries()[1:2])} {
		if !errors.Is(err, errDisk) {
			t.Errorf("%s kept: %v", what, err)
		}
	}
	j.sync = (*os.File).Sync
	if err := j.Hold(soundEntries()[1:2]); err != nil {
		t.Fatal(err)
	}
	if got := again(); !reflect.DeepEqual(got, soundEntries()[1:2]) {
		t.Errorf("read again: %+v", got)
	}
}

// TestJournalSessionsNotDurable: neither sessions nor marks are said to be kept that
// are not on the disk.
func TestJournalSessionsNotDurable(t *testing.T) {
	j, _ := oneHeld(t)
	j.sync = noSync
	if err := j.KeepSessions([]KeptSession{{Session: Session{Tunnel: "tun0"}}}); !errors.Is(err, errDisk) {
		t.Errorf("sessions kept: %v", err)
	}
	if err := j.KeepMarks(MarkChange{Add: []Mark{{}}}); !errors.Is(err, errDisk) {
		t.Errorf("marks kept: %v", err)
	}
}

// TestJournalHeldAgain: an entry with a number that is held takes its place.
func TestJournalHeldAgain(t *testing.T) {
	j, again := oneHeld(t)
	renewed := soundEntries()[:1]
	renewed[0].Route.Expires, renewed[0].Place = 77, 5
	if err := j.Hold(renewed); err != nil {
		t.Fatal(err)
	}
	if got := again(); !reflect.DeepEqual(got, renewed) {
		t.Errorf("read again: %+v", got)
	}
}
