package devcontainer

import (
	"maps"
	"slices"
)

// Properties are the names of all that Parse knows.
func Properties() []string { return slices.Sorted(maps.Keys(properties())) }
