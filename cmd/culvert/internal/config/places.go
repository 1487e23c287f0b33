package config

// Places are where things are when nobody names another place.
type Places struct {
	StateDir string
	Socket   string
	File     string // where an operator puts the configuration
	root     string // how an absolute path begins
}

// Linux are the places that its file system standard gives.
var Linux = Places{
	StateDir: "/var/lib/culvert",
	Socket:   "/run/culvert/culvert.sock",
	File:     "/etc/culvert/culvert.yaml",
	root:     "/",
}

// Darwin are the places on macOS: /var/db outlives a restart.
var Darwin = Places{
	StateDir: "/var/db/culvert",
	Socket:   "/var/run/culvert/culvert.sock",
	File:     "/usr/local/etc/culvert.yaml",
	root:     "/",
}

// Windows are the places there. The socket is a pipe, under a name that only
// administrators may take.
var Windows = Places{
	StateDir: `C:\ProgramData\culvert`,
	Socket:   `\\.\pipe\ProtectedPrefix\Administrators\culvert`,
	File:     `C:\ProgramData\culvert\culvert.yaml`,
	root:     `C:\ or, for a pipe, \\.\pipe\`,
}
