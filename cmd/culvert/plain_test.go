package main

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/culvert-project/culvert/cmd/culvert/internal/openvpn"
	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// hostile are names that somebody else chose: every byte, and characters of more
// bytes that move cursors, turn text or begin lines.
func hostile() (list []string) {
	for i := range 256 {
		list = append(list, "a"+string([]byte{byte(i)})+"z")
	}
	for r := rune(0x80); r < 0xa0; r++ {
		list = append(list, "a"+string(r)+"z")
	}
	for _, r := range "\u00ad\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\ufff9\U000e0001\U000e0041" {
		list = append(list, "a"+string(r)+"z")
	}
	return append(list, "\x1b]0;pwn\x07\x1b[2J\nculvert: all is well", "a\r\nb\vc\fd\te")
}

// fill puts a name into every string of a value.
func fill(v reflect.Value, name string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(name)
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		fill(v.Elem(), name)
	case reflect.Slice:
		if v.Len() == 0 {
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		}
		for i := range v.Len() {
			fill(v.Index(i), name)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); f.CanSet() {
				fill(f, name)
			}
		}
	}
}

func filled[T any](name string) *T {
	v := new(T)
	fill(reflect.ValueOf(v).Elem(), name)
	return v
}

// outputs are all texts that the program prints of what others chose.
var outputs = map[string]func(w io.Writer, name string){
	"status": func(w io.Writer, name string) {
		st := filled[report.Status](name)
		st.Leaks.Packets, st.Witness.Mode, st.Sessions[0].OnLeak = 1, report.Count, report.Off
		st.Witness.Interfaces[0].Displaced, st.Witness.Unwatched = 1, 1
		_ = showStatus(w, *st, false)
	},
	"status, off": func(w io.Writer, name string) {
		st := filled[report.Status](name)
		st.Witness.Mode = report.Off
		_ = showStatus(w, *st, false)
	},
	"status, JSON": func(w io.Writer, name string) { _ = showStatus(w, *filled[report.Status](name), true) },
	"leaks": func(w io.Writer, name string) {
		doc := filled[leaksDoc](name)
		doc.Leaks.Packets = 1
		_ = showLeaks(w, *doc, false)
		doc.Leaks.By[0].Source, doc.Leaks.By[0].PID = "", 7
		_ = showLeaks(w, *doc, false)
	},
	"leaks, off": func(w io.Writer, name string) {
		_ = showLeaks(w, leaksDoc{Witness: report.Witness{Reason: name}}, false)
	},
	"leaks, JSON": func(w io.Writer, name string) { _ = showLeaks(w, *filled[leaksDoc](name), true) },
	"watch": func(w io.Writer, name string) {
		_ = showEvent(w, report.Event{Incident: filled[report.Incident](name)})
		_ = showEvent(w, report.Event{Leak: filled[report.Finding](name)})
	},
	"watch, JSON": func(w io.Writer, name string) { _ = showEventJSON(w, *filled[report.Event](name)) },
	"plan": func(w io.Writer, name string) {
		doc := filled[planDoc](name)
		for _, kind := range []string{"put", "remove", name} {
			doc.Actions[0].Kind = kind
			printPlan(w, *doc)
		}
	},
	"explain": func(w io.Writer, name string) {
		e := explanation{
			query: query{dst: netip.MustParseAddr("10.0.0.1"), device: name}, names: map[uint32]string{7: name},
			answer: answer{route: plan.Route{Hop: plan.Hop{Link: 7}}, table: name, rule: name, unless: []string{name}},
			policy: name, verdict: name, note: name,
		}
		e.print(w)
		e.answer.onLink = true
		e.print(w)
		e.answer.refused = errors.New(name)
		e.print(w)
	},
	"recover": func(w io.Writer, name string) { printRecovered(w, *filled[enforce.Recovered](name)) },
	"hook": func(w io.Writer, name string) {
		h := hook{call: openvpn.Call{Device: name, Warnings: []string{name}}, warn: w}
		h.sayWarnings()
		_ = say(w, "culvert: warning: %s: %s: %v\n", name, name, errors.New(name))
	},
	"up and down": func(w io.Writer, name string) {
		_ = sayOpened(w, enforce.Session{}, enforce.SessionStatus{Tunnel: name, State: enforce.Enforcing})
		_ = sayClosed(w, enforce.SessionStatus{Tunnel: name, State: enforce.State(name)})
	},
	"log": func(w io.Writer, name string) {
		logTo(w, false, slog.LevelInfo).Warn("leak", "process", name, "err", errors.New(name))
	},
	"log, JSON": func(w io.Writer, name string) {
		logTo(w, true, slog.LevelInfo).Warn("leak", "process", name, "err", errors.New(name))
	},
}

// TestHostileNames: no output lets through what is no character to be read, and
// none has a line more for a name that holds one.
func TestHostileNames(t *testing.T) {
	for what, print := range outputs {
		lines := strings.Count(printed(print, "az"), "\n")
		for _, name := range hostile() {
			out := printed(print, name)
			if err := readable(out); err != "" || strings.Count(out, "\n") != lines {
				t.Errorf("%s: %q: %s in %d lines, want %d:\n%q", what, name, err, strings.Count(out, "\n"), lines, out)
				break
			}
		}
	}
}

// printed is what an output prints through the wall that the program has.
func printed(print func(io.Writer, string), name string) string {
	var b bytes.Buffer
	print(throughWall(&b), name)
	return b.String()
}

func readable(s string) string {
	if !utf8.ValidString(s) {
		return "no UTF-8"
	}
	for _, r := range s {
		if r != '\n' && (unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)) {
			return string([]rune("holds ")) + time.Duration(r).String()
		}
	}
	return ""
}

// TestHostileErrors: errors say what they were given in one line that begins
// with the program's name; another begins with none.
func TestHostileErrors(t *testing.T) {
	for _, name := range hostile() {
		for _, args := range [][]string{
			{name}, {"up", "--tunnel", name, "--protect", "10.0.0.0/8"}, {"up", "--tunnel", "tun0", "--protect", name}, {"explain", name},
			{"run", "--config", "/nowhere/" + name}, {"status", "--socket", "/nowhere/" + name}, {"run", "--on-leak", name}, {"status", "--" + name},
		} {
			var out, errs bytes.Buffer
			execute(args, &out, &errs)
			text := errs.String()
			if bad := readable(text + out.String()); bad != "" || strings.Count("\n"+text, "\nculvert: ") > 1 {
				t.Errorf("%q: %s: %q", args, bad, text)
			}
		}
	}
}

// TestOnePrinter: nothing is printed past the printer that makes names plain.
func TestOnePrinter(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	prints := regexp.MustCompile(`fmt\.Fprint|fmt\.Print|io\.WriteString|\bprintln\(|os\.Std`)
	builder := regexp.MustCompile(`fmt\.Fprint(f|ln)?\(&b,`) // into a strings.Builder
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") || file == "main.go" {
			continue
		}
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(src), "\n") {
			if prints.MatchString(builder.ReplaceAllString(line, "")) {
				t.Errorf("%s:%d: print by plain.Fprintf, which escapes what others chose: %s", file, i+1, strings.TrimSpace(line))
			}
		}
	}
}
