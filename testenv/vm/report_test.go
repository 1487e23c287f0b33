//go:build linux

package main

import (
	"strings"
	"testing"
)

// TestReport: what counts as passed is one line of "go test", and the last of a
// case. All else is told, and is no success.
func TestReport(t *testing.T) {
	r := newReport([]string{"TestA", "TestB", "TestC", "TestD", "TestE", "TestF"})
	for _, line := range strings.Split(`vm: up 13.5 6.1
vm: case TestA
=== RUN   TestA
    a_test.go:1: measured: kill: 0 of 10 left
--- PASS: TestA (1.50s)
PASS
vm: case TestB
    b_test.go:1: it is wrong
    --- PASS: TestB/sub (0.10s)
--- FAIL: TestB (0.20s)
vm: case TestC
vm: late TestC
vm: case TestD
--- PASS: TestD (0.30s)
vm: reboot TestD
vm: up 12.0 6.1
vm: case TestE
vm: lost TestE
vm: case TestF
--- SKIP: TestF (0.00s)`, "\n") {
		r.line(line)
	}
	var text, measured strings.Builder
	if bad := r.write(&text); bad != 5 {
		t.Errorf("%d are bad, want 5", bad)
	}
	for _, want := range []string{"it is wrong", "PASS", "FAIL", "did not end in its time", "did not come back", "took the machine down", "SKIP"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("not told: %s", want)
		}
	}
	if r.measured(&measured); measured.String() != "TestA: kill: 0 of 10 left\n" {
		t.Errorf("measured: %q", measured.String())
	}
	if r.ended {
		t.Error("it has not ended")
	}
	r.line("--- PASS: TestD (0.40s)")
	r.line("vm: end")
	if bad := r.write(&text); bad != 4 || !r.ended {
		t.Errorf("after the reboot's second half %d are bad, want 4", bad)
	}
}

// TestNothingReported: a machine that says nothing has passed nothing.
func TestNothingReported(t *testing.T) {
	var text strings.Builder
	if bad := newReport([]string{"TestA"}).write(&text); bad != 1 || !strings.Contains(text.String(), "did not report") {
		t.Errorf("%d are bad:\n%s", bad, &text)
	}
}

func TestChoose(t *testing.T) {
	if got, err := choose([]string{"TestA", "TestB"}, "B$"); err != nil || len(got) != 1 || got[0] != "TestB" {
		t.Errorf("chosen: %v, %v", got, err)
	}
	for _, pattern := range []string{"C", "("} {
		if _, err := choose([]string{"TestA"}, pattern); err == nil {
			t.Errorf("-run %s is no error", pattern)
		}
	}
}
