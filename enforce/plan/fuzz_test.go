package plan_test

import "testing"

// bytesOf makes choices out of a fuzzer's bytes; when they are used up every
// choice is the first.
type bytesOf struct{ left []byte }

// IntN returns the next choice among n.
func (b *bytesOf) IntN(n int) int {
	if len(b.left) == 0 {
		return 0
	}
	next := int(b.left[0])
	b.left = b.left[1:]
	return next % n
}

// FuzzPromise lives worlds that a fuzzer builds choice by choice.
func FuzzPromise(f *testing.F) {
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		newWorld(&bytesOf{left: data}).live(t)
	})
}
