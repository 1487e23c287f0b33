//go:build linux

package main

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// report is what the machine said of each case, by its name.
type report struct {
	cases []string // all that are expected, in their order
	state map[string]outcome
	said  map[string][]string // what a case printed
	now   string              // the case that runs
	ended bool                // the machine said that it has run all
}

// outcome is a case's result as "go test" words it, or why there is none.
type outcome struct {
	result  string
	seconds string
}

const passed = "PASS"

func newReport(cases []string) *report {
	return &report{cases: cases, state: map[string]outcome{}, said: map[string][]string{}}
}

var resultLine = regexp.MustCompile(`^--- (PASS|FAIL|SKIP): (\w+) \(([0-9.]+)s\)$`)

// line takes in one line of the report. A later result of a case replaces the
// earlier one: a case that reboots the machine has two halves.
func (r *report) line(text string) {
	if event, ok := strings.CutPrefix(text, "vm: "); ok {
		r.event(event)
		return
	}
	if m := resultLine.FindStringSubmatch(text); m != nil {
		r.state[m[2]] = outcome{m[1], m[3]}
		return
	}
	if r.now != "" {
		r.said[r.now] = append(r.said[r.now], text)
	}
}

func (r *report) event(event string) {
	verb, rest, _ := strings.Cut(event, " ")
	switch verb {
	case "case":
		r.now = rest
	case "lost":
		r.state[rest] = outcome{"took the machine down", ""}
	case "reboot":
		r.state[rest] = outcome{"did not come back", ""}
	case "late":
		r.state[rest] = outcome{"did not end in its time", ""}
	case "end":
		r.ended = true
	}
}

// write prints what the failed ones said, and a line for each case. It returns
// how many did not pass.
func (r *report) write(w io.Writer) (bad int) {
	for _, name := range r.cases {
		if r.state[name].result != passed && len(r.said[name]) > 0 {
			fmt.Fprintf(w, "\n%s:\n%s\n", name, strings.Join(r.said[name], "\n"))
		}
	}
	fmt.Fprintln(w)
	for _, name := range r.cases {
		o := r.state[name]
		if o.result == "" {
			o.result = "did not report"
		}
		if o.result != passed {
			bad++
		}
		fmt.Fprintf(w, "%-40s %-24s %8s s\n", name, o.result, o.seconds)
	}
	return bad
}

// measured are the lines that cases log for people, beside the results.
func (r *report) measured(w io.Writer) {
	for _, name := range r.cases {
		for _, text := range r.said[name] {
			if i := strings.Index(text, "measured: "); i >= 0 {
				fmt.Fprintf(w, "%s: %s\n", name, text[i+len("measured: "):])
			}
		}
	}
}

// choose keeps the cases that match, and complains of none.
func choose(cases []string, pattern string) ([]string, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, fmt.Errorf("-run: %w", err)
	}
	kept := slices.DeleteFunc(slices.Clone(cases), func(c string) bool { return !re.MatchString(c) })
	if len(kept) == 0 {
		return nil, fmt.Errorf("-run %s: no case has such a name", pattern)
	}
	return kept, nil
}
