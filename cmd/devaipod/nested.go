package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"codeberg.org/devaipod/devaipod/pods"
)

// nestedRepo is a repository of the forge, or all of an owner's.
var nestedRepo = regexp.MustCompile(`^[A-Za-z0-9._-]+/([A-Za-z0-9._-]+|\*)$`)

func (c config) validateNested() error {
	for _, text := range c.Agent.Nested {
		if !nestedRepo.MatchString(text) {
			return fmt.Errorf("agent.nested: %q: want repositories of the forge, such as OWNER/REPO, or OWNER/* for all of an owner's", text)
		}
	}
	return nil
}

// nested tells whether the pods of a key's repository may make containers of their
// own: by the configuration alone, whatever the repository's files say. The forge
// takes no account of case in names.
func (c config) nested(k pods.Key) bool {
	return slices.ContainsFunc(c.Agent.Nested, func(text string) bool {
		owner, repo, _ := strings.Cut(text, "/")
		return strings.EqualFold(owner, k.Owner) && (repo == "*" || strings.EqualFold(repo, k.Repo))
	})
}
