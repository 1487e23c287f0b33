package rtnl

import (
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/enforce/plan"
)

// corpusRoutes are the routes of real kernels that the fuzzers begin with.
func corpusRoutes(t *testing.T) (out []plan.Route) {
	t.Helper()
	files, err := filepath.Glob("testdata/fuzz/FuzzRoute/*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, arg, _ := strings.Cut(string(text), "[]byte(")
		msg, err := strconv.Unquote(strings.TrimSuffix(strings.TrimSpace(arg), ")"))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		var r plan.Route
		if parseRoute([]byte(msg), &r, known) == parsed {
			r.Raw = msg
			out = append(out, r)
		}
	}
	return out
}

// inTable puts a message's route into another table: the header says which, and an
// attribute once more.
func inTable(msg string, table byte) string {
	b := []byte(msg)
	b[4] = table
	for rest := b[unix.SizeofRtMsg:]; ; {
		a, next, ok := nextAttr(rest)
		if !ok {
			return string(b)
		}
		if a.typ == unix.RTA_TABLE {
			native.PutUint32(a.value, uint32(table))
		}
		rest = next
	}
}

// TestCheckRoute: of a journal's routes those pass that a kernel said, and no
// altered one does. What passes can be put back without a panic.
func TestCheckRoute(t *testing.T) {
	sys := new(System)
	routes := corpusRoutes(t)
	for _, r := range routes {
		if err := sys.CheckRoute(&r); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
		for n := range r.Raw { // cut anywhere: passed or refused, never a panic
			cut := r
			if cut.Raw = r.Raw[:n]; n > 0 && sys.CheckRoute(&cut) == nil {
				appendAdd(nil, []byte(cut.Raw), &cut, 0)
				appendDelete(nil, []byte(cut.Raw), &cut)
			}
		}
		altered := map[string]func(*plan.Route){
			"metric":      func(r *plan.Route) { r.Metric++ },
			"destination": func(r *plan.Route) { r.Dst = netip.MustParsePrefix("203.0.113.0/24") },
			"type":        func(r *plan.Route) { r.Type = plan.Other },
			"source":      func(r *plan.Route) { r.PrefSrc = netip.MustParseAddr("203.0.113.9") },
			"one byte":    func(r *plan.Route) { r.Raw = r.Raw[:1] },
			"11 bytes":    func(r *plan.Route) { r.Raw = r.Raw[:11] },
			"table":       func(r *plan.Route) { r.Raw = inTable(r.Raw, unix.RT_TABLE_DEFAULT) },
		}
		if r.NexthopID == 0 {
			altered["leg"] = func(r *plan.Route) { r.Hop.Link += 1000 }
		}
		for what, alter := range altered {
			a := r
			if alter(&a); a != r && sys.CheckRoute(&a) == nil {
				t.Errorf("another %s passes: %+v", what, a)
			}
		}
	}
	if len(routes) < 10 {
		t.Errorf("only %d routes were tried", len(routes))
	}
}
