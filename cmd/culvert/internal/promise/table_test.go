//go:build linux

package promise

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A table is compared as "ip -d route" writes it, entry by entry: a line and
// the indented ones that belong to it.

// entries splits a table's text.
func entries(text string) (out []string) {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "\t") && len(out) > 0 {
			out[len(out)-1] += line
		} else {
			out = append(out, line)
		}
	}
	for i := range out {
		out[i] = sortLegs(out[i])
	}
	return out
}

// sortLegs makes equal what Linux does not let be told apart: of an IPv6
// multipath route that the tunnel has a leg of, only the other legs are taken.
// They are added again behind, what the first leg says (protocol, preference)
// is shown for all, and the weight of one that stood alone is not told.
func sortLegs(entry string) string {
	lines := strings.SplitAfter(entry, "\n")
	if !isV6(entry) || len(lines) <= 2 || !strings.Contains(entry, " dev tun") {
		return entry
	}
	for i := range lines {
		lines[i] = legWeight.ReplaceAllString(lines[i], "")
	}
	slices.Sort(lines[1 : len(lines)-1])
	lines[0] = sharedMark + firstLegSays.ReplaceAllString(lines[0], "")
	return strings.Join(lines, "")
}

const sharedMark = "shared "

var (
	firstLegSays = regexp.MustCompile(` (proto|pref) \w+`)
	legWeight    = regexp.MustCompile(` weight \d+`)
)

// slot is the place that an entry competes for: destination, source, TOS and
// metric. Within it the order decides.
func slot(entry string) string {
	words := strings.Fields(strings.TrimPrefix(entry, sharedMark))
	s := words[1]
	if isV6(entry) {
		s = "inet6 " + s
	}
	for i, word := range words[:len(words)-1] {
		if word == "from" || word == "tos" || word == "metric" {
			s += " " + word + " " + words[i+1]
		}
	}
	return s
}

// isV6 reports the family: iproute2 tells the preference of every IPv6 route.
func isV6(entry string) bool {
	return strings.Contains(entry, " pref ") || strings.HasPrefix(entry, sharedMark)
}

// gone returns the entries of before that during lacks.
func gone(before, during string) (out []string) {
	left := entries(during)
	for _, e := range entries(before) {
		if i := slices.Index(left, e); i >= 0 {
			left = slices.Delete(left, i, i+1)
		} else {
			out = append(out, e)
		}
	}
	return out
}

// difference says in what two tables differ, or "". What is a matter of order
// in slots of loose is not told, nor are entries that the kernel has and hides.
func (l *lab) difference(t testing.TB, before, after string, loose map[string]bool) string {
	t.Helper()
	var out []string
	hidden := false
	for _, e := range gone(before, after) {
		if l.hidden(t, e, after) {
			hidden = true
			continue
		}
		out = append(out, "- "+e)
	}
	for _, e := range gone(after, before) {
		out = append(out, "+ "+e)
	}
	if out == nil && !hidden && loosen(before, loose) != loosen(after, loose) {
		return "another order:\n" + before + "is now\n" + after
	}
	return strings.Join(out, "")
}

// hidden reports whether an entry that a table's text lacks is there all the
// same. A dump goes from the first leg of an IPv6 multipath route to the last,
// and passes over what stands between them; adding such an entry again is
// refused.
func (l *lab) hidden(t testing.TB, entry, text string) bool {
	t.Helper()
	multipath := func(e string) bool { return slot(e) == slot(entry) && strings.Contains(e, "\tnexthop ") }
	if !isV6(entry) || multipath(entry) || !slices.ContainsFunc(entries(text), multipath) {
		return false
	}
	return strings.Contains(l.batch(t, "-6", []string{"route append " + strings.TrimSpace(entry)}), "File exists")
}

func loosen(text string, loose map[string]bool) string {
	all := entries(text)
	for i := 0; i < len(all); {
		end := i + 1
		for end < len(all) && slot(all[end]) == slot(all[i]) {
			end++
		}
		if loose[slot(all[i])] {
			slices.Sort(all[i:end])
		}
		i = end
	}
	return strings.Join(all, "")
}

// sandwiched returns the slots whose order cannot be given back. A route of
// IPv4 can be added at a slot's ends only, one of IPv6 at its end: one that
// went from elsewhere among routes that stayed comes back there. Nor can the
// order within a slot whose routes went and came with different sessions.
func sandwiched(before string, during ...string) map[string]bool {
	out := map[string]bool{}
	last := map[string]string{}
	for i, text := range during {
		marks := standing(before, text)
		for key, m := range marks {
			inner := strings.Trim(m, "g")
			if strings.HasPrefix(key, "inet6 ") {
				inner = strings.TrimRight(m, "g")
			}
			out[key] = out[key] || strings.Contains(inner, "g") || (i > 0 && last[key] != m)
		}
		last = marks
	}
	return out
}

// standing says per slot which of its entries still stand: s for one that
// stays, g for one that is gone.
func standing(before, during string) map[string]string {
	marks := map[string]string{}
	left := entries(during)
	for _, e := range entries(before) {
		mark := "g"
		if i := slices.Index(left, e); i >= 0 {
			mark, left = "s", slices.Delete(left, i, i+1)
		}
		marks[slot(e)] += mark
	}
	return marks
}
