package config

// The places that are used when none is named: /var/db outlives a restart.
const (
	DefaultStateDir = "/var/db/culvert"
	DefaultSocket   = "/var/run/culvert/culvert.sock"
)

// rootForm is how an absolute path begins.
const rootForm = "/"
