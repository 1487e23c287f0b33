package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func describe(s Settings, err error) string {
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s audit=%t loss=%s leak=%s for=%s witness=%s all=%t keep=%t json=%t debug=%t", s.StateDir, s.Socket, s.Audit, s.OnLoss, s.OnLeak, s.GuardFor, s.Witness, s.RestoreAll, s.KeepUnreachable, s.LogJSON, s.LogDebug)
	for _, x := range s.Sessions {
		fmt.Fprintf(&b, "\n%v", x)
	}
	return b.String()
}

func parse(text string) string {
	s := Default()
	err := s.Parse("c.yaml", []byte(text))
	return describe(s, err)
}

const defaults = "/var/lib/culvert /run/culvert/culvert.sock audit=false loss=restore leak=count for=0s witness=auto all=false keep=false json=false debug=false"

func TestParse(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"empty", "", defaults},
		{"comment", "# nothing\n", defaults},
		{"null values", "audit:\nsessions:\n", defaults},
		{"all", `
state_dir: /s
socket: /c.sock
audit: true
on_loss: guard
on_leak: drop
guard_for: 10m
witness: require
restore: all
keep_unreachable: true
log_format: json
log_level: debug
sessions:
  - tunnel: tun0
    protect: [10.0.0.0/8, "::/3", 2001:db8::/32]
    exclude: 10.1.0.0/16, 10.2.0.0/16
    servers:
      - 198.51.100.7:1194/udp
      - "[2001:db8::7]:443/tcp"
    server_from: [uid:root, mark:7]
    exclude_interfaces: [docker0]
  - tunnel: wg0
    protect: [0.0.0.0/0]
    other_table: [0.0.0.0/0]
`, `/s /c.sock audit=true loss=guard leak=drop for=10m0s witness=require all=true keep=true json=true debug=true
{tun0 [10.0.0.0/8 ::/3 2001:db8::/32] [] [10.1.0.0/16 10.2.0.0/16] [198.51.100.7:1194/udp [2001:db8::7]:443/tcp] [docker0] []  [uid:0 mark:7] false true false}
{wg0 [0.0.0.0/0] [] [] [] [] [0.0.0.0/0]  [] false true false}`},
		{"unknown sender", "sessions:\n- tunnel: tun0\n  protect: [10.0.0.0/8]\n  server_from:\n  - host\n  - pid:1\n", "c.yaml:6: server_from: pid:1 is no sender that can be known; write auto, any, host, uid:USER or mark:NUMBER"},
		{"unknown key", "audit: true\nauditt: false\n", "c.yaml:2: unknown field \"auditt\"; see \"culvert run --help\" for the known ones"},
		{"unknown key of a session", "sessions:\n  - tunnel: tun0\n    protec: []\n", "c.yaml:3: unknown field \"protec\"; see \"culvert run --help\" for the known ones"},
		{"key twice", "audit: true\naudit: false\n", "c.yaml:2: mapping key \"audit\" already defined at [1:1]"},
		{"no YAML", "audit: [\n", "c.yaml:1: sequence end token ']' not found"},
		{"a list", "- audit\n", "c.yaml:1: sequence was used where mapping is expected"},
		{"two documents", "audit: true\n---\naudit: false\n", "c.yaml: holds more than one document; write one"},
		{"several for one", "audit: [true]\n", "c.yaml:1: one value is expected here, not several"},
		{"bad boolean", "\naudit: maybe\n", "c.yaml:2: audit: maybe is neither true nor false"},
		{"relative path", "state_dir: here\n", "c.yaml:1: state_dir: here is not an absolute path; write one that begins with /"},
		{"unknown loss", "on_loss: give-up\n", "c.yaml:1: on_loss: give-up is unknown; write restore or guard"},
		{"unknown witness", "witness: maybe\n", "c.yaml:1: witness: maybe is unknown; write auto, off or require"},
		{"no duration", "guard_for: soon\n", "c.yaml:1: guard_for: soon is not a length of time; write one like 10m"},
		{"short duration", "guard_for: 10ms\n", "c.yaml:1: guard_for: 10ms is too short; write at least 1s, or 0 for ever"},
		{"bad word", "restore: some\n", "c.yaml:1: restore: some is unknown; write preexisting or all"},
		{"host bits, on its own line", "sessions:\n- tunnel: tun0\n  protect:\n  - 10.0.0.0/8\n  - 10.1.2.3/16\n", "c.yaml:5: protect: 10.1.2.3/16 has host bits set; write 10.1.0.0/16"},
		{"no tunnel", "sessions:\n- protect: [10.0.0.0/8]\n", "c.yaml: session 1: tunnel: names no interface; give the tunnel's, for example tun0"},
		{"nothing protected", "sessions:\n- tunnel: tun0\n", "c.yaml: session 1: protect: names no prefix; give what must leave through tun0, for example 10.0.0.0/8"},
		{"tunnel twice", "sessions:\n- {tunnel: tun0, protect: [10.0.0.0/8]}\n- {tunnel: tun0, protect: [10.1.0.0/16]}\n", "c.yaml:3: tunnel: tun0 has two sessions; put their prefixes into one"},
		{"prefix twice", "sessions:\n- {tunnel: tun0, protect: [10.0.0.0/8]}\n- {tunnel: tun1, protect: [10.0.0.0/8]}\n", "c.yaml: session 2: 10.0.0.0/8 is protected by two sessions; give it to one tunnel"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := parse(tt.text); got != tt.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, tt.want)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	tests := []struct {
		name, text string
		drops, bad bool
	}{
		{"nothing", "", false, false},
		{"drop", "on_leak: drop\n", true, false},
		{"guard drops", "on_loss: guard\nguard_for: 10m\n", true, false},
		{"audit changes nothing", "audit: true\non_leak: drop\non_loss: guard\nwitness: off\n", false, false},
		{"drop without witness", "on_leak: drop\nwitness: off\n", true, true},
		{"guard without witness", "on_loss: guard\nwitness: off\n", true, true},
		{"no guard to bound", "guard_for: 10m\n", false, true},
	}
	for _, tt := range tests {
		s := Default()
		if err := s.Parse("c.yaml", []byte(tt.text)); err != nil {
			t.Fatal(err)
		}
		if err := s.Check(); (err != nil) != tt.bad || s.Drops() != tt.drops {
			t.Errorf("%s: drops %t, error %v", tt.name, s.Drops(), err)
		}
	}
}

