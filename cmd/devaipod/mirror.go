package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/term"

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
	dir := func(c *cobra.Command) *cobra.Command {
		c.Flags().String("dir", "", "`directory` of the repositories (mirror.dir)")
		return c
	}
	fetch := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringArray("allow-upstream", nil, "`pattern` of what may be fetched (mirror.allow_upstream)")
		c.RunE = func(cmd *cobra.Command, repos []string) error { return a.mirrorSync(cmd.Context(), repos) }
		return dir(c)
	}
	add := fetch(&cobra.Command{
		Use: "add REPO…", Short: "Fetch repositories before anybody asks for them", Args: args(cobra.MinimumNArgs(1)),
		Example: "  devaipod mirror add github.com/git/git",
	})
	sync := fetch(&cobra.Command{Use: "sync [REPO…]", Short: "Fetch what is new: of all, or of some"})
	var force bool
	remove := dir(&cobra.Command{
		Use: "remove REPO…", Aliases: []string{"rm"}, Short: "Remove repositories that their upstreams still have", Args: args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, repos []string) error { return a.mirrorRemove(cmd.Context(), repos, force) },
	})
	remove.Flags().BoolVar(&force, "force", false, "even if the upstream may not have it any more")
	cmd.AddCommand(serve, a.jsonFlag(&cobra.Command{
		Use: "status", Short: "Tell what the cache that runs has done since its start", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.mirrorStatus(cmd.Context()) },
	}), add, sync, remove, a.mirrorSetupCmd(), a.mirrorCredentialCmd(), a.jsonFlag(dir(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the repositories: how old, how large, used when", Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return a.mirrorList() },
	})))
	return cmd
}

// mirrorList prints what is in the cache.
func (a *app) mirrorList() error {
	c, all, err := a.listCache()
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // nothing goes on
	if a.asJSON {
		if all == nil {
			all = []cache.Entry{}
		}
		return a.printJSON(all)
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "REPOSITORY\tREADERS\tSIZE\tCHECKED\tUSED\tTROUBLE")
	for _, e := range all {
		readers := "anybody"
		if !e.Public {
			readers = "by upstream"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", e.Address, readers, formatBytes(e.Size), ago(e.Checked), ago(e.Used), e.Error)
	}
	return w.Flush()
}

// ago is how long since, in a person's words.
func ago(t time.Time) string {
	switch d := time.Since(t); {
	case t.IsZero():
		return "never"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd ago", int(d.Hours()/24))
	}
}

// formatBytes is a size in a person's words.
func formatBytes(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// mirrorSync fetches some repositories, or all that are here.
func (a *app) mirrorSync(ctx context.Context, repos []string) error {
	c, err := a.openCache(nil)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // nothing goes on
	if len(repos) == 0 {
		all, err := c.List()
		if err != nil {
			return err
		}
		for _, e := range all {
			repos = append(repos, e.Address)
		}
	}
	addrs, err := addresses(repos)
	if err != nil {
		return err
	}
	var errs []error
	for _, addr := range addrs {
		began := time.Now()
		st, err := c.Sync(ctx, addr)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", addr, err))
		case st.Changed.Before(began):
			a.step("%s: nothing new", addr)
		default:
			a.step("%s: fetched in %s", addr, time.Since(began).Round(10*time.Millisecond))
		}
	}
	return errors.Join(errs...)
}

func (a *app) mirrorRemove(ctx context.Context, repos []string, force bool) error {
	addrs, err := addresses(repos)
	if err != nil {
		return err
	}
	c, err := a.openCache(nil)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // nothing goes on
	var errs []error
	for _, addr := range addrs {
		err := c.Remove(ctx, addr, force)
		switch {
		case errors.Is(err, cache.ErrNotHere):
			errs = append(errs, fmt.Errorf("%s is not in the cache (devaipod mirror list)", addr))
		case err != nil && !force:
			errs = append(errs, fmt.Errorf("%s stays: %w; --force removes it all the same", addr, err))
		case err != nil:
			errs = append(errs, err)
		default:
			a.step("%s: removed", addr)
		}
	}
	return errors.Join(errs...)
}

// addresses takes them as a person writes them: with a scheme too.
func addresses(texts []string) (all []cache.Address, err error) {
	for _, text := range texts {
		for _, scheme := range []string{"https://", "http://", "ssh://"} {
			text = strings.TrimPrefix(text, scheme)
		}
		addr, err := cache.ParseAddress(strings.TrimSuffix(text, "/"))
		if err != nil {
			return nil, &exitError{codeUsage, err}
		}
		all = append(all, addr)
	}
	return all, nil
}

// mirrorServe runs the cache until ctx ends.
func (a *app) mirrorServe(ctx context.Context) error {
	counted := newRegistry()
	c, err := a.openCache(counted)
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
	serveCache(mux, c, counted)
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx }, ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelWarn),
	}
	go c.Run(ctx) //nolint:errcheck // it ends with ctx
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	a.log.Info("serving", "url", "http://"+l.Addr().String()+"/git/", "dir", a.cfg.Mirror.Dir, "allow", strings.Join(a.cfg.Mirror.AllowUpstream, " "), "pid", os.Getpid())
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// serveCache adds what the cache serves and what is counted of it.
func serveCache(mux *http.ServeMux, c *cache.Cache, counted *prometheus.Registry) {
	mux.Handle("GET /metrics", promhttp.HandlerFor(counted, promhttp.HandlerOpts{}))
	mux.Handle("/git/", c)
}

