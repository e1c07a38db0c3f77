package pods

import (
	"time"

	"codeberg.org/devaipod/devaipod/pods/backend"
)

// For the test of what it says.
var SeccompProfile = seccompProfile

// SetUp is what containers get of what a repository wants.
func (s Spec) SetUp(c *backend.Container, role string) error { return s.setUp(c, "pod", role) }

// SetupWithin is how long the agent may be waited for.
func (s Spec) SetupWithin() time.Duration { return s.setupWithin() }
