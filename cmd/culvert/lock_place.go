package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/culvert-project/culvert/cmd/culvert/internal/lockfile"
)

// acquireFile takes the place that a file stands for, and tells whoever else
// wants it who has it.
func acquireFile(path string, h holder) (io.Closer, error) {
	note, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("place of the daemon: %w", err)
	}
	l, err := lockfile.Acquire(path, note)
	var held *lockfile.HeldError
	switch {
	case errors.As(err, &held):
		var by holder
		if json.Unmarshal(held.Note, &by) != nil {
			by = holder{} // not written yet, or by another program
		}
		return nil, withCode(exitUsage, &heldError{by})
	case err != nil:
		return nil, fmt.Errorf("place of the daemon: %w", err)
	}
	return l, nil
}
