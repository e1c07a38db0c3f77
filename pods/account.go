package pods

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// An Account is of what an issue's pods have used; it outlives them.
type Account struct {
	Repo   string `json:"repo"` // owner/name, as it was last
	RepoID int64  `json:"repo_id"`
	Issue  int64  `json:"issue"`
	Dir    string `json:"-"` // with the journal
}

const (
	usageDir    = "usage"
	accountFile = "issue.json"
)

// UsageDir is where the account is kept of what an issue's pods use.
func (m *Manager) UsageDir(k Key) string {
	return filepath.Join(m.cfg.StateDir, usageDir, Name(m.cfg.Instance, k))
}

// openAccount makes the directory for a pod's account.
func (m *Manager) openAccount(s Spec) error {
	dir := m.UsageDir(s.Key)
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = writeJSON(filepath.Join(dir, accountFile), Account{Repo: s.Owner + "/" + s.Repo, RepoID: s.RepoID, Issue: s.Issue})
	}
	if err != nil {
		return fmt.Errorf("making the account of %s: %w", s.Key, err)
	}
	return nil
}

// Accounts are those kept in an instance's state directory.
func Accounts(stateDir string) ([]Account, error) {
	files, err := filepath.Glob(filepath.Join(stateDir, usageDir, "*", accountFile))
	if err != nil {
		return nil, err
	}
	var out []Account
	for _, file := range files {
		a, err := ReadAccount(filepath.Dir(file))
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// ReadAccount reads the account in a directory. One that is not there is an
// [fs.ErrNotExist].
func ReadAccount(dir string) (Account, error) {
	file := filepath.Join(dir, accountFile)
	text, err := os.ReadFile(file)
	if err != nil {
		return Account{}, err
	}
	a := Account{Dir: dir}
	if err := json.Unmarshal(text, &a); err != nil {
		return Account{}, fmt.Errorf("reading %s: %w", file, err)
	}
	return a, nil
}
