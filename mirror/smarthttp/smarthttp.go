// Package smarthttp is what every server of git's smart HTTP protocol needs on
// its way between a client and git (gitprotocol-http(5)): bodies undone of their
// encoding, answers that go out as they come, and refusals that git shows.
package smarthttp

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// Stream copies with a flush after each read: git shows progress as it comes.
// An error is the first of reading or writing.
func Stream(w http.ResponseWriter, r io.Reader) error {
	rc := http.NewResponseController(w)
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return werr
			}
			if ferr := rc.Flush(); ferr != nil && !errors.Is(ferr, http.ErrNotSupported) {
				return ferr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Plain is a request's body without the Content-Encoding that git gives large
// ones. It is no longer than body, and as long as it inflates to.
func Plain(r *http.Request, body io.Reader) (io.Reader, error) {
	switch enc := r.Header.Get("Content-Encoding"); enc {
	case "":
		return body, nil
	case "gzip", "x-gzip":
		zr, err := gzip.NewReader(body)
		if err != nil {
			return nil, fmt.Errorf("reading a compressed request: %w", err)
		}
		return zr, nil
	default:
		return nil, fmt.Errorf("content encoding %.40q is not known", enc)
	}
}

// Refuse answers with plain text, which git shows as "remote: …".
func Refuse(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // the client is gone: nobody to tell
}
