package plain

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"":                          "",
		"curl (process 7)":          "curl (process 7)",
		"grün 網路 \u00a0":            `grün 網路 \u00a0`,
		"\x1b]0;pwn\x07\x1b[2J":     `\u001b]0;pwn\u0007\u001b[2J`,
		"a\nb\tc\rd\x00\x7f":        `a\nb\tc\rd\u0000\u007f`,
		"\u009b2J":                  `\u009b2J`,
		"\x9b2J":                    `\x9b2J`,
		"\u202egnp.exe":             `\u202egnp.exe`,
		"\u2066a\u2069\u2028\u2029": `\u2066a\u2069\u2028\u2029`,
		"\ufeff\U000e0041":          `\ufeff\udb40\udc41`,
		"\xff\xfe\xc3":              `\xff\xfe\xc3`,
		"\ufffd":                    "\ufffd",
	} {
		if got := Escape(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestEveryRune: nothing comes out that is no character to be read.
func TestEveryRune(t *testing.T) {
	check := func(in, out, except string) {
		for _, r := range out {
			if strings.ContainsRune(except, r) {
				continue
			}
			if !utf8.ValidString(out) || unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Cs) {
				t.Fatalf("%q becomes %q", in, out)
			}
		}
	}
	var b strings.Builder
	for r := range rune(unicode.MaxRune + 1) {
		check(string(r), Escape(string(r)), "")
		b.Reset()
		if n, err := (Writer{&b}).Write([]byte(string(r))); n != len(string(r)) || err != nil {
			t.Fatal(n, err)
		}
		check(string(r), b.String(), "\n\t")
	}
	for i := range 256 {
		check(string([]byte{byte(i)}), Escape(string([]byte{byte(i)})), "")
	}
}

// TestWriterJSON: a document says the same when it has gone through.
func TestWriterJSON(t *testing.T) {
	want := map[string]string{"name": "a\x1b\n\u009b\x7f\u202e\U000e0041\u2028 grün"}
	doc, err := json.MarshalIndent(want, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if _, err := (Writer{&b}).Write(doc); err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal([]byte(b.String()), &got); err != nil || got["name"] != want["name"] {
		t.Errorf("%q: %q, %v", b.String(), got, err)
	}
	if strings.ContainsAny(b.String(), "\u009b\x7f\u202e") {
		t.Errorf("%q", b.String())
	}
}

type name string

func TestFprintf(t *testing.T) {
	var b strings.Builder
	_, err := Fprintf(&b, "%s %s %v %d %v %v\n", name("a\n"), "b\x1b", errors.New("c\nd"), 7, netip.MustParsePrefix("10.0.0.0/8"), []string{"e\n"})
	if want := `a\n b\u001b c; d 7 10.0.0.0/8 [e\n]` + "\n"; b.String() != want || err != nil {
		t.Errorf("%q, %v", b.String(), err)
	}
	b.Reset()
	if _, err := Fprintln(&b, "x\ny", 1); b.String() != `x\ny 1`+"\n" || err != nil {
		t.Errorf("%q, %v", b.String(), err)
	}
}
