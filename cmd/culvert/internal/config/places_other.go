//go:build !darwin && !windows

package config

// The places that are used when none is named.
const (
	DefaultStateDir = "/var/lib/culvert"
	DefaultSocket   = "/run/culvert/culvert.sock"
)

// rootForm is how an absolute path begins.
const rootForm = "/"
