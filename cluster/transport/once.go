package transport

import (
	"context"
	"fmt"
	"net/http"
)

// CallOnce is Call for what must not be delivered twice: where a kept connection
// dies with the request on it, the error says that no answer came, and the caller
// decides about another try.
func (t *Transport) CallOnce(ctx context.Context, to Target, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := roundTripOf(ctx, &http.Client{Transport: t.pool, CheckRedirect: noRedirect},
		"http://"+hostOf(to)+path, in, out, t.cfg.MaxBody, false)
	if err != nil {
		return fmt.Errorf("call %s at %s: %w", path, to.Addr, err)
	}
	return nil
}
