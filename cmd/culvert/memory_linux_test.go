package main

import (
	"io/fs"
	"math"
	"testing"
)

func TestMemoryLimit(t *testing.T) {
	files := map[string]string{
		"/sys/fs/cgroup/memory.max":                                "max\n",
		"/sys/fs/cgroup/system.slice/memory.max":                   "268435456\n",
		"/sys/fs/cgroup/system.slice/culvert.service/memory.max":   "max\n",
		"/sys/fs/cgroup/memory/memory.limit_in_bytes":              "9223372036854771712\n",
		"/sys/fs/cgroup/memory/small/memory.limit_in_bytes":        "67108864\n",
		"/sys/fs/cgroup/memory/small/within/memory.limit_in_bytes": "9223372036854771712\n",
		"/sys/fs/cgroup/memory/odd/memory.limit_in_bytes":          "many\n",
	}
	read := func(name string) ([]byte, error) {
		if text, ok := files[name]; ok {
			return []byte(text), nil
		}
		return nil, fs.ErrNotExist
	}
	for lines, want := range map[string]int64{
		"": math.MaxInt64, "0::/\n": math.MaxInt64, "nonsense": math.MaxInt64,
		"0::/system.slice/culvert.service\n":                      256 << 20,
		"5:devices:/\n4:memory:/small/within\n0::/system.slice\n": 64 << 20,
		"4:memory:/odd\n": math.MaxInt64,
		"0::../outside\n": math.MaxInt64,
	} {
		if got := memoryLimit(lines, read); got != want {
			t.Errorf("%q: %d, want %d", lines, got, want)
		}
	}
}
