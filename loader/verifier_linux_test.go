package loader

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// TestVerifierWork: the kernel follows the ways through each program whenever the daemon starts.
// A small change of a program may make them many times more, which nothing else here would notice;
// on a slow machine the start then takes too long. The bounds leave room for other kernels, which
// follow a little more or less.
func TestVerifierWork(t *testing.T) {
	for name, c := range map[string]struct {
		load func() (*ebpf.CollectionSpec, error)
		most uint32 // instructions that the kernel may follow in each program
	}{
		"leak":   {loadLeak, 200_000}, // about 147,000 on Linux 6.18
		"early":  {loadEarly, 20_000}, // 8,000
		"sender": {loadSender, 1_000}, // 100
	} {
		t.Run(name, func(t *testing.T) {
			spec, err := c.load()
			if err != nil {
				t.Fatal(err)
			}
			for program, n := range followed(t, spec) {
				if n > c.most {
					t.Errorf("%s: the kernel follows %d instructions, want at most %d", program, n, c.most)
				}
			}
		})
	}
}

// followed loads the programs and says how many instructions of each the kernel followed.
func followed(t *testing.T, spec *ebpf.CollectionSpec) map[string]uint32 {
	t.Helper()
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Logf("memlock limit stays: %v", err)
	}
	all, err := ebpf.NewCollection(spec)
	if errors.Is(err, unix.EPERM) || errors.Is(err, ebpf.ErrNotSupported) {
		testenv.Lacking(t, "%v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	sums := map[string]uint32{}
	for name, p := range all.Programs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, known := info.VerifiedInstructions()
		if !known {
			testenv.Lacking(t, "the kernel does not say how much it followed (Linux 5.16)")
		}
		sums[name] = n
	}
	if len(sums) == 0 {
		t.Fatal("no program was loaded: nothing is proved")
	}
	return sums
}
