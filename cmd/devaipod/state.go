package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// credentials are the service's own accounts and tokens on the forge: what
// can't be read back from anywhere. They are forge.json in the state
// directory, mode 0600.
type credentials struct {
	Service       string `json:"service"`
	ServiceToken  string `json:"service_token"`
	Bot           string `json:"bot"`
	BotToken      string `json:"bot_token"`
	Person        string `json:"person"`
	PersonToken   string `json:"person_token"`
	WebhookSecret string `json:"webhook_secret"`

	PanelClient string `json:"panel_client,omitempty"` // our application there, for the panel's logins
	PanelSecret string `json:"panel_secret,omitempty"`

	// Of a forge that we joined (forge.url):
	Forge   string `json:"forge,omitempty"`    // its URL: whose tokens these are
	BotMade bool   `json:"bot_made,omitempty"` // the bot's account is of our making
	Webhook string `json:"webhook,omitempty"`  // the target of our hook there
}

const credentialsFile = "forge.json"

// errNoForge is what commands answer before `forge up` has run once.
var errNoForge = errors.New("there is no forge yet: run `devaipod forge up` first")

// readCredentials reads them, if they are the configured forge's.
func (a *app) readCredentials() (credentials, error) {
	c, err := a.loadCredentials()
	if err == nil {
		err = a.forThisForge(c)
	}
	return c, err
}

func (a *app) loadCredentials() (credentials, error) {
	var c credentials
	b, err := os.ReadFile(a.cfg.file(credentialsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return c, &exitError{codeUnreachable, fmt.Errorf("%w (instance %s)", errNoForge, a.cfg.Instance)}
	}
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("%s is damaged (%w): remove it and run `devaipod forge up` again", a.cfg.file(credentialsFile), err)
	}
	return c, nil
}

func (a *app) writeCredentials(c credentials) error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return podfile.Replace(a.cfg.file(credentialsFile), b)
}

// basis names what a service runs from: this program's file, the configuration
// and the credentials. A service with another basis is out of date.
func (a *app) basis(c credentials) (string, error) {
	var exe syscall.Stat_t
	if err := syscall.Stat("/proc/self/exe", &exe); err != nil {
		return "", fmt.Errorf("looking at this program: %w", err)
	}
	b, err := json.Marshal([]any{exe.Dev, exe.Ino, exe.Size, exe.Mtim, a.cfg, c})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8]), nil
}

// makeStateDir makes the state directory for this user alone.
func (a *app) makeStateDir() error {
	for _, dir := range []string{a.cfg.StateDir, a.cfg.file("run"), a.cfg.file("relay")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making the state directory: %w; choose another with --state-dir", err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// lockFor is how long a lock is waited for: a process that was killed just as it was
// starting another leaves it to that one, until it has become git or podman.
const lockFor = 2 * time.Second

// lock takes an advisory lock of the instance; the lock ends with the process,
// however that ends. ok is false when another process holds it, and keeps it.
func (a *app) lock(name string) (unlock func() error, ok bool, err error) {
	f, err := os.OpenFile(a.cfg.file(name), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, false, err
	}
	for end := time.Now().Add(lockFor); ; time.Sleep(lockFor / 100) {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(end) {
			break
		}
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, false, f.Close()
	}
	if err != nil {
		return nil, false, errors.Join(err, f.Close())
	}
	return f.Close, true, nil
}

// lockUp makes the state directory and takes the lock of what changes the stack
// or its tokens: one `forge up` or `forge join` at a time. others says what may
// have it.
func (a *app) lockUp(others string) (unlock func() error, err error) {
	if err := a.makeStateDir(); err != nil {
		return nil, err
	}
	unlock, ok, err := a.lock("up.lock")
	if err == nil && !ok {
		err = fmt.Errorf("another %s of instance %s is at work; wait for it", others, a.cfg.Instance)
	}
	return unlock, err
}
