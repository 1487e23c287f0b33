package main

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestAwaitEnd(t *testing.T) {
	failed := errors.New("no")
	tests := []struct {
		name    string
		signals int
		ends    bool // once it is asked to stop, or at once when there is no signal
		err     error
		want    string
	}{
		{"by itself", 0, true, failed, "no"},
		{"restored after a signal", 1, true, nil, ""},
		{"not restored after a signal", 1, true, failed, "no"},
		{"second signal", 2, false, nil, "stopped before every route was restored; what is still out is written down in /s: \"culvert recover --state-dir /s\" gives it back"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			done := make(chan error, 1)
			signals := make(chan os.Signal, 2)
			for range tt.signals {
				signals <- syscall.SIGTERM
			}
			stop := func() {
				if tt.ends {
					done <- tt.err
				}
			}
			if tt.signals == 0 {
				stop()
			}
			err := awaitEnd(done, signals, stop, "/s")
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tt.want || (err != nil && exitCode(err) != exitWrong) {
				t.Errorf("got %q, exit code %d", got, exitCode(err))
			}
		})
	}
}

// TestFlagsWin: what a file says holds until a flag says otherwise.
func TestFlagsWin(t *testing.T) {
	file := t.TempDir() + "/c.yaml"
	text := "restore: all\nlog_format: json\nlog_level: debug\nsocket: /file.sock\nsessions:\n- {tunnel: tun0, protect: [10.0.0.0/8]}\n- {tunnel: tun1, protect: [10.1.0.0/16]}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var sess sessionFlags
	sess.text.Rearm = true
	cmd := newRun(&onLinux)
	flags := cmd.Flags()
	for name, value := range map[string]string{"restore": "preexisting", "audit": "true", "socket": "/flag.sock"} {
		if err := flags.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	sess.text.Tunnel, sess.text.Protect = "tun0", []string{"172.31.0.0/16"}
	if err := flags.Set("tunnel", "tun0"); err != nil {
		t.Fatal(err)
	}
	s, err := runSettingsOf(cmd, file, &sess)
	if err != nil {
		t.Fatal(err)
	}
	if s.RestoreAll || !s.LogJSON || !s.LogDebug || !s.Audit || s.Socket != "/flag.sock" {
		t.Errorf("got %+v", s)
	}
	if len(s.Sessions) != 2 || s.Sessions[0].Protect[0].String() != "172.31.0.0/16" || !s.Sessions[0].Rearm {
		t.Errorf("got %+v", s.Sessions)
	}
}

func TestExitCodes(t *testing.T) {
	if code := exitCode(&os.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}); code != exitDenied {
		t.Errorf("EACCES: %d", code)
	}
	var b strings.Builder
	complain(&b, errQuiet)
	complain(&b, nil)
	if b.Len() != 0 {
		t.Errorf("said %q", b.String())
	}
}

// TestCrashIsNoRefusal: systemd starts the daemon again after a Go program's
// crash, which exits with 2, and does not after what trying again cannot mend.
func TestCrashIsNoRefusal(t *testing.T) {
	unit, err := os.ReadFile("packaging/culvert.service")
	if err != nil {
		t.Fatal(err)
	}
	_, list, ok := strings.Cut(string(unit), "\nRestartPreventExitStatus=")
	if !ok {
		t.Fatal("the unit does not say after which exit codes it stays down")
	}
	list, _, _ = strings.Cut(list, "\n")
	const crash = 2
	for _, code := range []int{crash, exitWrong} {
		if slices.Contains(strings.Fields(list), strconv.Itoa(code)) {
			t.Errorf("the unit stays down after exit code %d", code)
		}
	}
	for _, code := range []int{exitUsage, exitDenied} {
		if !slices.Contains(strings.Fields(list), strconv.Itoa(code)) {
			t.Errorf("the unit tries again after exit code %d", code)
		}
	}
}

// TestSettingsAreToldOf: each setting stands in the help and in the packaged file.
func TestSettingsAreToldOf(t *testing.T) {
	file, err := os.ReadFile("packaging/culvert.yaml")
	if err != nil {
		t.Fatal(err)
	}
	help := onLinux.help(runLong)
	for _, name := range runSettings {
		key := strings.ReplaceAll(name, "-", "_") + ": "
		if !strings.Contains(help, "\n  "+key) {
			t.Errorf("the help of run does not tell of %s", key)
		}
		if !strings.Contains(string(file), "\n"+key) {
			t.Errorf("the packaged file does not have %s", key)
		}
	}
}
