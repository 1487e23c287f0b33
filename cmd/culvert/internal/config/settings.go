// Package config holds the settings of the daemon: their defaults, the YAML
// file, and the flags that win over it.
package config

import (
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/culvert-project/culvert/cmd/culvert/internal/session"
	"github.com/culvert-project/culvert/enforce"
)

// Settings is everything that can be set. Take them from [Default].
type Settings struct {
	StateDir        string
	Socket          string
	Audit           bool
	OnLoss          enforce.Loss
	RestoreAll      bool
	KeepUnreachable bool
	LogJSON         bool
	Sessions        []enforce.Session // opened at start, and again when their tunnels come
}

// The places that are used when none is named.
const (
	DefaultStateDir = "/var/lib/culvert"
	DefaultSocket   = "/run/culvert/culvert.sock"
)

// Default returns the settings of a daemon that is told nothing.
func Default() Settings {
	return Settings{StateDir: DefaultStateDir, Socket: DefaultSocket, OnLoss: enforce.LossRestore}
}

// Set sets one value by the name that it has in the file. Where is how an
// error calls it.
func (s *Settings) Set(where, key, value string) error {
	fail := func(text string) error { return &session.Error{Where: where, Input: value, Text: text} }
	switch key {
	case "state_dir":
		return setPath(&s.StateDir, value, fail)
	case "socket":
		return setPath(&s.Socket, value, fail)
	case "audit":
		return setBool(&s.Audit, value, fail)
	case "keep_unreachable":
		return setBool(&s.KeepUnreachable, value, fail)
	case "on_loss":
		return setLoss(&s.OnLoss, value, fail)
	case "restore":
		return choose(&s.RestoreAll, value, [2]string{"preexisting", "all"}, fail)
	case "log_format":
		return choose(&s.LogJSON, value, [2]string{"text", "json"}, fail)
	}
	return fmt.Errorf("%s: no such setting", key)
}

func setPath(dst *string, value string, fail func(string) error) error {
	if !filepath.IsAbs(value) {
		return fail("is not an absolute path; write one that begins with /")
	}
	*dst = filepath.Clean(value)
	return nil
}

func setBool(dst *bool, value string, fail func(string) error) error {
	v, err := strconv.ParseBool(value)
	if err != nil {
		return fail("is neither true nor false")
	}
	*dst = v
	return nil
}

func setLoss(dst *enforce.Loss, value string, fail func(string) error) error {
	switch enforce.Loss(value) {
	case enforce.LossRestore:
		*dst = enforce.LossRestore
		return nil
	case enforce.LossGuard:
		return fail("is not available in this version; use restore")
	}
	return fail("is unknown; write restore")
}

// choose sets dst to whether value is the second of two words.
func choose(dst *bool, value string, words [2]string, fail func(string) error) error {
	if value != words[0] && value != words[1] {
		return fail("is unknown; write " + words[0] + " or " + words[1])
	}
	*dst = value == words[1]
	return nil
}

// Add puts a session in place of the one on the same tunnel, or beside the
// others, and checks them together.
func (s *Settings) Add(add enforce.Session) error {
	for i := range s.Sessions {
		if s.Sessions[i].Tunnel == add.Tunnel {
			s.Sessions[i] = add
			return session.Check(s.Sessions...)
		}
	}
	s.Sessions = append(s.Sessions, add)
	return session.Check(s.Sessions...)
}
