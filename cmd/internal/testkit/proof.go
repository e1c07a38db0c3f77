package testkit

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
)

// A Proof is a nonce that only the text holds, and its sha256, which
// only a command that ran in the agent's container has computed.
type Proof struct{ Nonce, Sum string }

// NewProof makes one of a random nonce.
func NewProof() Proof { return ProofOf(strings.ToLower(rand.Text())) }

// ProofOf is the proof of a nonce.
func ProofOf(nonce string) Proof {
	sum := sha256.Sum256([]byte(nonce))
	return Proof{Nonce: nonce, Sum: hex.EncodeToString(sum[:])}
}

// Verify fetches branch from the forge by git, as auth's account, and returns
// the diff since base, or an error when no added line of it holds the proof.
// The diff is git's own, of objects that were fetched: not the forge's word.
func (p Proof) Verify(ctx context.Context, s *Stack, auth *API, repo, base, branch string) (diff string, err error) {
	dir, err := os.MkdirTemp("", "devaipod-proof-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a scratch directory
	fetch := []string{"fetch", "--quiet", auth.URL + "/" + repo + ".git", "refs/heads/" + base + ":refs/base", "refs/heads/" + branch + ":refs/head"}
	for _, args := range [][]string{{"init", "--quiet", "--bare"}, fetch} {
		if err := s.Git(ctx, Call{Args: args, Env: auth.GitEnv(), Dir: dir}); err != nil {
			return "", err
		}
	}
	var out strings.Builder
	if err := s.Git(ctx, Call{Args: []string{"diff", "refs/base...refs/head"}, Dir: dir, Stdout: &out}); err != nil {
		return "", err
	}
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "+") && strings.Contains(line, p.Sum) {
			return out.String(), nil
		}
	}
	return out.String(), fmt.Errorf("branch %s of %s does not add the sha256 of the nonce, %s", branch, repo, p.Sum)
}

// GitEnv makes git act as the account, with nothing of it on a command line.
func (a *API) GitEnv() []string {
	secret := a.Token
	if secret == "" {
		secret = a.Password
	}
	basic := base64.StdEncoding.EncodeToString([]byte(a.User + ":" + secret))
	return []string{"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=http." + a.URL + "/.extraHeader", "GIT_CONFIG_VALUE_0=Authorization: Basic " + basic}
}
