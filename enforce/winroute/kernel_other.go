//go:build !windows

package winroute

import (
	"errors"
	"fmt"
)

// New fails with errors.ErrUnsupported: only Windows has the IP Helper API.
func New() (*System, error) {
	return nil, fmt.Errorf("routing by the IP Helper API: %w", errors.ErrUnsupported)
}
