// Package image tells what an image is like that a pod's container is to be made
// from, and whether one can: the user that a pod's programs run as need not exist in
// it, nor git, nor the C library that the agent is linked with.
//
// [Look] is run inside a container of the image, by devaipod-pod, and says what it
// finds as [Facts]. It runs among what the image brings and tells nothing that is
// relied on for safety: an image that lies gets a pod that does not work.
package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// The C libraries that an image may have.
const (
	Glibc = "glibc"
	Musl  = "musl"
)

// Facts are what there is in an image.
type Facts struct {
	LibC  string `json:"libc,omitempty"`  // Glibc, Musl or "" for none
	Shell string `json:"shell,omitempty"` // why there is no /bin/sh that runs, "" when there is
	Git   string `json:"git,omitempty"`   // the version of the image's own, "" for none that runs
	// Home is the directory of the user that the container runs as, by the image's
	// own accounts; "" when it has no such user or directory.
	Home string `json:"home,omitempty"`
	// Accounts are the image's users, but for the system's and root.
	Accounts []Account `json:"accounts,omitempty"`
	CAs      string    `json:"cas,omitempty"` // the file of certificate authorities
	// Tool says why a program of the injected tools does not run, "" when it does.
	Tool string `json:"tool,omitempty"`
}

// An Account is a user of the image, by its passwd(5).
type Account struct {
	Name string `json:"name"`
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
	Home string `json:"home,omitempty"` // as Facts' Home
}

// The numbers that an account may have, and how many there may be.
const (
	minUID      = 500
	maxUID      = 60_000
	maxAccounts = 50
)

// Account is the one with a name or number.
func (f Facts) Account(user string) (Account, bool) {
	for _, a := range f.Accounts {
		if a.Name == user || strconv.Itoa(a.UID) == user {
			return a, true
		}
	}
	return Account{}, false
}

// CABundles are where distributions keep the authorities that a system trusts:
// Debian and Alpine, Fedora, openSUSE, and Alpine's and BSD's old place.
var CABundles = []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"}

// patience is for one program to start.
const patience = 20 * time.Second

// Look looks at the system that this process is in, whose root is root ("/", but in
// tests). git is the path of the injected one.
func Look(ctx context.Context, root, git string, uid int) Facts {
	f := Facts{LibC: libC(root), Accounts: accounts(root)}
	if own, ok := f.Account(strconv.Itoa(uid)); ok {
		f.Home = own.Home
	}
	for _, file := range CABundles {
		if info, err := os.Stat(filepath.Join(root, file)); err == nil && info.Mode().IsRegular() && info.Size() > 0 {
			f.CAs = file
			break
		}
	}
	if _, err := output(ctx, "/bin/sh", "-c", "exit 0"); err != nil {
		f.Shell = err.Error()
	}
	if out, err := output(ctx, "git", "version"); err == nil {
		f.Git = gitVersion.FindString(out)
	}
	if git != "" {
		if _, err := output(ctx, git, "version"); err != nil {
			f.Tool = err.Error()
		}
	}
	return f
}

var gitVersion = regexp.MustCompile(`[0-9]+\.[0-9]+(\.[0-9]+)?`)

// output is the first of what a program says, which is the image's.
func output(ctx context.Context, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = time.Second
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	line, _, _ := bufio.NewReaderSize(pipe, 256).ReadLine() // as much as fits
	_ = pipe.Close()                                        // what says more breaks
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("it does not end within %s", patience)
		}
		return "", fmt.Errorf("%s: %w", program, err)
	}
	return string(line), nil
}

func libC(root string) string {
	for _, try := range []struct{ pattern, is string }{{"/lib/ld-musl-*", Musl}, {"/lib64/ld-linux-*", Glibc}, {"/lib/ld-linux-*", Glibc}} {
		if found, err := filepath.Glob(root + try.pattern); err == nil && len(found) > 0 {
			return try.is
		}
	}
	return ""
}

// accounts reads passwd(5).
func accounts(root string) (out []Account) {
	file, err := os.Open(filepath.Join(root, "etc/passwd"))
	if err != nil {
		return nil
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan() && len(out) < maxAccounts; {
		field := strings.Split(lines.Text(), ":")
		if len(field) != 7 {
			continue
		}
		uid, err := strconv.Atoi(field[2])
		gid, err2 := strconv.Atoi(field[3])
		a := Account{Name: field[0], UID: uid, GID: gid, Home: home(root, field[5])}
		if err == nil && err2 == nil && a.sane() {
			out = append(out, a)
		}
	}
	return out
}

// accountName is what a user is called (useradd(8)).
var accountName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9._-]{0,31}$`)

func (a Account) sane() bool {
	return accountName.MatchString(a.Name) && a.UID >= minUID && a.UID < maxUID && a.GID > 0 && a.GID < maxUID && (a.Home == "" || ownHome.MatchString(a.Home))
}

// home is a user's directory, if it is there and one of its own.
func home(root, dir string) string {
	dir = path.Clean(dir)
	if info, err := os.Stat(filepath.Join(root, dir)); err != nil || !info.IsDir() || !ownHome.MatchString(dir) {
		return ""
	}
	return dir
}

// ownHome is what a volume may be mounted over.
var ownHome = regexp.MustCompile(`^(/home|/var/home|/Users|/workspaces?/home)/[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// oldestGit is the first version of git that has all that a pod's shim asks for.
var oldestGit = [2]int{2, 32}

// HasGit tells whether the image's own git will do.
func (f Facts) HasGit() bool {
	var major, minor int
	if _, err := fmt.Sscanf(f.Git, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > oldestGit[0] || major == oldestGit[0] && minor >= oldestGit[1]
}

// Judge tells what keeps a pod's containers from working in the image, nil when
// nothing does.
func (f Facts) Judge() error {
	switch {
	case f.Shell != "":
		return fmt.Errorf("it has no shell: /bin/sh does not run (%.200q); an agent's tools and a person's need one: use an image with a shell", f.Shell)
	case f.Tool != "" && !f.HasGit():
		return fmt.Errorf("git does not run in it, neither its own nor the one that devaipod brings (%.200q); install git %d.%d or newer in the image", f.Tool, oldestGit[0], oldestGit[1])
	}
	return nil
}

// Parse reads what [Look] found, out of what a container of the image has written.
func Parse(log []byte) (Facts, error) {
	var f Facts
	for line := range bytes.Lines(log) {
		if bytes.HasPrefix(line, []byte("{")) {
			if err := json.Unmarshal(line, &f); err != nil {
				return Facts{}, err
			}
			if f.Home != "" && !ownHome.MatchString(f.Home) {
				return Facts{}, fmt.Errorf("its home %.100q", f.Home)
			}
			for _, a := range f.Accounts {
				if !a.sane() {
					return Facts{}, fmt.Errorf("its account %.100q", a.Name)
				}
			}
			return f, nil
		}
	}
	return f, errors.New("it told nothing")
}
