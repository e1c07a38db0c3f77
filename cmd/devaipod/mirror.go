package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

func (a *app) mirrorCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "mirror", Short: "A caching mirror of git repositories", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	serve := &cobra.Command{
		Use: "serve", Short: "Run the cache alone, without forge and podman", Args: noArgs,
		Long: "Run the cache alone: git clone http://ADDRESS/git/HOST/OWNER/REPO.git fetches from https://HOST/OWNER/REPO.git once, and then only what is new.",
		Example: "  devaipod mirror serve --dir /var/cache/git\n" +
			"  devaipod mirror serve --allow-upstream github.com --allow-upstream '*.example.org/team/*'\n" +
			"  git clone http://127.0.0.1:8090/git/github.com/git/git.git",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.mirrorServe(cmd.Context()) },
	}
	f := serve.Flags()
	f.String("listen", "", "loopback `address` and port (service.listen)")
	f.String("dir", "", "`directory` of the repositories (mirror.dir)")
	f.StringArray("allow-upstream", nil, "`pattern` HOST[:PORT][/PATH] of what may be fetched; again for more (mirror.allow_upstream)")
	f.Duration("max-age", 0, "how old an answer may be before the upstream is asked again (mirror.max_age)")
	cmd.AddCommand(serve)
	return cmd
}

// mirrorServe runs the cache until ctx ends.
func (a *app) mirrorServe(ctx context.Context) error {
	c, err := a.openCache()
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // the process ends
	l, err := listenTCP(a.cfg.Service.Listen, "service.listen")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") })
	mux.Handle("/git/", c)
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx }, ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	a.log.Info("serving", "url", "http://"+l.Addr().String()+"/git/", "dir", a.cfg.Mirror.Dir, "allow", strings.Join(a.cfg.Mirror.AllowUpstream, " "), "pid", os.Getpid())
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// openCache opens the cache that the configuration describes.
func (a *app) openCache() (*cache.Cache, error) {
	if _, err := exec.LookPath("git"); err != nil {
		return nil, &exitError{codeNeedsHuman, errors.New("there is no git on this machine, and the cache is made of it: apt-get install git")}
	}
	allow, err := cache.ParseAllow(a.cfg.Mirror.AllowUpstream)
	if err != nil {
		return nil, &exitError{codeUsage, err}
	}
	hosts := map[string]cache.Host{}
	for _, h := range a.cfg.Mirror.Host {
		hosts[strings.ToLower(h.Name)] = cache.Host{URL: h.URL}
	}
	return cache.New(cache.Config{
		Dir: a.cfg.Mirror.Dir, Allow: allow, Hosts: hosts, MaxAge: a.cfg.Mirror.MaxAge, Credentials: personsCredentials, Log: a.log,
	})
}

// personsCredentials are what the person's git has for a URL: its credential
// helpers are asked, nobody is prompted (git-credential(1)).
func personsCredentials(ctx context.Context, upstream string) (user, password string, err error) {
	u, err := url.Parse(upstream)
	if err != nil {
		return "", "", err
	}
	cmd := exec.CommandContext(ctx, "git", "credential", "fill")
	cmd.Env = append(os.Environ(), "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=", "SSH_ASKPASS=")
	cmd.Stdin = strings.NewReader(fmt.Sprintf("protocol=%s\nhost=%s\npath=%s\n\n", u.Scheme, u.Host, strings.TrimPrefix(u.Path, "/")))
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", "", ctx.Err()
		}
		return "", "", nil //nolint:nilerr // git ends so when no helper knows any
	}
	for line := range strings.Lines(out.String()) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch k {
		case "username":
			user = v
		case "password":
			password = v
		}
	}
	return user, password, nil
}
