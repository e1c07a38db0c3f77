package egress

import (
	"maps"
	"slices"
)

// presets are the hosts that an ecosystem's own tools download from, without
// those that serve for publishing only. docs/network.md says of each whether it
// takes uploads too.
var presets = map[string][]string{
	"alpine":    {"dl-cdn.alpinelinux.org"},
	"cargo":     {"index.crates.io", "static.crates.io", "static.rust-lang.org"},
	"debian":    {"deb.debian.org", "security.debian.org"},
	"fedora":    {"dl.fedoraproject.org", "mirrors.fedoraproject.org", "download.fedoraproject.org"},
	"github":    {"codeload.github.com", "raw.githubusercontent.com", "objects.githubusercontent.com", "release-assets.githubusercontent.com"},
	"go":        {"proxy.golang.org", "sum.golang.org", "go.dev", "dl.google.com"},
	"gradle":    {"services.gradle.org", "downloads.gradle.org", "plugins.gradle.org", "plugins-artifacts.gradle.org"},
	"hex":       {"hex.pm", "repo.hex.pm", "builds.hex.pm"},
	"maven":     {"repo.maven.apache.org", "repo1.maven.org"},
	"npm":       {"registry.npmjs.org", "registry.yarnpkg.com", "nodejs.org"},
	"nuget":     {"api.nuget.org"},
	"packagist": {"repo.packagist.org", "packagist.org"},
	"pypi":      {"pypi.org", "files.pythonhosted.org"},
	"rubygems":  {"rubygems.org", "index.rubygems.org"},
	"ubuntu":    {"archive.ubuntu.com", "*.archive.ubuntu.com", "security.ubuntu.com", "ports.ubuntu.com"},
}

// Presets are the names that "preset:NAME" takes, sorted.
func Presets() []string { return slices.Sorted(maps.Keys(presets)) }

// Preset is the list of patterns that a preset stands for, nil when there is none
// of this name.
func Preset(name string) []string { return slices.Clone(presets[name]) }
