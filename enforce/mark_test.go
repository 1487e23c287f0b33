package enforce_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

// TestOthersThatLookLikeOurs: a route in every respect as we build them, but put by
// somebody else, is judged like any: one that conflicts is held and comes back, and
// nothing else happens to any of them.
func TestOthersThatLookLikeOurs(t *testing.T) {
	sys := newHost(t)
	for _, dst := range []string{"203.0.113.0/24", "172.31.5.0/24", "192.168.1.1/32"} {
		add(t, sys, plan.Route{Dst: pfx(dst), Hop: plan.Hop{Link: eth0}, Origin: plan.Own})
	}
	before := sys.Text()
	j := &enforcetest.Journal{}
	e, stop := run(t, sys, j, enforce.Options{})
	if got := sys.Text(); got != before {
		t.Fatalf("at the start\n%s\nbecame\n%s", before, got)
	}
	open(t, e, split)
	if got := j.Entries(); len(got) != 1 || got[0].Route.Dst != pfx("172.31.5.0/24") || strings.Contains(sys.Text(), "172.31.5.0/24") {
		t.Errorf("held %v of\n%s", got, sys.Text())
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if got := sys.Text(); got != before {
		t.Errorf("after\n%s\nbefore\n%s", got, before)
	}
}

// TestMarksOutliveTheProcess: what a journal in a file says of our own routes, as the
// next process finds it, and after an upgrade from a version that wrote none.
func TestMarksOutliveTheProcess(t *testing.T) {
	dir := t.TempDir()
	here := enforce.Binding{Boot: "boot", Namespace: "4026531840"}
	reopen := func() (*enforce.FileJournal, map[enforce.Mark]bool, bool) {
		j, err := enforce.OpenJournal(dir, here, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = j.Close() })
		list, known := j.LoadMarks()
		set := map[enforce.Mark]bool{}
		for _, k := range list {
			set[k] = true
		}
		return j, set, known
	}
	j, set, known := reopen()
	if len(set) > 0 || !known {
		t.Errorf("a new journal has %v, known %v", set, known)
	}
	one, two := enforce.Mark{Dst: pfx("10.0.0.0/8"), Link: eth0}, enforce.Mark{Dst: pfx("2000::/3")}
	if err := j.KeepMarks(enforce.MarkChange{Add: []enforce.Mark{one, two}}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // as it was appended, and as it was written anew
		if j, set, known = reopen(); !known || !set[one] || !set[two] {
			t.Errorf("found %v, known %v", set, known)
		}
	}
	if err := j.KeepMarks(enforce.MarkChange{Drop: []enforce.Mark{two}}); err != nil {
		t.Fatal(err)
	}
	if _, set, _ = reopen(); !set[one] || set[two] {
		t.Errorf("one crossed out, found %v", set)
	}
}

// TestUnmarkedJournalIsAdopted: a process of an earlier version died with a route of
// ours in the table. The next one knows it by its looks, this once.
func TestUnmarkedJournalIsAdopted(t *testing.T) {
	dir := t.TempDir()
	here := enforce.Binding{Boot: "boot", Namespace: "4026531840"}
	old := `{"culvert_journal":1,"binding":{"boot":"boot","namespace":"4026531840"}}
{"sessions":[{"session":{"tunnel":"tun0","protect":["172.31.0.0/16"]},"link":{"index":5,"name":"tun0"}}]}
`
	if err := os.WriteFile(filepath.Join(dir, "journal-4026531840.jsonl"), []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	sys := newHost(t)
	before := sys.Text()
	add(t, sys, plan.Route{Dst: pfx("192.168.1.1/32"), Hop: plan.Hop{Link: eth0}, Origin: plan.Own})
	for n := range 2 {
		j, err := enforce.OpenJournal(dir, here, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, known := j.LoadMarks(); known != (n > 0) {
			t.Errorf("start %d: known %v", n, known)
		}
		if _, err := enforce.Recover(t.Context(), sys, j, enforce.Options{}); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Error(err)
		}
		switch text := sys.Text(); {
		case n == 0 && text != before:
			t.Errorf("what the old process had put is left:\n%s", text)
		case n == 0:
			add(t, sys, plan.Route{Dst: pfx("192.168.1.1/32"), Hop: plan.Hop{Link: eth0}, Origin: plan.Own})
		case text == before:
			t.Error("another's was taken for ours")
		}
	}
}

// TestUnmarkedRoutesAreTakenAway: a route of ours that was put while the disk was full is
// known by the process that put it, and does not outlive its session.
func TestUnmarkedRoutesAreTakenAway(t *testing.T) {
	sys := newHost(t)
	before := sys.Text()
	e, stop := run(t, sys, &enforcetest.Journal{Refuse: func(op string) error {
		if op == "mark" {
			return errors.New("no space left on device")
		}
		return nil
	}}, enforce.Options{})
	s := split
	s.Protect = append(slices.Clone(s.Protect), pfx("172.16.0.0/16"))
	open(t, e, s)
	if leavesBy(sys, "172.16.0.1") != tun0 {
		t.Errorf("what protects is not put:\n%s", sys.Text())
	}
	if _, err := e.Close(t.Context(), "tun0"); err != nil {
		t.Error(err)
	}
	if text := sys.Text(); text != before {
		t.Errorf("after the session:\n%s\nbefore it:\n%s", text, before)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
