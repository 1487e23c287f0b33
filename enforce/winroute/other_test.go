//go:build !windows

package winroute

import (
	"errors"
	"testing"
)

func TestUnsupported(t *testing.T) {
	if _, err := New(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("New: %v, want %v", err, errors.ErrUnsupported)
	}
}
