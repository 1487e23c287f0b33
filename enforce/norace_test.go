//go:build !race

package enforce_test

const raceEnabled = false
