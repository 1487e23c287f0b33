// Package session turns what a person or a file says of a VPN connection into
// an [enforce.Session], or says what is wrong with it and what to write instead.
package session

import (
	"errors"
	"fmt"
	"net/netip"
	"os/user"
	"slices"
	"strings"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// Error is a word of the input that cannot be, and the remedy. Nothing was
// changed.
type Error struct {
	Where string // the flag or the key of the file, or ""
	Input string // the word at fault
	Text  string // continues the input to a sentence
}

// Error returns the sentence.
func (e *Error) Error() string {
	s := strings.TrimSpace(e.Input + " " + e.Text)
	if e.Where == "" {
		return s
	}
	return e.Where + ": " + s
}

// Text is a session in words, as flags and configuration files give it.
type Text struct {
	Tunnel            string
	Protect           []string
	Exclude           []string
	Servers           []string
	ServerFrom        []string
	ExcludeInterfaces []string
	OtherTable        []string
	OtherFamily       string
	Rearm             bool

	Where     func(Field) string      // what to call a field in an error; nil is nothing
	WhereWord func(Field, int) string // the same for the n-th word of a field; nil is Where
}

// Field is a part of a session, by the name of its flag.
type Field string

// The fields.
const (
	Tunnel           Field = "tunnel"
	Protect          Field = "protect"
	Exclude          Field = "exclude"
	ServerField      Field = "server"
	ServerFrom       Field = "server-from"
	ExcludeInterface Field = "exclude-interface"
	OtherTable       Field = "other-table"
	OtherFamily      Field = "other-family"
)

func (t Text) where(f Field) string {
	if t.Where == nil {
		return ""
	}
	return t.Where(f)
}

// words pairs the words of a field with what to call each in an error.
func (t Text) words(f Field, words []string) []located {
	out := make([]located, len(words))
	for i, w := range words {
		out[i] = located{t.where(f), w}
		if t.WhereWord != nil {
			out[i].where = t.WhereWord(f, i)
		}
	}
	return out
}

// located is a word of the input and where it stands.
type located struct{ where, word string }

// Parse returns the session that the words describe, checked by itself.
func (t Text) Parse() (enforce.Session, error) {
	s := enforce.Session{Tunnel: t.Tunnel, ExcludeInterfaces: t.ExcludeInterfaces, OtherFamily: enforce.OtherFamily(t.OtherFamily), Rearm: t.Rearm}
	var err error
	if s.Protect, err = parseAll(t.words(Protect, t.Protect), Prefix); err != nil {
		return s, err
	}
	if s.Exclude, err = parseAll(t.words(Exclude, t.Exclude), Prefix); err != nil {
		return s, err
	}
	if s.OtherTable, err = parseAll(t.words(OtherTable, t.OtherTable), Prefix); err != nil {
		return s, err
	}
	if s.Servers, err = parseAll(t.words(ServerField, t.Servers), Server); err != nil {
		return s, err
	}
	if s.ServerFrom, err = senders(t.words(ServerFrom, t.ServerFrom)); err != nil {
		return s, err
	}
	return s, t.check(s)
}

// Senders parses who may send a tunnel's packets to its server; none is whoever the tunnel's kind makes certain.
func Senders(where string, words []string) ([]string, error) {
	var list []located
	for _, w := range words {
		list = append(list, located{where, w})
	}
	return senders(list)
}

func senders(words []located) ([]string, error) {
	out, err := parseAll(words, sender)
	if i := slices.Index(out, ""); err == nil && i >= 0 {
		if len(out) > 1 {
			return nil, &Error{words[0].where, "auto", "goes with no other sender; leave it out"}
		}
		return nil, nil
	}
	return out, err
}

// sender parses one of them, "" being auto. The error continues the word to a sentence.
func sender(word string) (string, error) {
	if word == "auto" {
		return "", nil
	}
	if name, ok := strings.CutPrefix(word, "uid:"); ok {
		if u, err := user.Lookup(name); err == nil && name != "" {
			word = "uid:" + u.Uid
		}
	}
	s, err := enforce.ParseSender(word)
	if err != nil {
		return "", errors.New("is no sender that can be known; write auto, any, host, uid:USER or mark:NUMBER")
	}
	return s.String(), nil
}

// check looks at the parts that only make sense together.
func (t Text) check(s enforce.Session) error {
	if err := Device(t.where(Tunnel), s.Tunnel); err != nil {
		return err
	}
	if len(s.Protect) == 0 {
		return &Error{t.where(Protect), "", "names no prefix; give what must leave through " + s.Tunnel + ", for example 10.0.0.0/8"}
	}
	for _, name := range s.ExcludeInterfaces {
		if err := interfacePattern(t.where(ExcludeInterface), name); err != nil {
			return err
		}
		if name == s.Tunnel {
			return &Error{t.where(ExcludeInterface), name, "is the tunnel itself; leave it out"}
		}
		if one := (enforce.Session{ExcludeInterfaces: []string{name}}); one.Excludes(s.Tunnel) {
			// One that fits the tunnel too is meant for less: "*" would leave nothing to enforce, and say nothing.
			return &Error{t.where(ExcludeInterface), name, "fits the tunnel itself, " + s.Tunnel + ", too; write a pattern that fits the others only"}
		}
	}
	for _, p := range s.OtherTable {
		if !slices.Contains(s.Protect, p) {
			return &Error{t.where(OtherTable), p.String(), "is not protected; protect it too, or leave it out"}
		}
	}
	if err := OtherFamilyWord(t.where(OtherFamily), t.OtherFamily); err != nil {
		return err
	}
	full := func(f plan.Family) bool { return plan.Full(f, s.Protect, s.Exclude) }
	if s.OtherFamily == enforce.OtherBlock && !full(plan.IPv4) && !full(plan.IPv6) {
		return &Error{t.where(OtherFamily), "block", "is for a tunnel that all of IPv4 or of IPv6 must enter, and this one leaves out parts of both; leave it out"}
	}
	return Check(s)
}

// OtherFamilyWord checks what is said of the family that a tunnel leaves out; "" is
// to allow it.
func OtherFamilyWord(where, word string) error {
	switch enforce.OtherFamily(word) {
	case "", enforce.OtherAllow, enforce.OtherBlock:
		return nil
	}
	return &Error{where, word, "is unknown; write allow or block"}
}

// parseAll parses every word, and drops repeats.
func parseAll[T comparable](words []located, parse func(string) (T, error)) ([]T, error) {
	var out []T
	seen := map[T]bool{}
	for _, w := range words {
		v, err := parse(w.word)
		if err != nil {
			return nil, &Error{w.where, w.word, err.Error()}
		}
		if !seen[v] {
			seen[v] = true
			out = append(out, v)
		}
	}
	return out, nil
}

// Prefix parses one prefix. The error continues the word to a sentence.
func Prefix(word string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(word); err == nil && a.Zone() == "" {
		return netip.Prefix{}, fmt.Errorf("has no prefix length; write %s/%d for this one address", a, a.BitLen())
	}
	p, err := netip.ParsePrefix(word)
	switch {
	case err != nil:
		return netip.Prefix{}, errors.New("is not a prefix; write ADDRESS/LENGTH, for example 10.0.0.0/8 or 2001:db8::/32")
	case p.Addr().Is4In6():
		return netip.Prefix{}, errors.New("is an IPv4 address written as IPv6; write the IPv4 prefix")
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("has host bits set; write %s", p.Masked())
	}
	return p, nil
}

const serverForm = "write ADDRESS:PORT/PROTOCOL, for example 198.51.100.7:1194/udp or [2001:db8::7]:443/tcp, " +
	"or ADDRESS/PROTOCOL for one without ports, for example 198.51.100.7/esp"

// Server parses one transport endpoint. The error continues the word to a
// sentence.
func Server(word string) (enforce.Server, error) {
	addr, proto, ok := strings.Cut(word, "/")
	if !ok {
		return enforce.Server{}, fmt.Errorf("names no protocol; %s", serverForm)
	}
	name, family, ports, known := transport(proto)
	if !known {
		return enforce.Server{}, fmt.Errorf("has an unknown protocol; write %s", enforce.TransportNames())
	}
	ap, err := address(addr, name, ports)
	if err != nil {
		return enforce.Server{}, err
	}
	return endpoint(ap, name, family)
}

// address parses an address with the port that its protocol has, or without.
func address(text, proto string, ports bool) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(text)
	switch {
	case err == nil && !ports:
		return ap, fmt.Errorf("has a port, and %s has none; write %s/%s", proto, ap.Addr(), proto)
	case err == nil && ap.Port() == 0:
		return ap, errors.New("has port 0; write the port that the tunnel is carried to")
	case err == nil:
		return ap, nil
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	switch {
	case err != nil:
		return ap, fmt.Errorf("is not a server (names must be resolved first); %s", serverForm)
	case ports:
		return ap, fmt.Errorf("has no port; write the one that the tunnel is carried to: %s/%s", portForm(a), proto)
	}
	return netip.AddrPortFrom(a, 0), nil
}

// portForm is how an address is written before a port. What is one without brackets may have been meant with its end as
// the port, so it is not repeated.
func portForm(a netip.Addr) string {
	if a.Is6() {
		return "[ADDRESS]:PORT"
	}
	return a.String() + ":PORT"
}

func endpoint(ap netip.AddrPort, name string, family int) (enforce.Server, error) {
	switch a := ap.Addr(); {
	case a.Is4In6():
		return enforce.Server{}, errors.New("is an IPv4 address written as IPv6; write the IPv4 address")
	case a.Zone() != "":
		return enforce.Server{}, errors.New("has a zone; write the address without it")
	case a.IsUnspecified() || a.IsMulticast():
		return enforce.Server{}, fmt.Errorf("is no address of one host; %s", serverForm)
	case family != 0 && (family == 6) != a.Is6():
		return enforce.Server{}, fmt.Errorf("mixes the families: %s%d is not for this address; write %s", name, family, name)
	}
	return enforce.Server{Addr: ap, Proto: name}, nil
}

// transport returns the plain name of a transport protocol, the family that its
// name asks for, or 0, and whether it has ports.
func transport(word string) (name string, family int, ports, known bool) {
	switch word {
	case "udp4", "tcp4":
		return word[:3], 4, true, true
	case "udp6", "tcp6":
		return word[:3], 6, true, true
	}
	_, ports, known = enforce.Transport(word)
	return word, 0, ports, known
}

// Device checks the name of an interface; whether it exists is not asked.
func Device(where, name string) error {
	switch {
	case name == "":
		return &Error{where, "", "names no interface; give the tunnel's, for example tun0"}
	case len(name) > 255 || strings.ContainsAny(name, "/\x00\n\t"):
		return &Error{where, fmt.Sprintf("%.40q", name), "is not the name of an interface"}
	}
	return nil
}

// interfacePattern checks the name of an interface, or a pattern of names.
func interfacePattern(where, word string) error {
	if err := Device(where, word); err != nil {
		return err
	}
	var input *enforce.InputError
	if errors.As(enforce.CheckInterfacePattern(word), &input) {
		return &Error{where, input.Input, input.Text}
	}
	return nil
}

// Check looks for prefixes that cannot be enforced as given, in one session
// and between several.
func Check(sessions ...enforce.Session) error {
	var spec plan.Spec
	seen := map[string]bool{}
	for i, s := range sessions {
		if seen[s.Tunnel] {
			return &Error{"", s.Tunnel, "has two sessions; put their prefixes into one"}
		}
		seen[s.Tunnel] = true
		spec.Sessions = append(spec.Sessions, plan.Session{
			Tunnel: uint32(i + 1), Protect: s.Protect, Exclude: s.Exclude, OtherTable: s.OtherTable,
		})
	}
	if _, problems := plan.Build(spec); len(problems) > 0 {
		return &Error{"", problems[0].Prefix.String(), problems[0].Text}
	}
	return nil
}
