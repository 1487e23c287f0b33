package loader

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// TestOldestInstructions: Linux 5.10 knows one atomic operation, the sum whose former value
// nobody takes. It refuses a whole object for any other (BPF_STX uses reserved fields), and
// a compiler makes one of a sum as soon as its value is used.
func TestOldestInstructions(t *testing.T) {
	sums := 0
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){"leak": loadLeak, "sender": loadSender, "early": loadEarly} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		for program, p := range spec.Programs {
			for _, ins := range p.Instructions {
				switch op := ins.OpCode.AtomicOp(); op {
				case asm.InvalidAtomic:
				case asm.AddAtomic:
					sums++
				default:
					t.Errorf("%s: %s: %v at %v: Linux 5.12 and later", name, program, ins, ins.Source())
				}
			}
		}
	}
	if sums == 0 {
		t.Error("no sum was found: nothing is proved")
	}
}
