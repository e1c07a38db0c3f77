package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
	gossh "golang.org/x/crypto/ssh"

	"codeberg.org/devaipod/devaipod/sshd"
)

func (a *app) sshdCmd() *cobra.Command {
	var listen, hostKey, keys string
	cmd := &cobra.Command{
		Use: "sshd --listen ADDR --host-key FILE --authorized-keys FILE", Short: "Serve this machine or container by SSH, as you", Args: noArgs,
		Long: `Serve the machine or container that this runs in by SSH and SFTP, as the user who started
it, until Ctrl-C. It needs neither root nor an sshd. Only public keys are let in, those of
the authorized keys file and those that a certificate authority there has signed; the file
is read again at each login. A host key that is not there is made.

Whoever logs in can do what you can. Lines of the authorized keys file may say less:
restrict, command, from, expiry-time and the others that docs/ssh.md lists.`,
		Example: `  devaipod sshd --listen 127.0.0.1:2222 --host-key host_key --authorized-keys ~/.ssh/authorized_keys`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			keys, err := filepath.Abs(keys)
			if err != nil {
				return err
			}
			return a.sshd(cmd.Context(), listen, hostKey, sshd.KeysFile(keys))
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "", "`address` to listen on, HOST:PORT")
	cmd.Flags().StringVar(&hostKey, "host-key", "", "private host key `file`")
	cmd.Flags().StringVar(&keys, "authorized-keys", "", "`file` of the keys that are let in")
	for _, name := range []string{"listen", "host-key", "authorized-keys"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // it was just made
		}
	}
	return cmd
}

func (a *app) sshd(ctx context.Context, listen, hostKey string, keys sshd.KeysFile) error {
	text, err := os.ReadFile(string(keys))
	if err != nil {
		return usagef("the authorized keys: %w", err)
	}
	rules, wrong := sshd.ParseKeys(text)
	if wrong != nil {
		a.step("%s, whose lines let nobody in:\n%v", keys, wrong)
	}
	if len(rules) == 0 {
		return usagef("%s has no key, so that nobody could log in", keys)
	}
	key, err := sshd.HostKey(hostKey)
	if err != nil {
		return err
	}
	me := sshd.Me()
	server, err := sshd.New(sshd.Config{HostKey: key, Keys: keys, User: me, Env: inherited(), Log: a.log, Conns: processors})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	defer l.Close()
	sshd.HeedSignals()
	if err := os.Chdir(me.Home); err != nil { // where sftp begins
		return err
	}
	processors(0)
	// The library allocates each packet that it reads; what lives is little.
	debug.SetGCPercent(800)
	fmt.Fprintf(a.out, "ssh -p %d %s@%s\nhost key %s\n", l.Addr().(*net.TCPAddr).Port, me.Name, l.Addr().(*net.TCPAddr).IP, gossh.FingerprintSHA256(key.PublicKey()))
	if err := server.Serve(ctx, l); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// inherited is what commands get of this process's environment.
func inherited() (env []string) {
	for _, name := range []string{"PATH", "LANG", "TZ"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// processors lets Go use as many processors as there are connections. What the parts of
// one hand to each other then stays with one thread: to wake another takes longer than
// what that has to do.
func processors(connections int) {
	runtime.GOMAXPROCS(max(1, min(connections, runtime.NumCPU())))
}
