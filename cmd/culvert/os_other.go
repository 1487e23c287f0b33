//go:build !linux && !darwin && !windows

package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/culvert-project/culvert/enforce"
)

// errUnsupported: culvert has no adapter for the operating system.
var errUnsupported = fmt.Errorf("%w on this system", errors.ErrUnsupported)

// here is the platform that this program was built for.
var here = &onLinux

func newSystem() (system, error)            { return nil, errUnsupported }
func binding() (enforce.Binding, error)     { return enforce.Binding{}, errUnsupported }
func protocolName(p uint8) string           { return strconv.Itoa(int(p)) }
func permitted() error                      { return errUnsupported }
func acquireLock(holder) (io.Closer, error) { return nil, errUnsupported }
