package winroute

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// TestWine runs this package's tests, the conformance suite and the reading of
// a real table among them, as a Windows program under Wine, and prints what that
// covered. Where Wine or what it needs is missing it says so and passes: Wine
// is no requirement for working on this package.
func TestWine(t *testing.T) {
	w, missing := testenv.OpenWine(t)
	if missing != "" {
		fmt.Println("wine: nothing covered,", missing)
		return
	}
	out, err := w.Run(w.Build(t, "winroute.test.exe", "test", "-c"), "-test.v", "-test.run", "TestReal|TestConform|Golden|TestScene")
	if err != nil || !strings.Contains(out, "--- PASS: TestReal") || !strings.Contains(out, "--- PASS: TestConform") {
		t.Fatalf("under wine: %v\n%s", err, out)
	}
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "covered ") || strings.HasPrefix(line, "lacking ") {
			fmt.Print("wine: ", line)
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if !strings.Contains(out, a.String()) {
			t.Errorf("the host's address %v was not read under wine:\n%s", a, out)
		}
	}
}
