package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/pods/audit"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// auditFile is where all that is done outwards is kept.
const auditFile = "audit.jsonl"

func auditDefaults() map[string]any { return map[string]any{"audit.max_size": "64MiB"} }

// Who asked, where it is nobody of the forge's.
const (
	byCommand = "the command line" // this machine's user, whom the state directory belongs to
	byPages   = "the pages"        // whoever logged in to them
)

// ofUser is the rule by which the command line may.
const ofUser = "the state directory is its user's"

func byCommandLine(ctx context.Context) context.Context {
	return audit.Because(ctx, audit.Entry{Who: byCommand, Rule: ofUser})
}

// openAudit is the log of what is done outwards, the same one each time.
func (a *app) openAudit() (*audit.Log, error) {
	a.auditOnce.Do(func() { a.audit, a.auditErr = a.newAudit() })
	return a.audit, a.auditErr
}

func (a *app) newAudit() (*audit.Log, error) {
	size, err := parseBytes(a.cfg.Audit.MaxSize)
	if err == nil && size < 1<<20 {
		err = errors.New("want 1MiB or more")
	}
	if err != nil {
		return nil, fmt.Errorf("audit.max_size: %w", err)
	}
	return audit.New(audit.Config{Path: a.cfg.file(auditFile), MaxSize: size, Hide: a.withoutSecrets}), nil
}

// withoutSecrets takes all that is secret out of a text.
func (a *app) withoutSecrets(s string) string {
	var all []string
	if c, err := a.readCredentials(); err == nil { // one that can't be read is in no text either
		all = append(all, c.ServiceToken, c.BotToken, c.PersonToken, c.WebhookSecret, c.PanelSecret)
	}
	kept := a.cfg.secrets()
	if found, err := kept.List(); err == nil {
		for _, sec := range found {
			if value, ok, err := kept.Value(sec.Name); err == nil && ok {
				all = append(all, value)
			}
		}
	}
	if token, err := os.ReadFile(a.cfg.file(tokenFile)); err == nil {
		all = append(all, strings.TrimSpace(string(token)))
	}
	for _, secret := range all {
		if len(secret) >= 8 { // a shorter one is in innocent texts
			s = strings.ReplaceAll(s, secret, "[secret]")
		}
	}
	return s
}

// note keeps what was done. That it can't is said loudly; what can't be undone must
// stop for it.
func (s *service) note(e audit.Entry) error { return s.noted(s.audit.Add(e)) }

func (s *service) noted(err error) error {
	if err != nil {
		s.log.Error("what was done can't be kept (devaipod audit)", "err", err)
	}
	return err
}

// acted keeps what the loop did.
func (s *service) acted(act reconcile.Act) error {
	e := audit.Entry{Act: act.What, About: act.Key.String(), Who: atName(act.Who), Rule: act.Rule, Done: act.Done, Result: act.Result}
	if act.Once {
		return s.noted(s.audit.AddOnce(e))
	}
	return s.note(e)
}

// atName is an account of the forge's, as people write it.
func atName(user string) string {
	if user == "" {
		return ""
	}
	return "@" + strings.ReplaceAll(user, ", ", ", @")
}

// resultOf is how something ended, in words.
func resultOf(err error) string {
	if err != nil {
		return "failed: " + err.Error()
	}
	return "done"
}

// pushed keeps what an agent's push brought to the forge.
func (s *service) pushed(d mirror.Delivery) {
	e := audit.Entry{Act: "push", About: d.Issue, Who: "the agent " + d.Agent, Rule: "the gate of pushes took it: branches of its issue alone", Done: strings.Join(d.Refs, ", "), Result: "done"}
	if e.About == "" { // the forge was away when it was pushed
		e.About, e.Who, e.Rule = d.Repo, "an agent", e.Rule+", while the forge was away"
	}
	if len(d.Lifts) > 0 {
		e.Rule += "; somebody who may push allowed it to change " + strings.Join(d.Lifts, ", ")
	}
	s.refusedMu.Lock()
	delete(s.refused, e.About)
	s.refusedMu.Unlock()
	_ = s.note(e) // it said so
}

// ciActed keeps what came of a person's approval of a commit.
func (s *service) ciActed(repo int64, what, by, done string, err error) {
	about := fmt.Sprintf("repository %d", repo)
	if info, e := s.forge.RepositoryByID(context.Background(), repo); e == nil { // else its number has to do
		about = info.Repo.String()
	}
	rule := ofUser
	if by != byCommand {
		by, rule = atName(by), "may push to the repository, and named the whole commit"
	}
	_ = s.note(audit.Entry{Act: what, About: about, Who: by, Rule: rule, Done: done, Result: resultOf(err)}) // it said so
}

// A noteWriter knows the status that was answered.
type noteWriter struct {
	http.ResponseWriter
	status int
}

func (w *noteWriter) WriteHeader(status int) {
	w.status = cmp.Or(w.status, status)
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for [http.ResponseController].
func (w *noteWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// keepCommands keeps what the command line has the service do.
func (s *service) keepCommands(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		act, about, is := commandOf(r)
		if !is {
			h.ServeHTTP(w, r)
			return
		}
		answered := &noteWriter{ResponseWriter: w}
		h.ServeHTTP(answered, r.WithContext(byCommandLine(r.Context())))
		e := audit.Entry{Act: act, About: about, Who: byCommand, Rule: ofUser, Done: r.URL.RawQuery, Result: "done"}
		if about == "" {
			e.Done = strings.TrimSpace(r.URL.Path + " " + r.URL.RawQuery)
		}
		if answered.status >= http.StatusBadRequest {
			e.Result = fmt.Sprintf("refused (%d)", answered.status)
		}
		_ = s.note(e) // it said so
	})
}

