package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"github.com/culvert-project/culvert/cmd/culvert/internal/session"
)

// maxFile bounds a configuration file.
const maxFile = 1 << 20

// ReadFile takes the settings of a YAML file. Errors name the file and line.
func (s *Settings) ReadFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return &session.Error{Where: "--config", Text: "cannot be read: " + err.Error()}
	}
	defer f.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return &session.Error{Where: "--config", Text: "cannot be read: " + err.Error()}
	}
	return s.Parse(path, data)
}

// Parse takes the settings of a YAML text; name is what errors call it.
func (s *Settings) Parse(name string, data []byte) error {
	if len(data) > maxFile {
		return &session.Error{Where: name, Text: fmt.Sprintf("is longer than %d bytes", maxFile)}
	}
	var doc document
	dec := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict())
	if err := dec.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return located(name, err)
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return &session.Error{Where: name, Text: "holds more than one document; write one"}
	}
	for _, set := range doc.settings() {
		if set.value.line == 0 {
			continue
		}
		at := fmt.Sprintf("%s:%d", name, set.value.line)
		where := at + ": " + set.key
		if s.where == nil {
			s.where = map[string]string{}
		}
		s.where[set.key] = at
		if err := s.Set(where, set.key, set.value.text); err != nil {
			return err
		}
	}
	return s.addSessions(name, doc.Sessions)
}

func (s *Settings) addSessions(name string, entries []entry) error {
	tunnels := map[string]bool{}
	for i, e := range entries {
		parsed, err := e.text(name, i).Parse()
		if err != nil {
			return err
		}
		if tunnels[parsed.Tunnel] {
			return &session.Error{Where: e.where(name, i, session.Tunnel), Input: parsed.Tunnel, Text: "has two sessions; put their prefixes into one"}
		}
		tunnels[parsed.Tunnel] = true
		if err := s.Add(parsed); err != nil {
			return fmt.Errorf("%s: session %d: %w", name, i+1, err)
		}
	}
	return nil
}

// located says a YAML error with its line, and what to do about the commonest.
func located(name string, err error) error {
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil {
		return &session.Error{Where: name, Text: err.Error()}
	}
	text := at.GetMessage()
	var unknown *yaml.UnknownFieldError
	if errors.As(err, &unknown) {
		text += "; see \"culvert run --help\" for the known ones"
	}
	return &session.Error{Where: fmt.Sprintf("%s:%d", name, at.GetToken().Position.Line), Text: text}
}

// document is the file. Values are words with the line they stand on.
type document struct {
	StateDir        word    `yaml:"state_dir"`
	Socket          word    `yaml:"socket"`
	Audit           word    `yaml:"audit"`
	OnLoss          word    `yaml:"on_loss"`
	OnLeak          word    `yaml:"on_leak"`
	GuardFor        word    `yaml:"guard_for"`
	Witness         word    `yaml:"witness"`
	Restore         word    `yaml:"restore"`
	KeepUnreachable word    `yaml:"keep_unreachable"`
	LogFormat       word    `yaml:"log_format"`
	LogLevel        word    `yaml:"log_level"`
	Sessions        []entry `yaml:"sessions"`
}

type setting struct {
	key   string
	value word
}

func (d *document) settings() []setting {
	return []setting{
		{"state_dir", d.StateDir},
		{"socket", d.Socket},
		{"audit", d.Audit},
		{"on_loss", d.OnLoss},
		{"on_leak", d.OnLeak},
		{"guard_for", d.GuardFor},
		{"witness", d.Witness},
		{"restore", d.Restore},
		{"keep_unreachable", d.KeepUnreachable},
		{"log_format", d.LogFormat},
		{"log_level", d.LogLevel},
	}
}

// entry is one session of the file.
type entry struct {
	Tunnel            word `yaml:"tunnel"`
	Protect           list `yaml:"protect"`
	Exclude           list `yaml:"exclude"`
	Servers           list `yaml:"servers"`
	ServerFrom        list `yaml:"server_from"`
	ExcludeInterfaces list `yaml:"exclude_interfaces"`
	OtherTable        list `yaml:"other_table"`
	OtherFamily       word `yaml:"other_family"`
}

func (e *entry) text(name string, i int) session.Text {
	return session.Text{
		Tunnel:            e.Tunnel.text,
		Protect:           e.Protect.texts(),
		Exclude:           e.Exclude.texts(),
		Servers:           e.Servers.texts(),
		ServerFrom:        e.ServerFrom.texts(),
		ExcludeInterfaces: e.ExcludeInterfaces.texts(),
		OtherTable:        e.OtherTable.texts(),
		OtherFamily:       e.OtherFamily.text,
		Rearm:             true,
		Where:             func(f session.Field) string { return e.where(name, i, f) },
		WhereWord:         func(f session.Field, n int) string { return e.whereWord(name, i, place{f, n}) },
	}
}

// where names a field of the i-th session by its line.
func (e *entry) where(name string, i int, f session.Field) string {
	return e.whereWord(name, i, place{f, 0})
}

// place is a word of a field.
type place struct {
	field session.Field
	n     int
}

func (e *entry) whereWord(name string, i int, at place) string {
	key, words := e.field(at.field)
	if at.n >= len(words) || words[at.n].line == 0 {
		return fmt.Sprintf("%s: session %d: %s", name, i+1, key)
	}
	return fmt.Sprintf("%s:%d: %s", name, words[at.n].line, key)
}

// field returns a field's key in the file, and its words.
func (e *entry) field(f session.Field) (string, list) {
	switch f {
	case session.Protect:
		return "protect", e.Protect
	case session.Exclude:
		return "exclude", e.Exclude
	case session.ServerField:
		return "servers", e.Servers
	case session.ServerFrom:
		return "server_from", e.ServerFrom
	case session.ExcludeInterface:
		return "exclude_interfaces", e.ExcludeInterfaces
	case session.OtherTable:
		return "other_table", e.OtherTable
	case session.OtherFamily:
		return "other_family", list{e.OtherFamily}
	}
	return "tunnel", list{e.Tunnel}
}

// word is a scalar and its line.
type word struct {
	text string
	line int
}

// UnmarshalYAML takes any scalar as it is written.
func (w *word) UnmarshalYAML(n ast.Node) error {
	if _, ok := n.(ast.ScalarNode); !ok {
		return &yaml.SyntaxError{Message: "one value is expected here, not several", Token: n.GetToken()}
	}
	w.line = n.GetToken().Position.Line
	return yaml.NodeToValue(n, &w.text)
}

// list is a sequence of scalars, or one scalar with commas.
type list []word

// UnmarshalYAML takes either form.
func (l *list) UnmarshalYAML(n ast.Node) error {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		var w word
		if err := w.UnmarshalYAML(n); err != nil {
			return err
		}
		for text := range strings.SplitSeq(w.text, ",") {
			*l = append(*l, word{strings.TrimSpace(text), w.line})
		}
		return nil
	}
	for _, v := range seq.Values {
		var w word
		if err := w.UnmarshalYAML(v); err != nil {
			return err
		}
		*l = append(*l, w)
	}
	return nil
}

func (l list) texts() []string {
	var out []string
	for _, w := range l {
		out = append(out, w.text)
	}
	return out
}
