//go:build !linux

package loader

import "context"

// Witness is not supported on this system.
type Witness struct{}

// Open returns ErrUnsupported.
func Open(Options) (*Witness, error) { return nil, ErrUnsupported }

// NamespaceName returns ErrUnsupported.
func NamespaceName() (string, error) { return "", ErrUnsupported }

// Release returns ErrUnsupported.
func Release(Options) error { return ErrUnsupported }

// OtherGuards returns ErrUnsupported.
func OtherGuards(Options) ([]string, error) { return nil, ErrUnsupported }

// ReleaseGuard returns ErrUnsupported.
func ReleaseGuard(Options, string) error { return ErrUnsupported }

// Set returns ErrUnsupported.
func (*Witness) Set(Config) error { return ErrUnsupported }

// Counters returns ErrUnsupported.
func (*Witness) Counters() ([]Counter, error) { return nil, ErrUnsupported }

// Senders returns ErrUnsupported.
func (*Witness) Senders() ([]Sender, error) { return nil, ErrUnsupported }

// Read returns ErrUnsupported.
func (*Witness) Read(context.Context, func(Sample)) error { return ErrUnsupported }

// Status is zero.
func (*Witness) Status() (Status, error) { return Status{}, ErrUnsupported }

// Close does nothing.
func (*Witness) Close() error { return nil }
