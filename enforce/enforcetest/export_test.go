package enforcetest

import (
	"testing"
	"time"
)

// Patience makes the cases of this process wait for so many milliseconds only.
func Patience(_ *testing.T, ms int) { patience = time.Duration(ms) * time.Millisecond }
