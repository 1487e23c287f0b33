//go:build race

package enforce_test

// modelStatesAsAPart is small: the race detector makes each state ten times as dear, and
// the model has one goroutine.
const modelStatesAsAPart = 30
