//go:build linux

package e2e

import (
	"slices"
	"strings"
)

// hasWords reports whether text holds each of the words.
func hasWords(text, words string) bool {
	have := strings.Fields(text)
	for _, w := range strings.Fields(words) {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}
