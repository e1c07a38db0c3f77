package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	gossh "golang.org/x/crypto/ssh"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

func (a *app) sshConfigCmd() *cobra.Command {
	var print, remove bool
	cmd := &cobra.Command{
		Use: "ssh-config", Short: "Let ssh, and what uses it, know the pods", Args: noArgs,
		Long: `Write what ssh needs to know of this instance's pods into the state directory, and one
line into ~/.ssh/config that includes it. Then "ssh issue-3.devaipod" works, and so does
all that goes by ssh: scp, sftp, rsync, sshfs, git, editors. It is written once: pods that
come later are known. Run it again for programs that list the hosts of the configuration,
or that know no certificates of hosts: both get the pods that there are.`,
		Example: "  devaipod ssh-config && ssh issue-3.devaipod",
		RunE: func(*cobra.Command, []string) error {
			if print && remove {
				return usagef("--print and --remove: want one of them")
			}
			if err := a.writeSSH(); err != nil {
				return err
			}
			if print {
				text, err := os.ReadFile(a.sshFile(sshConfig))
				if err == nil {
					_, err = a.out.Write(text)
				}
				return err
			}
			return a.includeSSH(remove)
		},
	}
	cmd.Flags().BoolVar(&print, "print", false, "print it, and leave ~/.ssh alone")
	cmd.Flags().BoolVar(&remove, "remove", false, "take the line out of ~/.ssh/config")
	return cmd
}

// writeSSH writes configuration and known hosts for clients.
func (a *app) writeSSH() error {
	ca, _, err := a.sshKeys()
	if err != nil {
		return err
	}
	specs, err := pods.Specs(a.cfg.StateDir)
	if err != nil {
		return err
	}
	slices.SortFunc(specs, func(x, y pods.Spec) int { return strings.Compare(a.sshHost(x.Key), a.sshHost(y.Key)) })
	config, err := a.sshConfigText(specs)
	if err != nil {
		return err
	}
	known, err := a.knownHosts(ca, specs)
	if err != nil {
		return err
	}
	return errors.Join(podfile.Replace(a.sshFile(sshConfig), config), podfile.Replace(a.sshFile(sshKnown), known))
}

// sshConfigText is ssh_config(5). Each pod is named for programs that list hosts.
func (a *app) sshConfigText(specs []pods.Spec) ([]byte, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	proxy := shellWord(self)
	if a.cfg.File != "" {
		proxy += " --config " + shellWord(a.cfg.File)
	}
	proxy += " --instance " + shellWord(a.cfg.Instance) + " --state-dir " + shellWord(a.cfg.StateDir) + " ssh-proxy"
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Written by devaipod ssh-config: what is changed here is lost.\n")
	for _, s := range specs {
		fmt.Fprintf(&b, "Host %s\n", a.sshHost(s.Key))
	}
	// A shell runs the ProxyCommand, so a name that ends its quotes is not one of ours;
	// and ssh itself takes % for the beginning of one of its words.
	fmt.Fprintf(&b, "Host *%s \"!*'*\"\n", a.sshDomain())
	fmt.Fprintf(&b, "  ProxyCommand %s '%%n'\n", strings.ReplaceAll(proxy, "%", "%%"))
	fmt.Fprintf(&b, "  IdentityFile %s\n", configWord(a.sshFile(sshIdentity)))
	fmt.Fprintf(&b, "  UserKnownHostsFile %s\n", configWord(a.sshFile(sshKnown)))
	fmt.Fprintf(&b, "  GlobalKnownHostsFile none\n  StrictHostKeyChecking yes\n  UpdateHostKeys no\n")
	return b.Bytes(), nil
}

// shellWord is s as one word for the shell that runs a ProxyCommand.
func shellWord(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// configWord is a path as one word of ssh_config(5).
func configWord(s string) string { return `"` + strings.ReplaceAll(s, "%", "%%") + `"` }

// knownHosts is the file of sshd(8), SSH_KNOWN_HOSTS FILE FORMAT: the authority, and for
// clients that know none each pod.
func (a *app) knownHosts(ca authority, specs []pods.Spec) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "@cert-authority *%s %s", a.sshDomain(), gossh.MarshalAuthorizedKey(ca.PublicKey()))
	for _, s := range specs {
		private, err := ca.hostKey(pods.Name(a.cfg.Instance, s.Key))
		if err != nil {
			return nil, err
		}
		public, err := gossh.NewPublicKey(private.Public())
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s %s", a.sshHost(s.Key), gossh.MarshalAuthorizedKey(public))
	}
	return b.Bytes(), nil
}

// userSSH reads the person's ~/.ssh/config, which need not be there.
func userSSH() (path string, text []byte, err error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return "", nil, err
	}
	path = filepath.Join(home, ".ssh", "config")
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // which may be in somebody's dotfiles
	}
	text, err = os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return path, text, err
}

// includeLine is what ~/.ssh/config has of us.
func (a *app) includeLine() string { return "Include " + configWord(a.sshFile(sshConfig)) + "\n" }

// sshIncluded tells whether ~/.ssh/config includes the pods.
func (a *app) sshIncluded() (bool, error) {
	_, text, err := userSSH()
	return a.includes(text), err
}

func (a *app) includes(text []byte) bool {
	return slices.Contains(strings.SplitAfter(string(text), "\n"), a.includeLine())
}

// includeSSH puts the line that includes the configuration at the beginning of
// ~/.ssh/config, where it is part of no Host, or takes it out.
func (a *app) includeSSH(remove bool) error {
	path, text, err := userSSH()
	if err != nil {
		return err
	}
	line, has := a.includeLine(), a.includes(text)
	switch {
	case remove && has:
		text = []byte(strings.ReplaceAll(string(text), line, ""))
	case !remove && !has:
		text = append([]byte(line), text...)
	default:
		a.step("%s stays as it is", path)
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	mode := fs.FileMode(0o600)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
	}
	if err := podfile.Replace(path, text); err != nil {
		return err
	}
	if err := os.Chmod(path, mode); err != nil {
		return err
	}
	if remove {
		a.step("%s does not include the pods any more", path)
		return nil
	}
	a.step("%s includes the pods: ssh issue-3%s, or issue-3.repo.owner%s where several repositories have one", path, a.sshDomain(), a.sshDomain())
	return nil
}
