//go:build !darwin

package pfroute

import (
	"errors"
	"fmt"
)

// New fails with errors.ErrUnsupported: only macOS has PF_ROUTE of this kind.
func New() (*System, error) { return nil, fmt.Errorf("routing by PF_ROUTE: %w", errors.ErrUnsupported) }
