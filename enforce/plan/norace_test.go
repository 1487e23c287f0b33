//go:build !race

package plan_test

const (
	raceEnabled = false
	manyCases   = 1000
)
