package podfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"codeberg.org/devaipod/devaipod/pods/usage"
)

// PolicyName is the policy's name in the run directory.
const PolicyName = "policy.json"

// A Policy is what may change while a pod is there. The service writes it beside
// the podfile, mode 0600, and control alone sees it.
type Policy struct {
	// Key is the model's key, "" when it wants none.
	Key    string       `json:"key"`
	Budget usage.Budget `json:"budget"`
	Prices usage.Prices `json:"prices"`
	// Rate is how many requests to the model a minute may have; 0 for no bound.
	Rate int `json:"rate"`
	// ProviderTools are the types of tools that the provider itself may run.
	ProviderTools []string `json:"provider_tools"`
	Network       Network  `json:"network"`
	// Inject is what the gate puts into requests to other hosts.
	Inject []Injection `json:"inject,omitempty"`
}

// A Network is what agent and workspace may reach by the gate's proxy.
type Network struct {
	// Open lets every public host through, whatever else there is.
	Open  bool     `json:"open,omitempty"`
	Allow []string `json:"allow,omitempty"` // patterns, as the package egress reads them
	// Private are prefixes (RFC 4632) of addresses that may be reached although they
	// are not public.
	Private []string `json:"private,omitempty"`
}

// SameNetwork tells whether two policies let the same out, with the same secrets.
func (p Policy) SameNetwork(q Policy) bool {
	return p.Network.Open == q.Network.Open && slices.Equal(p.Network.Allow, q.Network.Allow) &&
		slices.Equal(p.Network.Private, q.Network.Private) && slices.Equal(p.Inject, q.Inject)
}

// An Injection is a header that the gate puts into requests to a host.
type Injection struct {
	Host   string `json:"host"`
	Header string `json:"header"`
	Value  string `json:"value"`  // of the header
	Secret string `json:"secret"` // in it, which answers must not show
}

// WritePolicy stores p in dir, if it is not what is there: whoever wants it may
// do so again and again.
func WritePolicy(dir string, p Policy) error {
	text, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, PolicyName)
	old, err := os.ReadFile(path)
	if err == nil && string(old) == string(text) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return Replace(path, text)
}

// A PolicyReader reads a policy again when the file has changed. It is safe for
// concurrent use.
type PolicyReader struct {
	path string

	mu    sync.Mutex
	at    time.Time
	inode os.FileInfo
	last  Policy
}

// NewPolicyReader returns a reader of dir's policy.
func NewPolicyReader(dir string) *PolicyReader {
	return &PolicyReader{path: filepath.Join(dir, PolicyName)}
}

// Policy is the policy now. Without a file, or with one that can't be read, there
// is none, which is an error.
func (r *PolicyReader) Policy() (Policy, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	info, err := os.Stat(r.path)
	if err != nil {
		return Policy{}, fmt.Errorf("reading the pod's policy: %w", err)
	}
	// It is replaced, never written in place.
	if r.inode != nil && os.SameFile(info, r.inode) && info.ModTime().Equal(r.at) {
		return r.last, nil
	}
	text, err := os.ReadFile(r.path)
	if err != nil {
		return Policy{}, fmt.Errorf("reading the pod's policy: %w", err)
	}
	var p Policy
	if err := json.Unmarshal(text, &p); err != nil {
		return Policy{}, fmt.Errorf("reading the pod's policy %s: %w", r.path, err)
	}
	r.inode, r.at, r.last = info, info.ModTime(), p
	return p, nil
}
