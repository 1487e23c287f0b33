package witness

import (
	"net/netip"
	"strconv"
	"strings"
)

// Rule is a policy rule, in the words of ip-rule(8).
type Rule struct {
	Table      string // that it asks, or ""
	Text       string
	BeforeMain bool // it takes packets from table main
}

// Match says whether the rule is for the packet. It is not known where the rule
// has words that are not understood, and the others fit.
func (r Rule) Match(p *Packet) (is, known bool) {
	_, text, _ := strings.Cut(r.Text, ": ")
	text, invert := strings.CutPrefix(text, "not ")
	words := strings.Fields(text)
	all, known := true, true
	for i := 0; i < len(words); i += 2 {
		switch word := words[i]; {
		case word == "l3mdev": // which VRF's, the lookup itself tells; no packet without a device is in one
			all, known = all && p.Device != "", false
			i--
		case i+1 < len(words):
			is, understood := selects(word, words[i+1], p)
			all, known = all && (is || !understood), known && understood
		case !isAction(word):
			return false, false // cut short
		}
	}
	if !all { // one word that does not fit decides
		return invert, true
	}
	return !invert, known
}

// isAction tells the actions of rules that ask no table.
func isAction(word string) bool {
	return word == "blackhole" || word == "unreachable" || word == "prohibit"
}

// matches reports whether the rule is known to be for the packet.
func (r Rule) matches(p *Packet) bool {
	is, known := r.Match(p)
	return is && known
}

// Deciding returns the rule that led the packet to a table, in whose route of
// the given length it was found: the first that is for it. Unless are the rules
// before it that would have taken the packet, had it been one that they are for:
// that cannot be known. The table "" stands for rules that refuse.
func Deciding(rules []Rule, table string, bits int, p *Packet) (decided string, unless []string) {
	for _, r := range rules {
		is, known := r.Match(p)
		asks := r.Table == table && !r.suppresses(bits) && (table != "" || r.cuts())
		switch {
		case known && is && asks:
			return r.Text, unless
		case !known:
			unless = append(unless, r.Text)
		}
	}
	return "", unless
}

// suppresses reports whether the rule passes over routes of such a length.
func (r Rule) suppresses(bits int) bool {
	_, after, ok := strings.Cut(r.Text, " suppress_prefixlength ")
	if !ok {
		return false
	}
	word, _, _ := strings.Cut(after, " ")
	n, err := strconv.Atoi(word)
	return err == nil && bits <= n
}

// cuts reports whether the rule's action is a refusal.
func (r Rule) cuts() bool {
	return isAction(r.Text[strings.LastIndexByte(r.Text, ' ')+1:])
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
	case "dport":
		return portMatches(value, p.Port), p.Port != 0
	case "uidrange":
		return inRange(value, p.UID), true
	case "ipproto":
		n, err := strconv.ParseUint(value, 10, 8)
		return uint8(n) == p.Proto, err == nil && p.Proto != 0
	case "suppress_prefixlength", "lookup":
		return true, true
	}
	return false, false
}

func portMatches(value string, port uint16) bool {
	from, to, isRange := strings.Cut(value, "-")
	if !isRange {
		to = from
	}
	return inRange(from+"-"+to, int(port))
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

func inRange(value string, n int) bool {
	from, to, _ := strings.Cut(value, "-")
	lo, err1 := strconv.ParseInt(from, 10, 64)
	hi, err2 := strconv.ParseInt(to, 10, 64)
	return err1 == nil && err2 == nil && n >= 0 && lo <= int64(n) && int64(n) <= hi
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
		if r.BeforeMain && r.Table != "" && bySource(r.Text) && r.matches(p) {
			return r.Text
		}
	}
	return ""
}

func bySource(text string) bool {
	return strings.Contains(text, " iif ") || strings.Contains(text, " ipproto ") || !strings.Contains(text, "from all")
}
