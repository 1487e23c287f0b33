//go:build linux

package promise

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// How much is tried. The defaults are what must be reached.
var (
	onlySeed   = flag.Uint64("seed", 0, "run this `seed` alone; 0 runs all")
	firstSeed  = flag.Uint64("first", 1, "first seed")
	tableSeeds = flag.Int("tables", 600, "how many random tables")
	attackRuns = flag.Int("attacks", 50, "how many tables under attack")
	killRuns   = flag.Int("kills", 210, "how many kills at random moments")
	viaBinary  = flag.Int("binary", 20, "one table in `N` is enforced by the program itself, not in this process")
)

// workers is how many namespaces are worked on at once.
const workers = 3

// TestMain builds the program, unless CULVERT_BIN names one, and sees to it
// that the tests leave no process and no namespace behind.
func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Getenv("CULVERT_BIN") == "" {
		dir, err := os.MkdirTemp("", "culvert-promise-")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
		if err := build(filepath.Join(dir, "culvert")); err != nil {
			return 1, err
		}
	}
	code := m.Run()
	return code, leftovers()
}

func build(bin string) error {
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
	children, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	if names = append(names, strings.Fields(string(children))...); len(names) > 0 {
		return fmt.Errorf("left behind: %s", strings.Join(names, ", "))
	}
	return nil
}

// needs skips a test that the machine has not the means for, and lets it run
// beside others.
func needs(t *testing.T) {
	t.Helper()
	testenv.Require(t, testenv.Root, testenv.TUN, testenv.IPRoute, testenv.Culvert)
	t.Parallel()
}

// eachSeed calls f with every seed of its share, on one of several labs at
// once, until one fails.
func eachSeed(t *testing.T, n int, f func(t *testing.T, l *lab, seed uint64)) {
	if *onlySeed != 0 {
		f(t, newLab(t), *onlySeed)
		return
	}
	for w := range uint64(workers) {
		t.Run(fmt.Sprintf("worker%d", w), func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			for seed := *firstSeed + w; seed < *firstSeed+uint64(n) && !t.Failed(); seed += workers {
				f(t, l, seed)
				if t.Failed() {
					t.Logf("seed %d: run it alone with -run %s -seed %d", seed, strings.Split(t.Name(), "/")[0], seed)
				}
			}
		})
	}
}
