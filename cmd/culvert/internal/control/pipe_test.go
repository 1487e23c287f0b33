package control

import (
	"regexp"
	"testing"
)

// TestPipeAccess: the list is protected, and every entry allows one of the two.
func TestPipeAccess(t *testing.T) {
	if !regexp.MustCompile(`^D:P(\(A;;GA;;;(BA|SY)\)){2}$`).MatchString(pipeAccess) {
		t.Errorf("got %s", pipeAccess)
	}
}

func TestIsPipe(t *testing.T) {
	for path, want := range map[string]bool{
		`\\.\pipe\culvert`: true, `\\.\PIPE\x\y`: true, `\\.\pipe\`: false, `\\host\pipe\culvert`: false,
		`C:\culvert.sock`: false, `/run/culvert/culvert.sock`: false, ``: false,
	} {
		if got := isPipe(path); got != want {
			t.Errorf("%q: %t", path, got)
		}
	}
}