// openCache opens the cache that the configuration describes; what is counted
// goes to counted, nil for nobody.
func (a *app) openCache(counted prometheus.Registerer) (*cache.Cache, error) {
	if _, err := exec.LookPath("git"); err != nil {
		return nil, &exitError{codeNeedsHuman, errors.New("there is no git on this machine, and the cache is made of it: apt-get install git")}
	}
	up, err := a.upstreams()
	if err != nil {
		return nil, err
	}
	size, err := parseBytes(a.cfg.Mirror.MaxSize)
	if err != nil {
		return nil, usagef("mirror.max_size = %q: %w", a.cfg.Mirror.MaxSize, err)
	}
	token, err := mirrorToken(a.cfg.Mirror.Dir)
	if err != nil {
		return nil, err
	}
	return cache.New(cache.Config{
		Dir: a.cfg.Mirror.Dir, Borrower: a.cfg.Instance, MaxSize: size, Hostnames: a.cfg.Mirror.Hostnames, Metrics: counted, Interval: a.cfg.Mirror.Interval, MaxAge: a.cfg.Mirror.MaxAge,
		Allow: up.allow, Hosts: up.hosts, Credentials: up.credentials, Ours: token.shown, Pushes: a.keepPush, Log: a.log,
		Progress: func(cache.Address) io.Writer { return a.progress() },
	})
}

// progress is where git's progress goes: to a terminal, without what a terminal
// might take as an order, since an upstream's own words are in it.
func (a *app) progress() io.Writer {
	f, ok := a.errOut.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return safeWriter{f}
}

type safeWriter struct{ w io.Writer }

func (s safeWriter) Write(b []byte) (int, error) {
	safe := bytes.Map(func(r rune) rune {
		if r != '\n' && r != '\r' && (r < ' ' || r >= 0x7f && r < 0xa0) {
			return -1
		}
		return r
	}, b)
	if _, err := s.w.Write(safe); err != nil {
		return 0, err
	}
	return len(b), nil
}

// listCache opens the cache and tells what is in it.
func (a *app) listCache() (*cache.Cache, []cache.Entry, error) {
	c, err := a.openCache(nil)
	if err != nil {
		return nil, nil, err
	}
	all, err := c.List()
	if err != nil {
		return nil, nil, errors.Join(err, c.Close())
	}
	return c, all, nil
}
