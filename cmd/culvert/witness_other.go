//go:build !linux

package main

import (
	"context"

	"github.com/culvert-project/culvert/cmd/culvert/internal/witness"
)

// wayOf is for a witness, which there is none of.
func wayOf(context.Context, system, func(int) string, witness.Packet) (witness.Way, error) {
	return witness.Way{}, errWay
}
