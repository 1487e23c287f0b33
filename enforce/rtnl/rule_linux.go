package rtnl

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Rule is one policy rule: which table is asked, for which packets.
type Rule struct {
	Family   uint8 // 4 or 6
	Priority uint32
	Table    uint32 // 0 where the action is not a lookup
	Text     string // in the manner of ip-rule(8)

	Dst      netip.Prefix // of its packets; the zero Prefix is any
	Selects  bool         // it is for some packets only, by more than their destination
	Suppress int          // routes of this prefix length and shorter are passed over; -1 is none
	goesOn   bool         // it asks nothing and hands the packet to the next rule, or to a later one
}

// Rules returns the policy rules of both families, in the order they are asked.
func (s *System) Rules(_ context.Context) ([]Rule, error) {
	c, err := s.dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return dumpRules(c)
}

// dumpRules reads the rules; a kernel without policy routing has none.
func dumpRules(c *netlink.Conn) ([]Rule, error) {
	var out []Rule
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		header := make([]byte, fibRuleLen)
		header[0] = family
		msgs, err := request(c, unix.RTM_GETRULE, header)
		if isUnsupported(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("dump rules: %w", err)
		}
		for _, m := range msgs {
			if r, ok := parseRule(m.Data); ok {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

// struct fib_rule_hdr and its attributes: include/uapi/linux/fib_rules.h.
const (
	fibRuleLen        = 12
	fraDst            = 1
	fraSrc            = 2
	fraIif            = 3
	fraPriority       = 6
	fraGoto           = 4
	fraFwmark         = 10
	fraFlow           = 11
	fraTunID          = 12
	fraSuppressGroup  = 13
	fraSuppressPrefix = 14
	fraTable          = 15
	fraFwmask         = 16
	fraOif            = 17
	fraPad            = 18
	fraL3mdev         = 19
	fraUIDRange       = 20
	fraProtocol       = 21
	fraIPProto        = 22
	fraSport          = 23
	fraDport          = 24
	fibRuleInvert     = 2
	actionToTable     = 1
	actionGoto        = 2
	actionNop         = 3
)

func parseRule(b []byte) (Rule, bool) {
	if len(b) < fibRuleLen {
		return Rule{}, false
	}
	p := ruleText{header: b[:fibRuleLen], dst: "all", src: "all", table: uint32(b[4]), suppress: -1}
	r := Rule{Family: 4}
	if b[0] == unix.AF_INET6 {
		r.Family = 6
	}
	for rest := b[fibRuleLen:]; len(rest) > 0; {
		a, next, ok := nextAttr(rest)
		if !ok {
			return Rule{}, false
		}
		rest = next
		p.take(a)
		r.Selects = r.Selects || selector(a)
		r.goesOn = r.goesOn || a.typ == fraL3mdev // a VRF's, which is told of by itself
		if a.typ == fraDst {
			r.Dst = netip.PrefixFrom(addr(a.value), int(b[1])).Masked()
		}
	}
	r.Priority, r.Suppress = p.priority, p.suppress
	r.Selects = r.Selects || b[3] != 0 || native.Uint32(b[8:])&fibRuleInvert != 0
	r.goesOn = r.goesOn || b[7] == actionGoto || b[7] == actionNop
	if b[7] == actionToTable {
		r.Table = p.table
	}
	r.Text = p.text()
	return r, true
}

// selector reports whether an attribute picks packets by something else than their
// destination. A kind that is not known is taken for one.
func selector(a attr) bool {
	switch a.typ {
	case fraDst, fraPriority, fraTable, fraSuppressPrefix, fraGoto, fraFlow, fraPad, fraProtocol:
		return false
	case fraFwmark, fraFwmask, fraTunID: // of zero they are told too
		return slices.ContainsFunc(a.value, func(b byte) bool { return b != 0 })
	case fraSuppressGroup:
		return false
	case fraL3mdev:
		return first(a.value) != 0
	}
	return true
}

// ruleText collects what a rule says.
type ruleText struct {
	header   []byte
	src, dst string
	priority uint32
	table    uint32
	more     []string
	mark     uint32
	mask     uint32
	suppress int
}

func (p *ruleText) take(a attr) {
	add := func(words ...string) { p.more = append(p.more, words...) }
	switch a.typ {
	case fraDst:
		p.dst = prefixText(a.value, p.header[1])
	case fraSrc:
		p.src = prefixText(a.value, p.header[2])
	case fraPriority:
		p.priority = u32(a.value)
	case fraTable:
		p.table = u32(a.value)
	case fraFwmark:
		p.mark = u32(a.value)
	case fraFwmask:
		p.mask = u32(a.value)
	case fraIif:
		add("iif", cString(a.value))
	case fraOif:
		add("oif", cString(a.value))
	case fraL3mdev:
		add("l3mdev")
	case fraUIDRange:
		add("uidrange", uidRange(a.value))
	case fraIPProto:
		add("ipproto", number(uint32(first(a.value))))
	case fraSport:
		add("sport", portRange(a.value))
	case fraDport:
		add("dport", portRange(a.value))
	case fraSuppressPrefix:
		if n := u32(a.value); n != ^uint32(0) {
			p.suppress = int(n)
			add("suppress_prefixlength", number(n))
		}
	case fraProtocol, fraPad, fraGoto, fraFlow, fraSuppressGroup: // they choose no packet
	default: // a selector that is newer than this program
		add("attribute", number(uint32(a.typ)))
	}
}

func (p *ruleText) text() string {
	words := []string{number(p.priority) + ":"}
	if p.header[8]&fibRuleInvert != 0 {
		words = append(words, "not")
	}
	words = append(words, "from", p.src)
	if p.dst != "all" {
		words = append(words, "to", p.dst)
	}
	if tos := p.header[3]; tos != 0 {
		words = append(words, "tos", "0x"+strconv.FormatUint(uint64(tos), 16))
	}
	if p.mark != 0 || p.mask != 0 {
		words = append(words, "fwmark", fmt.Sprintf("%#x/%#x", p.mark, p.mask))
	}
	words = append(words, p.more...)
	return strings.Join(append(words, p.action()), " ")
}

func (p *ruleText) action() string {
	switch p.header[7] {
	case actionToTable:
		return "lookup " + TableName(p.table)
	case 6:
		return "blackhole"
	case 7:
		return "unreachable"
	case 8:
		return "prohibit"
	}
	return "action " + number(uint32(p.header[7]))
}

// TableName returns the name of a routing table, or its number.
func TableName(id uint32) string {
	switch id {
	case unix.RT_TABLE_MAIN:
		return "main"
	case unix.RT_TABLE_LOCAL:
		return "local"
	case unix.RT_TABLE_DEFAULT:
		return "default"
	}
	return number(id)
}

func prefixText(b []byte, bits uint8) string {
	return netip.PrefixFrom(addr(b), int(bits)).String()
}

func uidRange(b []byte) string {
	if len(b) < 8 {
		return "?"
	}
	return number(native.Uint32(b)) + "-" + number(native.Uint32(b[4:]))
}

func portRange(b []byte) string {
	if len(b) < 4 {
		return "?"
	}
	from, to := number(uint32(native.Uint16(b))), number(uint32(native.Uint16(b[2:])))
	if from == to {
		return from
	}
	return from + "-" + to
}

func first(b []byte) uint8 {
	if len(b) == 0 {
		return 0
	}
	return b[0]
}

func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
