// Package plain is how text reaches a terminal: what others chose (the names of
// processes, cgroups and interfaces, what a VPN server sent) is shown as it is
// read, and moves no cursor, begins no line and hides nothing.
//
// [Fprintf] and [Fprintln] escape what they are handed, so that a line is only
// begun by a format. A [Writer] around the whole output is the second wall, for
// what is printed by other means.
package plain

import (
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Escape makes everything in s visible that is no character to be read: control
// characters (newlines too), format characters such as those that turn the
// direction of text, separators of lines, and bytes that are no UTF-8.
func Escape(s string) string { return escape(s, "") }

// escape leaves the characters of except as they are.
func escape(s, except string) string {
	if readable(s, except) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case shown(r, except):
			b.WriteRune(r)
		default:
			b.WriteString(escaped(r))
		}
		s = s[n:]
	}
	return b.String()
}

func readable(s, except string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !shown(r, except) {
			return false
		}
	}
	return true
}

func shown(r rune, except string) bool { return strconv.IsPrint(r) || strings.ContainsRune(except, r) }

// escaped is r as JSON too would write it in a string.
func escaped(r rune) string {
	switch r {
	case '\n':
		return `\n`
	case '\t':
		return `\t`
	case '\r':
		return `\r`
	}
	if r > 0xffff {
		hi, lo := utf16.EncodeRune(r)
		return fmt.Sprintf(`\u%04x\u%04x`, hi, lo)
	}
	return fmt.Sprintf(`\u%04x`, r)
}

// Fprintf formats like fmt.Fprintf, its arguments escaped. Only the format can
// begin a line.
func Fprintf(w io.Writer, format string, args ...any) (int, error) {
	return fmt.Fprintf(w, format, escapeAll(args)...)
}

// Fprintln prints like fmt.Fprintln, its arguments escaped.
func Fprintln(w io.Writer, args ...any) (int, error) { return fmt.Fprintln(w, escapeAll(args)...) }

// escapeAll makes text of what prints as such. Numbers go through.
func escapeAll(args []any) []any {
	out := make([]any, len(args))
	for i, a := range args {
		switch v := a.(type) {
		case error:
			out[i] = Escape(strings.ReplaceAll(v.Error(), "\n", "; ")) // several errors in one
		case fmt.Stringer:
			out[i] = Escape(v.String())
		default:
			out[i] = a
			if r := reflect.ValueOf(a); r.Kind() == reflect.String {
				out[i] = Escape(r.String())
			} else if r.Kind() == reflect.Slice || r.Kind() == reflect.Struct || r.Kind() == reflect.Map {
				out[i] = Escape(fmt.Sprint(a))
			}
		}
	}
	return out
}

// Writer escapes what is written to it, all but the ends of lines and tabs. A
// JSON document stays the same one: there such characters are within strings,
// and escaped as JSON does.
type Writer struct{ To io.Writer }

// Write writes p in one call. A character must not be cut in two.
func (w Writer) Write(p []byte) (int, error) {
	if _, err := io.WriteString(w.To, escape(string(p), "\n\t")); err != nil {
		return 0, err
	}
	return len(p), nil
}
