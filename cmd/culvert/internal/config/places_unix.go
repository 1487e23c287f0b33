//go:build !darwin && !windows

package config

// Here are this system's places.
var Here = Linux
