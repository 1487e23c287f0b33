package loader

import (
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// layoutOf names what the maps of a guard look like: their kinds and sizes, and every field of what is in them. Programs of
// another layout cannot use them, and the verifier may refuse to load such.
func layoutOf(spec *ebpf.CollectionSpec) string {
	h := fnv.New32a()
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		if !own(name) {
			layMap(h, spec.Maps[name])
		}
	}
	for _, name := range []string{"prefix4", "prefix6", "rule"} { // a trie's definition has but their sizes
		var t *btf.Struct
		if spec.Types.TypeByName(name, &t) == nil {
			layType(h, t)
		}
	}
	return fmt.Sprintf("%08x", h.Sum32())
}

func layMap(w io.Writer, m *ebpf.MapSpec) {
	fmt.Fprintln(w, m.Name, m.Type, m.KeySize, m.ValueSize, m.Flags)
	layType(w, m.Key)
	layType(w, m.Value)
	if m.InnerMap != nil {
		layMap(w, m.InnerMap)
	}
}

func layType(w io.Writer, t btf.Type) {
	switch t := btf.UnderlyingType(t).(type) {
	case nil:
	case *btf.Struct:
		for _, m := range t.Members {
			fmt.Fprintln(w, m.Name, m.Offset)
			layType(w, m.Type)
		}
	case *btf.Array:
		fmt.Fprintln(w, t.Nelems)
		layType(w, t.Type)
	default:
		size, _ := btf.Sizeof(t) // 0 of what has none
		fmt.Fprintln(w, size)
	}
}

// own is true of maps that come with the programs and go with them.
func own(name string) bool { return name[0] == '.' || name == leakMapPackets }
