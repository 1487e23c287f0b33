//go:build race

package enforce_test

const raceEnabled = true
