// Package config holds the settings of the daemon: their defaults, the YAML
// file, and the flags that win over it.
package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/session"
	"github.com/culvert-project/culvert/enforce"
)

// Settings is everything that can be set. Take them from [Default].
type Settings struct {
	StateDir        string
	Socket          string
	Audit           bool
	OnLoss          enforce.Loss
	OnLeak          Leak
	GuardFor        time.Duration // how long a guard holds; 0 is for ever
	Witness         Need
	RestoreAll      bool
	KeepUnreachable bool
	LogJSON         bool
	LogDebug        bool              // each judgement of the table too, and what made it due
	Sessions        []enforce.Session // opened at start, and again when their tunnels come

	where map[string]string // how errors call each key that a file has, with its line
}

// Leak says what is done with packets that leave outside their tunnel.
type Leak string

// The ways to answer a leak.
const (
	LeakCount Leak = "count" // let it go
	LeakDrop  Leak = "drop"  // stop it
)

// Need says whether the witness of packets must be there.
type Need string

// The needs.
const (
	WitnessAuto    Need = "auto"    // where it can be had
	WitnessOff     Need = "off"     // not at all
	WitnessRequire Need = "require" // or the daemon does not run
)

// Default returns the settings of a daemon that is told nothing.
func Default() Settings {
	return Settings{StateDir: Here.StateDir, Socket: Here.Socket, OnLoss: enforce.LossRestore, OnLeak: LeakCount, Witness: WitnessAuto}
}

// Drops reports whether leaks are to be stopped. A guard that began only when
// the tunnel is gone would be too late, so one does from the start. An audit
// changes nothing.
func (s *Settings) Drops() bool {
	return !s.Audit && (s.OnLeak == LeakDrop || s.OnLoss == enforce.LossGuard)
}

// Notes are what a person should know of settings that are right, and less than
// they may seem: one sentence each.
func (s *Settings) Notes() []string {
	if !s.Audit && s.OnLeak == LeakDrop && s.OnLoss != enforce.LossGuard {
		return []string{"leaks are dropped only while the tunnel is there; --on-loss guard drops them while it is away too"}
	}
	return nil
}

// Check finds settings that contradict each other.
func (s *Settings) Check() error {
	switch {
	case s.Drops() && s.Witness == WitnessOff:
		return &session.Error{Text: "leaks cannot be stopped without the witness: leave out --witness off, or --on-leak drop and --on-loss guard"}
	case s.GuardFor > 0 && !s.Drops() && !s.Audit:
		return &session.Error{Text: "--guard-for bounds a guard, but none is asked for: add --on-loss guard or --on-leak drop"}
	}
	return nil
}

// Fixed names the keys whose values differ from those that a daemon has been started
// with and that cannot change while it runs, and where the first of them stands.
func (s *Settings) Fixed(running *Settings) (where string, keys []string) {
	for _, key := range []struct {
		name    string
		differs bool
	}{
		{"state_dir", s.StateDir != running.StateDir},
		{"socket", s.Socket != running.Socket},
		{"audit", s.Audit != running.Audit},
		{"on_loss", s.OnLoss != running.OnLoss},
		{"on_leak", s.OnLeak != running.OnLeak},
		{"guard_for", s.GuardFor != running.GuardFor},
		{"witness", s.Witness != running.Witness},
		{"restore", s.RestoreAll != running.RestoreAll},
		{"keep_unreachable", s.KeepUnreachable != running.KeepUnreachable},
		{"log_format", s.LogJSON != running.LogJSON},
	} {
		if !key.differs {
			continue
		}
		keys = append(keys, key.name)
		if where == "" {
			where = s.where[key.name]
		}
	}
	return where, keys
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
		return pick(&s.OnLoss, value, fail, enforce.LossRestore, enforce.LossGuard)
	case "on_leak":
		return pick(&s.OnLeak, value, fail, LeakCount, LeakDrop)
	case "guard_for":
		return setDuration(&s.GuardFor, value, fail)
	case "witness":
		return pick(&s.Witness, value, fail, WitnessAuto, WitnessOff, WitnessRequire)
	case "restore":
		return choose(&s.RestoreAll, value, [2]string{"preexisting", "all"}, fail)
	case "log_format":
		return choose(&s.LogJSON, value, [2]string{"text", "json"}, fail)
	case "log_level":
		return choose(&s.LogDebug, value, [2]string{"info", "debug"}, fail)
	}
	return fmt.Errorf("%s: no such setting", key)
}

func setPath(dst *string, value string, fail func(string) error) error {
	if !filepath.IsAbs(value) {
		return fail("is not an absolute path; write one that begins with " + Here.root)
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

// pick takes one of some words.
func pick[T ~string](dst *T, value string, fail func(string) error, words ...T) error {
	if slices.Contains(words, T(value)) {
		*dst = T(value)
		return nil
	}
	text := "is unknown; write " + string(words[0])
	for i, w := range words[1:] {
		sep := ", "
		if i == len(words)-2 {
			sep = " or "
		}
		text += sep + string(w)
	}
	return fail(text)
}

// minGuard is the shortest guard that can be renewed in time on a busy machine.
const minGuard = time.Second

// setDuration takes a length of time; 0 is none.
func setDuration(dst *time.Duration, value string, fail func(string) error) error {
	d, err := time.ParseDuration(value)
	if value == "0" {
		d, err = 0, nil
	}
	switch {
	case err != nil:
		return fail("is not a length of time; write one like 10m")
	case d < 0 || d > 0 && d < minGuard:
		return fail("is too short; write at least " + minGuard.String() + ", or 0 for ever")
	}
	*dst = d
	return nil
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
