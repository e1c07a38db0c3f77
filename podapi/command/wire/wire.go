// Package wire is what the shim and the driver of plain programs tell each other,
// over HTTP on the agent's socket: PUT /run/ID starts the program with the body as
// its message, once for an ID; GET /run?after=N is a [Run] with the output from
// there on; DELETE /run ends the program and all that it has started.
package wire

// Bounds, in bytes.
const (
	MaxMessage = 2 << 20
	MaxOutput  = 64 << 10 // of one answer
	Kept       = 1 << 20  // of the newest output, at least
)

// A Run is how the program does. What is said here comes out of a hostile container.
type Run struct {
	ID      string `json:"id"` // the last one's, "" before the first
	Running bool   `json:"running"`
	Code    int    `json:"code"`            // its exit code, when it has ended
	Error   string `json:"error,omitempty"` // why it can't be started
	Output  []byte `json:"output,omitempty"`
	Next    int64  `json:"next"`  // where the output after that begins
	Total   int64  `json:"total"` // bytes that it has put out
}
