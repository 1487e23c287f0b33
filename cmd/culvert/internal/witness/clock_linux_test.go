package witness

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTicker: ticks are boot time's, which alone come due in sleep.
func TestTicker(t *testing.T) {
	f, err := bootTimer(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info []byte
	err = raw.Control(func(fd uintptr) { info, _ = os.ReadFile(fmt.Sprint("/proc/self/fdinfo/", fd)) })
	if want := fmt.Sprintf("clockid: %d\n", unix.CLOCK_BOOTTIME); err != nil || !strings.Contains(string(info), want) {
		t.Errorf("the timer is not of boot time: %v\n%s", err, info)
	}
	ticks, stop := newTicker(time.Millisecond)
	defer stop()
	for range 3 {
		select {
		case <-ticks:
		case <-time.After(10 * time.Second):
			t.Fatal("no tick")
		}
	}
}
