package pods

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// A Key names one issue of one repository, or one of a person's workspaces of it.
type Key struct {
	Owner, Repo string
	Issue       int64  // 0 for a workspace
	Name        string `json:",omitempty"` // of a workspace, "" for an issue
}

// String is owner/repo#3, or owner/repo@name.
func (k Key) String() string {
	if k.Name != "" {
		return fmt.Sprintf("%s/%s@%s", k.Owner, k.Repo, k.Name)
	}
	return fmt.Sprintf("%s/%s#%d", k.Owner, k.Repo, k.Issue)
}

// workspaceName begins with a letter, since numbers are issues; by SSH, so is issueName.
var (
	workspaceName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$`)
	issueName     = regexp.MustCompile(`^issue-[0-9]+$`)
)

// ValidName tells whether a workspace may be called so.
func ValidName(name string) bool {
	return workspaceName.MatchString(name) && !issueName.MatchString(name)
}

// WorkspaceName is what a workspace for a branch is called, "" when it has to be
// given a name.
func WorkspaceName(branch string) string {
	if name := slug(branch, 40); ValidName(name) {
		return name
	}
	return ""
}

// id tells keys of all instances apart, whatever their names look like. The
// forge's names don't differ by case alone.
func id(instance string, k Key) string {
	sum := sha256.Sum256([]byte(instance + "\x00" + strings.ToLower(k.Owner+"\x00"+k.Repo) + "\x00" + k.last()))
	return hex.EncodeToString(sum[:])
}

var notSlug = regexp.MustCompile(`[^a-z0-9]+`)

// slug is s in small letters, digits and single dashes, at most n bytes.
func slug(s string, n int) string {
	s = strings.Trim(notSlug.ReplaceAllString(strings.ToLower(s), "-"), "-")
	return strings.Trim(s[:min(len(s), n)], "-")
}

// last is what names the pod within its repository. No workspace is called like an
// issue.
func (k Key) last() string {
	if k.Name != "" {
		return k.Name
	}
	return strconv.FormatInt(k.Issue, 10)
}

// Name is the pod's name, a DNS label of at most 63 bytes:
// <instance>-<repository>-<issue>-<hash>, with a workspace's name for the issue.
func Name(instance string, k Key) string {
	return fmt.Sprintf("%s-%s-%s-%s", instance, orElse(slug(k.Repo, 24), "repo"), slug(k.last(), 12), id(instance, k)[:6])
}

// Hosts are what a pod is called by SSH, the shortest first: issue-3, issue-3.repo and
// issue-3.repo.owner, with a workspace's name for the issue. Only the last is no other
// pod's. The case of letters says nothing.
func (k Key) Hosts() []string {
	first := k.Name
	if first == "" {
		first = fmt.Sprintf("issue-%d", k.Issue)
	}
	repo := first + "." + strings.ToLower(k.Repo)
	return []string{first, repo, repo + "." + strings.ToLower(k.Owner)}
}

// BranchPrefix is what every branch that this issue's agent pushes starts with.
func BranchPrefix(issue int64) string { return fmt.Sprintf("agent/%d-", issue) }

// Branch is the branch for an issue: agent/3-fix-the-typo.
func Branch(issue int64, title string) string {
	return BranchPrefix(issue) + orElse(slug(title, 40), "work")
}

var agentBranch = regexp.MustCompile(`^agent/([1-9][0-9]{0,8})-.`)

// IssueOfBranch is the issue whose agent pushes to a branch, 0 for none.
func IssueOfBranch(branch string) int64 {
	m := agentBranch.FindStringSubmatch(branch)
	if m == nil {
		return 0
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
