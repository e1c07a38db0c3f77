package mirror

import (
	"fmt"
	"sync"

	"github.com/zricethezav/gitleaks/v8/detect"
)

// A secret is where a text holds what looks like one. Its value is nowhere: it
// must not spread further.
type secret struct {
	kind string // gitleaks' name of it: "github-pat"
	line int    // counted from 0
}

// detector has gitleaks' rules. They are made ready for the first push, not for
// every service that starts.
var detector = sync.OnceValues(func() (*detect.Detector, error) {
	d, err := detect.NewDetectorDefaultConfig()
	if err != nil {
		return nil, fmt.Errorf("reading gitleaks' rules: %w", err)
	}
	d.IgnoreGitleaksAllow = true // an agent could write that too
	return d, nil
})

// findSecrets looks at what was added to a file.
func findSecrets(path, text string) ([]secret, error) {
	d, err := detector()
	if err != nil {
		return nil, err
	}
	var out []secret
	for _, f := range d.Detect(detect.Fragment{Raw: text, FilePath: path}) { //nolint:staticcheck // what version 8 takes
		out = append(out, secret{kind: f.RuleID, line: f.StartLine})
	}
	return out, nil
}
