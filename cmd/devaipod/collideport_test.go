package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

const agentMail = "demo-bot@noreply.localhost"

// A cityRepo is a forge's repository ann/app in real git, and the port that compares in it.
type cityRepo struct {
	t    *testing.T
	work string
	port collidePort
	key  reconcile.Key
}

func newCityRepo(t *testing.T) cityRepo {
	t.Helper()
	dir := t.TempDir()
	r := cityRepo{t, filepath.Join(dir, "work"), collidePort{cache: forgeCache(t, dir), bot: agentMail}, reconcile.Key{Owner: "ann", Repo: "app", Issue: 3}}
	r.run(dir, "x", "init", "-q", "--bare", "-b", "main", "forge/ann/app.git")
	r.run(dir, "x", "init", "-q", "-b", "main", "work")
	r.git("remote", "add", "forge", dir+"/forge/ann/app.git")
	return r
}

func (r cityRepo) run(dir, mail string, args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL="+mail, "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL="+mail)
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %v: %v %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (r cityRepo) git(args ...string) string { r.t.Helper(); return r.run(r.work, "ann@x", args...) }

// commit makes one from a commit ("" for none) with files, "name=text" or "-name", by a mail
// address, and pushes it as a branch of its own.
func (r cityRepo) commit(mail, from string, files ...string) string {
	r.t.Helper()
	if from == "" {
		r.git("checkout", "-q", "--orphan", fmt.Sprint("without-", len(files)))
		r.git("rm", "-q", "-r", "-f", "--ignore-unmatch", ".")
	} else {
		r.git("checkout", "-q", "--detach", from)
	}
	for _, f := range files {
		name, text, _ := strings.Cut(f, "=")
		if gone, ok := strings.CutPrefix(name, "-"); ok {
			r.git("rm", "-q", "-r", "-f", gone)
			continue
		}
		at := filepath.Join(r.work, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			r.t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(strings.ReplaceAll(text, ",", "\n")+"\n"), 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	r.git("add", "-A")
	r.run(r.work, mail, "commit", "-q", "-m", "x")
	id := r.git("rev-parse", "HEAD")
	r.git("push", "-q", "forge", "HEAD:refs/heads/b-"+id)
	return id
}

func TestHowCommitsCollide(t *testing.T) {
	r := newCityRepo(t)
	base := r.commit("ann@x", "", "a=1,2,3,4,5,6,7,8,9", "b=1", "dir/c=1")
	one := r.commit(agentMail, base, "a=one,2,3,4,5,6,7,8,9", "new=1")
	for name, tt := range map[string]struct {
		files    []string
		conflict bool
		in       string
	}{
		"the same line":               {[]string{"a=other,2,3,4,5,6,7,8,9"}, true, "a"},
		"the same file, another line": {[]string{"a=1,2,3,4,5,6,7,8,other"}, false, "a"},
		"the same new file":           {[]string{"new=other"}, true, "new"},
		"the same new file, alike":    {[]string{"new=1"}, false, "new"},
		"another file":                {[]string{"b=other"}, false, ""},
		"a directory of that name":    {[]string{"new/x=1"}, true, ""},
		"it renames the file":         {[]string{"-a", "z=1,2,3,4,5,6,7,8,9"}, false, "a"},
		"it deletes the file":         {[]string{"-a"}, true, "a"},
		"a name of several lines":     {[]string{"a\nb=1"}, false, ""},
	} {
		other := r.commit(agentMail, base, tt.files...)
		c, err := r.port.Collide(t.Context(), r.key, base, one, other)
		if err != nil || c.Conflict != tt.conflict || tt.in != "" && !slices.Contains(c.Files, tt.in) || !c.Conflict && tt.in == "" && len(c.Files) > 0 {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
		back, err := r.port.Collide(t.Context(), r.key, base, other, one)
		if err != nil || back.Conflict != c.Conflict {
			t.Errorf("%s, the other way round: %+v, %v", name, back, err)
		}
	}
	if c, err := r.port.Collide(t.Context(), r.key, base, one, r.commit(agentMail, "", "other=1")); err != nil || c.Conflict || len(c.Files) > 0 {
		t.Errorf("a history of its own: %+v, %v", c, err)
	}
	if _, err := r.port.Collide(t.Context(), r.key, base, one, strings.Repeat("0", 40)); err == nil {
		t.Error("a commit that is not there is compared")
	}
}

func TestWhatLandedSince(t *testing.T) {
	r := newCityRepo(t)
	left := r.commit("ann@x", "", "a=1,2,3,4,5,6,7,8,9", "b=1")
	head := r.commit(agentMail, left, "a=one,2,3,4,5,6,7,8,9")
	for name, tt := range map[string]struct {
		mail     string
		files    []string
		conflict bool
		in       string
	}{
		"an agent's, of the same file":                   {agentMail, []string{"a=1,2,3,4,5,6,7,8,other"}, false, "[a]"},
		"an agent's, of another":                         {agentMail, []string{"b=other"}, false, "[]"},
		"an agent's, of the same line":                   {agentMail, []string{"a=other,2,3,4,5,6,7,8,9"}, true, "[a]"},
		"a person's, of the same file":                   {"ann@x", []string{"a=1,2,3,4,5,6,7,8,other"}, false, "[]"},
		"a person's, of the same line":                   {"ann@x", []string{"a=other,2,3,4,5,6,7,8,9"}, true, "[a]"},
		"somebody's whose address has the agent's in it": {"x" + agentMail, []string{"a=1,2,3,4,5,6,7,8,other"}, false, "[]"},
	} {
		base := r.commit(tt.mail, left, tt.files...)
		c, err := r.port.Landed(t.Context(), r.key, base, head)
		if err != nil || c.Conflict != tt.conflict || fmt.Sprint(c.Files) != tt.in {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
		if tt.conflict {
			continue
		}
		// Merged in, nothing is left of it.
		r.git("checkout", "-q", "--detach", head)
		r.run(r.work, agentMail, "merge", "-q", "--no-edit", base)
		r.git("push", "-q", "forge", "HEAD:refs/heads/merged")
		c, err = r.port.Landed(t.Context(), r.key, base, r.git("rev-parse", "HEAD"))
		if err != nil || c.Conflict || len(c.Files) > 0 {
			t.Errorf("%s, merged in: %+v, %v", name, c, err)
		}
		r.git("push", "-q", "forge", ":refs/heads/merged")
	}
}