func TestAddReplaces(t *testing.T) {
	s := Default()
	if err := s.Parse("c.yaml", []byte("sessions:\n- {tunnel: tun0, protect: [10.0.0.0/8]}\n")); err != nil {
		t.Fatal(err)
	}
	x := s.Sessions[0]
	x.Protect = x.Protect[:1:1]
	x.Rearm = false
	if err := s.Add(x); err != nil || len(s.Sessions) != 1 || s.Sessions[0].Rearm {
		t.Errorf("got %v, %v", s.Sessions, err)
	}
}

// TestExample holds the packaged file to the settings that it documents.
func TestExample(t *testing.T) {
	s := Default()
	if err := s.ReadFile("../../packaging/culvert.yaml"); err != nil {
		t.Fatal(err)
	}
	if got := describe(s, nil); got != defaults {
		t.Errorf("the packaged file is not the defaults: %s", got)
	}
	text, err := os.ReadFile("../../packaging/culvert.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// With its examples switched on it must still be good.
	on := strings.ReplaceAll(string(text), "\n#: ", "\n")
	if err := s.Parse("example", []byte(on)); err != nil {
		t.Errorf("the examples: %v", err)
	}
	if len(s.Sessions) == 0 {
		t.Error("the examples hold no session")
	}
}

// TestFixed: a setting that differs is named, whichever it is; one that is added later too.
func TestFixed(t *testing.T) {
	running := Default()
	fields := reflect.TypeOf(running)
	for i := range fields.NumField() {
		name := fields.Field(i).Name
		if name == "LogDebug" || name == "Sessions" || !fields.Field(i).IsExported() {
			continue // what a reload takes
		}
		changed := Default()
		switch v := reflect.ValueOf(&changed).Elem().Field(i); v.Kind() {
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Int64:
			v.SetInt(v.Int() + 1)
		default:
			t.Errorf("%s is a %s, which this test cannot change", name, v.Kind())
		}
		if _, keys := changed.Fixed(&running); len(keys) != 1 {
			t.Errorf("%s differs: named are %v", name, keys)
		}
	}
	changed := Default()
	changed.LogDebug = true
	if _, keys := changed.Fixed(&running); len(keys) != 0 {
		t.Errorf("log_level can change: %v", keys)
	}
}

func TestReadFileMissing(t *testing.T) {
	s := Default()
	path := filepath.Join(t.TempDir(), "none.yaml")
	err := s.ReadFile(path)
	if err == nil || !strings.HasPrefix(err.Error(), "--config: cannot be read: open "+path) {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"", "audit: true\n", "sessions:\n- tunnel: tun0\n  protect: [10.0.0.0/8]\n  servers: ['1.2.3.4:5/udp']\n",
		"a: &a [*a]\n", "sessions: {}\n", "? \n", "audit: !!binary x\n", "sessions:\n- *x\n", "socket: |\n  /x\n",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s := Default()
		if err := s.Parse("c.yaml", []byte(text)); err != nil {
			if !strings.Contains(err.Error(), "c.yaml") && !strings.Contains(err.Error(), "both protected") &&
				!strings.Contains(err.Error(), "never touched") {
				t.Errorf("an error that names no place: %v", err)
			}
			return
		}
		if !filepath.IsAbs(s.StateDir) || !filepath.IsAbs(s.Socket) {
			t.Errorf("paths %q and %q", s.StateDir, s.Socket)
		}
	})
}
