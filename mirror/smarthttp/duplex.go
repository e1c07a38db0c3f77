package smarthttp

import (
	"errors"
	"fmt"
	"net/http"
)

// Duplex lets a handler answer while somebody else still reads the request's
// body, to pass it on. Without it, net/http's server reads what is left of the
// body and closes it when the answer begins: whoever passes it on then fails,
// and with it the answer, now and then, on a busy machine.
func Duplex(w http.ResponseWriter) error {
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("answering while the question comes: %w", err)
	}
	return nil
}
