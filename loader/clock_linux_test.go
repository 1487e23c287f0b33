package loader

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/culvert-project/culvert/testenv"
)

// verdict runs the program on a packet to what is protected.
func (s *stage) verdict(t *testing.T) (drops bool) {
	t.Helper()
	var code uint32
	s.host.try(func() (err error) {
		code, err = s.w.objs.LeakEther.Run(&ebpf.RunOptions{Data: udpFrame(netip.MustParseAddr("10.9.0.2"))})
		return err
	})
	return code == tcShot
}

// tcShot is TC_ACT_SHOT.
const tcShot = 2

// TestDeadlines: each of the two ends drops by itself, and until then both let them go on.
func TestDeadlines(t *testing.T) {
	s := newStage(t, Options{NoSenders: true})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...), Action: Drop})
	future, past := uint64(bootNow()+time.Hour), uint64(1)
	for _, c := range []struct {
		is    leakSettings
		drops bool
	}{
		{leakSettings{}, true},
		{leakSettings{Heard: future}, true},
		{leakSettings{Until: future}, true},
		{leakSettings{Heard: future, Until: future}, true},
		{leakSettings{Heard: past}, false},
		{leakSettings{Until: past}, false},
		{leakSettings{Heard: past, Until: future}, false},
		{leakSettings{Heard: future, Until: past}, false},
	} {
		if err := s.w.putDeadlines(c.is); err != nil {
			t.Fatal(err)
		}
		if got := s.verdict(t); got != c.drops {
			t.Errorf("%+v: drops %t", c.is, got)
		}
	}
}

// TestTimeNamespace: a process whose clocks are not the machine's asks for deadlines that the programs judge by the machine's.
func TestTimeNamespace(t *testing.T) {
	const inside = "CULVERT_TEST_CLOCK"
	if os.Getenv(inside) != "" {
		testTimeNamespace(t)
		return
	}
	if _, err := os.Stat("/proc/self/ns/time"); errors.Is(err, fs.ErrNotExist) {
		testenv.Lacking(t, "the kernel has no time namespaces")
	}
	for name, by := range map[string]time.Duration{"ahead": 24 * time.Hour, "behind": -bootNow() / 2} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			s := strconv.Itoa(int(by / time.Second))
			cmd := exec.CommandContext(ctx, "unshare", "--time", "--fork", "--kill-child", "--boottime="+s, "--monotonic="+s, os.Args[0], "-test.run=^TestTimeNamespace$", "-test.v")
			cmd.Env = append(os.Environ(), inside+"=1")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v:\n%s", err, out)
			}
		})
	}
}

func testTimeNamespace(t *testing.T) {
	if offsets() == (timeOffsets{}) {
		t.Fatal("this is no other time namespace")
	}
	for name, of := range map[string]func(*Config, time.Duration){
		"sleep left out": func(c *Config, d time.Duration) { c.Heartbeat = d },
		"sleep included": func(c *Config, d time.Duration) { c.Remaining = d },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, Options{NoSenders: true, PinDir: pinDir(t)})
			cfg := Config{Prefixes: protect(stagePrefixes...), Action: Drop}
			of(&cfg, time.Hour)
			set(t, s.w, cfg)
			if left := time.Until(s.status().Until); left < 50*time.Minute || left > time.Hour {
				t.Errorf("told to be %v from now, of an hour", left)
			}
			if !s.verdict(t) {
				t.Error("an hour is over at once")
			}
			of(&cfg, time.Millisecond)
			set(t, s.w, cfg)
			if !testenv.Until(10*time.Second, func() bool { return !s.verdict(t) }) {
				t.Error("a millisecond does not pass")
			}
		})
	}
}
