package statedir

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

func TestForeign(t *testing.T) {
	dir := tempDir(t)
	for _, tt := range []struct {
		owner int
		mode  os.FileMode
		want  string // "" is none
	}{
		{0, 0o700, ""},
		{0, 0o755, ""},
		{0, 0o770, "its mode is 0770"},
		{0, 0o777 | os.ModeSticky, "its mode is 0777"},
		{65534, 0o700, "it belongs to user 65534"},
	} {
		if os.Geteuid() != 0 && tt.owner != 0 {
			continue // only root can give a folder away
		}
		if err := os.Chmod(dir, tt.mode); err != nil {
			t.Fatal(err)
		}
		if tt.owner != 0 {
			if err := os.Chown(dir, tt.owner, tt.owner); err != nil {
				t.Fatal(err)
			}
		}
		err := Make(dir)
		var foreign *ForeignError
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%v: %v", tt, err)
		case tt.want != "" && (!errors.As(err, &foreign) || foreign.Path != dir || foreign.Why != tt.want):
			t.Errorf("%v: %v", tt, err)
		}
	}
}

// TestWine runs the test as a Windows program, where Wine is installed.
func TestWine(t *testing.T) {
	w, missing := testenv.OpenWine(t)
	if missing != "" {
		fmt.Println("wine: nothing covered,", missing)
		return
	}
	out, err := w.Run(w.Build(t, "statedir.test.exe", "test", "-c"), "-test.v")
	if err != nil || !strings.Contains(out, "--- PASS: TestMake") {
		t.Fatalf("under wine: %v\n%s", err, out)
	}
	fmt.Println("wine: covered TestMake")
}
