package control

import "strings"

// pipeAccess lets administrators and SYSTEM use the named pipe of Windows, and
// nobody else: a protected list, so that nothing is inherited (SDDL).
const pipeAccess = "D:P(A;;GA;;;BA)(A;;GA;;;SY)"

// pipePrefix is where named pipes are: a path elsewhere cannot be one.
const pipePrefix = `\\.\pipe\`

// isPipe reports whether a path names a pipe of this machine. Windows takes
// such names in any case.
func isPipe(path string) bool {
	return len(path) > len(pipePrefix) && strings.EqualFold(path[:len(pipePrefix)], pipePrefix)
}
