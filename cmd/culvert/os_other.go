//go:build !linux

package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/culvert-project/culvert/enforce"
)

// errUnsupported: the operating system cannot do this yet.
var errUnsupported = fmt.Errorf("%w on this system yet", errors.ErrUnsupported)

func newSystem() (system, error)            { return nil, errUnsupported }
func binding() (enforce.Binding, error)     { return enforce.Binding{}, errUnsupported }
func protocolName(p uint8) string           { return strconv.Itoa(int(p)) }
func permitted() error                      { return errUnsupported }
func acquireLock(holder) (io.Closer, error) { return nil, errUnsupported }
