package main

import (
	"log/slog"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// reserved is what a limit of memory must leave for all that is not the Go
// runtime's: the program's pages, the journal's, the eBPF maps.
const reserved = 64 << 20

// mindMemory makes the garbage collector keep within the limit of memory of the
// process's cgroup, where there is one: a burst of routes must not let the
// kernel kill the daemon that is to remove them. The environment variable
// GOMEMLIMIT goes before it.
func mindMemory(log *slog.Logger) {
	limit := cgroupMemory()
	if limit == math.MaxInt64 || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	soft := max(limit/2, limit-reserved)
	debug.SetMemoryLimit(soft)
	log.Debug("limit of memory", "cgroup", limit, "collector", soft)
}

// cgroupMemory is the smallest limit of memory above the process, in bytes, or
// math.MaxInt64.
func cgroupMemory() int64 {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return math.MaxInt64
	}
	return memoryLimit(string(b), os.ReadFile)
}

// memoryLimit reads the limit from the lines of /proc/self/cgroup: cgroup v2's
// and v1's of the memory controller.
func memoryLimit(lines string, read func(string) ([]byte, error)) int64 {
	limit := int64(math.MaxInt64)
	for line := range strings.Lines(lines) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		root, file := "/sys/fs/cgroup", "memory.max"
		switch parts[1] {
		case "":
		case "memory":
			root, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		for dir := path.Clean("/" + parts[2]); ; dir = path.Dir(dir) {
			if b, err := read(path.Join(root, dir, file)); err == nil {
				if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && n > 0 && n < 1<<62 {
					limit = min(limit, n)
				}
			}
			if dir == "/" {
				break
			}
		}
	}
	return limit
}
