package enforce

import "context"

// HeldLooks returns how often a held route was looked at so far.
func (e *Enforcer) HeldLooks(ctx context.Context) (n int, err error) {
	err = e.do(ctx, func(context.Context) { n = e.held.looks })
	return n, err
}
