//go:build !race

package enforce_test

// modelStatesAsAPart is how many states of each world TestModel judges when it is one test
// among all: so few that whoever runs a package's tests does not wait. "make test" asks for
// many more.
const modelStatesAsAPart = 100
