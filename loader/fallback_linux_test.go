package loader

import (
	"cmp"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// bestMode is what the witness should choose on this kernel.
var bestMode = sync.OnceValue(func() Mode {
	if _, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXEgress}); err != nil {
		return ModeClsact
	}
	return ModeTCX
})

// needMode skips the test where the kernel has no such mode.
func needMode(t *testing.T, m Mode) {
	t.Helper()
	if m == ModeTCX && bestMode() != m {
		testenv.Lacking(t, "this kernel has no TCX (Linux 6.6)")
	}
}

// canSeed says whether the walk over open files can tell the socket of a file.
func canSeed(t *testing.T) bool {
	t.Helper()
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	var helper *btf.Func
	return spec.TypeByName("bpf_sock_from_file", &helper) == nil
}

// TestFallbacks: what this kernel lacks is done without, and status says that it is, and from which version it would not.
func TestFallbacks(t *testing.T) {
	s := newStage(t, Options{})
	st := s.status()
	if mode := s.iface("h0").Mode; mode != bestMode() {
		t.Errorf("mode %s, want %s", mode, bestMode())
	}
	said(t, "early", st.Early, features.HaveProgramType(ebpf.Netfilter) == nil, "Linux 6.4")
	said(t, "senders", st.Senders, canSeed(t), "Linux 5.11")
	if (st.Seeded != 0) != canSeed(t) {
		t.Errorf("seeded in %v", st.Seeded)
	}
	s.w.Close()
	s.w = s.host.open(Options{modes: []Mode{ModeTCX}})
	if i := s.iface("h0"); (i.Err == nil) != (bestMode() == ModeTCX) || i.Err != nil && (i.Mode != ModeNone || !errors.Is(i.Err, ebpf.ErrNotSupported)) {
		t.Errorf("with TCX alone: %s, %v", i.Mode, i.Err)
	}
	t.Logf("mode %s; early hook %s; senders %s", bestMode(), cmp.Or(st.Early, "yes"), cmp.Or(st.Senders, "yes"))
	if s.host.ns.cookie == 0 && !errors.Is(cookieError(), unix.ENOPROTOOPT) {
		t.Error("the namespace's cookie was not told: ", cookieError())
	}
}

func cookieError() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return err
}

// said holds one line of a status against what the kernel has.
func said(t *testing.T, what, line string, has bool, since string) {
	t.Helper()
	if (line == "") != has || line != "" && (!strings.Contains(line, since) || strings.ContainsRune(line, '\n')) {
		t.Errorf("%s: %q where the kernel has it: %t", what, line, has)
	}
}
