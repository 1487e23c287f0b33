package rtnl

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// TestUptimeStandsStillInSleep: held lifetimes go by the clock that the kernel counts
// routes' lifetimes by. In a time namespace whose boot-time clock is a day ahead, as
// after a day's sleep, it is not.
func TestUptimeStandsStillInSleep(t *testing.T) {
	const day = 24 * time.Hour
	if os.Getenv("CULVERT_SLEPT") == "" {
		testenv.Require(t, testenv.Root, "unshare")
		cmd := exec.Command("unshare", "--time", "--boottime", "86400", "--fork", "--", os.Args[0], "-test.run", "^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), "CULVERT_SLEPT=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	var slept, awake unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &slept); err != nil {
		t.Fatal(err)
	}
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &awake); err != nil {
		t.Fatal(err)
	}
	if ahead := time.Duration(slept.Nano() - awake.Nano()); ahead < day/2 {
		t.Fatalf("control: the boot-time clock is %v ahead", ahead)
	}
	got, err := uptime()
	if err != nil {
		t.Fatal(err)
	}
	if off := got - time.Duration(awake.Nano()); off < 0 || off > day/2 {
		t.Errorf("the uptime is %v ahead of the clock that stands still in sleep", off)
	}
}
