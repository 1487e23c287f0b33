//go:build !darwin && !linux && !windows

package lockfile

import (
	"errors"
	"os"
)

func lock(*os.File) error { return errors.ErrUnsupported }
