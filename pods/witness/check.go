package witness

import (
	"regexp"
	"slices"
	"strings"
)

var (
	// between are what stands between the commands of a line.
	between = regexp.MustCompile(`&&|\|\||[;|\n&]`)
	// before are what may stand before a command's own words.
	before = regexp.MustCompile(`^(?:[({]\s*|(?:[A-Za-z_][A-Za-z0-9_]*=\S*|time|exec|env|nice|command|sudo|npx|bunx|uv run|poetry run|bundle exec|timeout(?: -\S+)* \S+)\s+)+`)
)

// tests are what the commands begin with that people check their work with.
var tests = []string{
	"go test", "go vet", "golangci-lint", "make test", "make check", "make lint", "make -j test",
	"npm test", "npm t", "npm run test", "npm run lint", "npm run check", "yarn test", "yarn run test", "pnpm test", "pnpm run test", "bun test", "deno test",
	"jest", "vitest", "mocha", "eslint", "tsc", "playwright test", "node --test",
	"cargo test", "cargo check", "cargo clippy", "cargo nextest",
	"pytest", "python -m pytest", "python3 -m pytest", "python -m unittest", "python3 -m unittest", "tox", "nox", "ruff check", "mypy",
	"mvn test", "mvn verify", "./mvnw test", "./mvnw verify", "gradle test", "gradle check", "./gradlew test", "./gradlew check",
	"ctest", "meson test", "ninja test", "bazel test", "just test", "just check", "task test",
	"rspec", "rake test", "phpunit", "vendor/bin/phpunit", "composer test", "dotnet test", "mix test", "swift test", "zig build test", "prove", "bats",
	"./test.sh", "sh test.sh", "bash test.sh",
}

// IsCheck tells whether a command checks work: one that has a check of the
// repository in it, or that runs a program that is known for it.
func IsCheck(command string, checks []string) bool {
	for _, c := range checks {
		if c = strings.TrimSpace(c); c != "" && strings.Contains(command, c) {
			return true
		}
	}
	for _, part := range between.Split(command, -1) {
		part = strings.Join(strings.Fields(before.ReplaceAllString(strings.Trim(part, " \t)}"), "")), " ")
		if slices.ContainsFunc(tests, func(t string) bool { return part == t || strings.HasPrefix(part, t+" ") }) {
			return true
		}
	}
	return false
}