// commandOf is what a request has the service do, and to what; is is false for what
// only reads, or only makes the loop look sooner.
func commandOf(r *http.Request) (act, about string, is bool) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/api/"), "/")
	act = parts[len(parts)-1]
	switch {
	case r.Method != http.MethodPost, act == "kick", act == "steer", act == "open", r.URL.Query().Get("dry") == "true":
		return "", "", false
	case len(parts) == 5 && parts[0] == "pods":
		about = parts[1] + "/" + parts[2] + "#" + parts[3]
	case len(parts) == 5 && parts[0] == "workspaces":
		about = parts[1] + "/" + parts[2] + "@" + parts[3]
	case parts[0] == "ci":
		act = "ci-" + act
	case parts[0] == "follow":
		act = "sync"
	}
	return act, about, true
}

// keepPages keeps what people did on the pages.
func (p webPods) keep(name, act string, err error) {
	issue, _, unknown := p.key(name)
	if unknown != nil {
		return
	}
	_ = p.note(audit.Entry{Act: act, About: issue.String(), Who: byPages, Rule: "logged in to the pages", Result: resultOf(err)})
}

// keepCommand keeps what a command does by itself, also when the service does not run.
func (a *app) keepCommand(act, about, done string) error {
	log, err := a.openAudit()
	if err != nil {
		return err
	}
	return log.Add(audit.Entry{Act: act, About: about, Who: byCommand, Rule: ofUser, Done: done, Result: "done"})
}

// An auditQuery is what of the log is asked for.
type auditQuery struct {
	about  string
	since  time.Duration
	newest int
	follow bool
}

func (a *app) auditCmd() *cobra.Command {
	var q auditQuery
	cmd := &cobra.Command{
		Use: "audit [ISSUE|REPO]", Short: "Print what was done outwards, and on whose word", Args: args(cobra.MaximumNArgs(1)),
		Long: `Print what devaipod did outwards, which is all that it changed at the forge or at an upstream, and
what it was asked for: agents begun and refused, what people's comments had it do, messages,
what was approved, and what commands did. A line each: when,
about what, what, on whose word, by which rule, what of it, and what came of it; with --json a
line of JSON. There is nothing secret in it. What is kept is the newest 64 to 128 MiB
(audit.max_size).`,
		Example: `  devaipod audit ada/app#3
  devaipod audit ada/app --since 24h --json | jq 'select(.act == "push")'`,
		RunE: func(cmd *cobra.Command, rest []string) error {
			if q.since < 0 || q.newest < 0 {
				return usagef("--since and -n: want no less than 0")
			}
			if len(rest) == 1 {
				q.about = rest[0]
				if !repoRef.MatchString(rest[0]) { // else a repository with all of it
					k, err := a.podKey(cmd.Context(), rest[0])
					if err != nil {
						return err
					}
					q.about = k.String()
				}
			}
			return a.printAudit(cmd.Context(), q)
		},
	}
	cmd.Flags().BoolVarP(&q.follow, "follow", "f", false, "go on printing what comes")
	cmd.Flags().DurationVar(&q.since, "since", 0, "how long ago at most (default: all that is kept)")
	cmd.Flags().IntVarP(&q.newest, "number", "n", 0, "the newest `N` alone (default: all that is kept)")
	return a.jsonFlag(cmd)
}

func (a *app) printAudit(ctx context.Context, q auditQuery) error {
	r := audit.NewReader(a.cfg.file(auditFile))
	defer r.Close() //nolint:errcheck // it was read only
	begin := time.Now().Add(-q.since)
	for {
		found, err := r.Next()
		if err != nil {
			return err
		}
		wanted := found[:0]
		for _, e := range found {
			if e.Of(q.about) && (q.since == 0 || !e.Time.Before(begin)) {
				wanted = append(wanted, e)
			}
		}
		if q.newest > 0 && len(wanted) > q.newest {
			wanted = wanted[len(wanted)-q.newest:]
		}
		for _, e := range wanted {
			if err := a.printEntry(e); err != nil {
				return err
			}
		}
		q.newest = 0 // of what there was; what comes is printed
		if q.follow {
			sleep(ctx, 300*time.Millisecond)
		}
		if !q.follow || ctx.Err() != nil {
			return nil
		}
	}
}

func (a *app) printEntry(e audit.Entry) error {
	if a.asJSON {
		return a.printJSON(e)
	}
	line := fmt.Sprintf("%s  %s  %s", e.Time.Local().Format(time.DateTime), orDash(plain(e.About, 300)), plain(e.Act, 40))
	for _, more := range []string{e.Who, e.Rule, e.Done, e.Result} {
		if more = strings.Join(strings.Fields(plain(more, 2000)), " "); more != "" {
			line += "  " + more
		}
	}
	_, err := fmt.Fprintln(a.out, line)
	return err
}
