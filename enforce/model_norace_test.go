//go:build !race

package enforce_test

// modelStatesAsAPart is how many states of each world TestModel judges when it is one test
// among all.
const modelStatesAsAPart = 2500
