//go:build linux

package e2eleak

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// talker is the program that leaks: this one by another name, so that there is
// a process to be named, which may run as anybody.
const talker = "chatterbox"

var talkerPath string

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == talker {
		if err := talk(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "culvert-e2eleak-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	if err := errors.Join(os.Chmod(dir, 0o755), copySelf(filepath.Join(dir, talker)), build(filepath.Join(dir, "culvert"))); err != nil {
		return 1, err
	}
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("6") // the tests wait more than they work
	}
	code := m.Run()
	return code, leftovers()
}

func copySelf(to string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	talkerPath = to
	return os.WriteFile(to, b, 0o755)
}

// build builds the program, unless CULVERT_BIN names one.
func build(bin string) error {
	if os.Getenv("CULVERT_BIN") != "" {
		return nil
	}
	cmd := exec.Command("go", "build", "-o", bin, "../..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build culvert: %w\n%s", err, out)
	}
	return os.Setenv("CULVERT_BIN", bin)
}

// leftovers is an error that names what of this process is still there.
func leftovers() error {
	names, _ := filepath.Glob(fmt.Sprintf("/run/netns/*%d-*", os.Getpid()))
	children, _ := os.ReadFile("/proc/self/task/" + fmt.Sprint(os.Getpid()) + "/children")
	if names = append(names, strings.Fields(string(children))...); len(names) > 0 {
		return fmt.Errorf("left behind: %s", strings.Join(names, ", "))
	}
	return nil
}

// needs skips a test that the machine has not the means for, and lets it run
// beside others.
func needs(t *testing.T, tools ...testenv.Tool) {
	t.Helper()
	testenv.Require(t, append(tools, testenv.Root, testenv.TUN, testenv.IPRoute, testenv.Culvert)...)
	t.Parallel()
}
