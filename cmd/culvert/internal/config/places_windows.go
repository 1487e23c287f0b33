package config

// The places that are used when none is named: the socket is a pipe.
const (
	DefaultStateDir = `C:\ProgramData\culvert`
	DefaultSocket   = `\\.\pipe\culvert`
)

// rootForm is how an absolute path begins.
const rootForm = `C:\ or, for a pipe, \\.\pipe\`
