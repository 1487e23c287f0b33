package witness

import (
	"net/netip"
	"strconv"
	"strings"
)

// Rule is a policy rule, in the words of ip-rule(8).
type Rule struct {
	Priority uint32
	Table    string // that it asks, or ""
	Text     string
}

// mainPriority is where every system asks table main. Rules behind it take
// nothing from it.
const mainPriority = 32766

// matches reports whether the rule is for the packet, as far as its words are
// known; one with unknown words is for none.
func (r Rule) matches(p *Packet) bool {
	_, text, _ := strings.Cut(r.Text, ": ")
	text, invert := strings.CutPrefix(text, "not ")
	words := strings.Fields(text)
	all := true
	for i := 0; i < len(words); i++ {
		word := words[i]
		if word == "l3mdev" {
			return false // the lookup itself tells of VRFs
		}
		if i++; i == len(words) {
			return false
		}
		is, known := selects(word, words[i], p)
		if !known {
			return false
		}
		all = all && is
	}
	return all != invert
}

// selects says whether one selector is true of the packet.
func selects(selector, value string, p *Packet) (is, known bool) {
	switch selector {
	case "from":
		return within(value, p.Src), true
	case "to":
		return within(value, p.Dst), true
	case "tos":
		n, err := strconv.ParseUint(value, 0, 8)
		return uint8(n) == p.TOS, err == nil
	case "fwmark":
		return markMatches(value, p.Mark), true
	case "iif":
		return value == p.Ingress || value == "lo" && p.Ingress == "", true
	case "oif":
		return value == p.Device, true
	case "uidrange":
		return inRange(value, p.UID), true
	case "ipproto":
		n, err := strconv.ParseUint(value, 10, 8)
		return uint8(n) == p.Proto, err == nil
	case "suppress_prefixlength", "lookup":
		return true, true
	}
	return false, false
}

func within(prefix string, a netip.Addr) bool {
	if prefix == "all" {
		return true
	}
	p, err := netip.ParsePrefix(prefix)
	return err == nil && p.Contains(a)
}

func markMatches(value string, mark uint32) bool {
	want, mask, _ := strings.Cut(value, "/")
	w, err := strconv.ParseUint(want, 0, 32)
	if err != nil {
		return false
	}
	m, err := strconv.ParseUint(mask, 0, 32)
	if err != nil || m == 0 {
		m = 1<<32 - 1
	}
	return mark&uint32(m) == uint32(w)
}

func inRange(value string, uid int) bool {
	from, to, _ := strings.Cut(value, "-")
	lo, err1 := strconv.ParseInt(from, 10, 64)
	hi, err2 := strconv.ParseInt(to, 10, 64)
	return err1 == nil && err2 == nil && uid >= 0 && lo <= int64(uid) && int64(uid) <= hi
}

// byTable finds the first rule for the packet that asks a table; where none is
// known to be for it, the first that asks it at all.
func byTable(rules []Rule, table string, p *Packet) string {
	var any string
	for _, r := range rules {
		switch {
		case r.Table != table:
		case r.matches(p):
			return r.Text
		case any == "":
			any = r.Text
		}
	}
	return any
}

// bySelector finds the first rule before main's that is for the packet by what a
// lookup cannot be told: where it came from.
func bySelector(rules []Rule, p *Packet) string {
	for _, r := range rules {
		if r.Priority >= mainPriority || r.Table == "local" || r.Table == "main" || r.Table == "" {
			continue
		}
		if bySource(r.Text) && r.matches(p) {
			return r.Text
		}
	}
	return ""
}

func bySource(text string) bool {
	return strings.Contains(text, " iif ") || strings.Contains(text, " ipproto ") || !strings.Contains(text, "from all")
}
