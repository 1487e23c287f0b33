//go:build !windows

package enforce

import "syscall"

// safeOpen keeps an open from waiting for a pipe's other end and from following a link.
const safeOpen = syscall.O_NONBLOCK | syscall.O_NOFOLLOW
