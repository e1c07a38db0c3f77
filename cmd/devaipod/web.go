package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/web"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// tokenFile has what lets a browser in, for this user alone.
const tokenFile = "web.token"

// webToken is the pages' token, made when there is none.
func (a *app) webToken() (string, error) {
	path := a.cfg.file(tokenFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(b)) == 0 {
		b = []byte(rand.Text())
		err = podfile.Replace(path, b)
	}
	if err != nil {
		return "", fmt.Errorf("the token of the pages: %w", err)
	}
	return string(bytes.TrimSpace(b)), nil
}

// newSite makes the pages about the service's pods, and the panel in the forge's.
func (s *service) newSite(a *app) error {
	token, err := a.webToken()
	if err != nil {
		return err
	}
	s.site, err = web.New(web.Config{Pods: webPods{s}, Acted: webPods{s}.keep, Listen: a.cfg.Service.Listen, Token: token, Log: a.log})
	if err == nil {
		err = s.newPanel(a, token)
	}
	return err
}

// webPods is what the pages are about: the issues that the loop looks after.
type webPods struct{ *service }

// podName is what the pod of an issue is called, also when there is none any more.
func (p webPods) podName(v reconcile.View) string {
	if v.Pod != "" {
		return v.Pod
	}
	return pods.Name(p.cfg.Instance, pods.Key(p.loop.PodKey(v.Key)))
}

// views are the loop's, and behind them those of pods that are gone.
func (p webPods) views() []reconcile.View {
	views := p.loop.Views()
	return append(views, p.goneViews(views)...)
}

// List implements [web.Pods].
func (p webPods) List() []web.Pod {
	var out []web.Pod
	for _, v := range p.views() {
		pod := web.Pod{
			Name: p.podName(v), Issue: v.Issue, Title: v.Title, URL: v.URL, State: string(v.State), Doing: string(v.Doing), Choices: v.Choices, Checked: v.Checked, Approved: v.Landing, Why: v.Why, Agent: v.Agent, Branch: v.Branch,
			PullRequest: v.PullRequest, Activity: v.Activity, Used: v.Used, Labeler: v.Labeler, Started: v.Started,
			Place: v.Position, Container: v.Pod, Note: v.Note, Trouble: v.Trouble, Open: v.Open, Runs: v.Pod != "" && !v.Resting,
		}
		if pod.Runs {
			pod.SSH = "ssh " + sshHost(p.cfg.Instance, pods.Key(p.loop.PodKey(v.Key)))
		}
		if v.PullRequest != "" {
			pod.CI = p.cfg.forgeURL() + "/" + v.Owner + "/" + v.Repo + "/commits/branch/" + v.Branch
		}
		for _, b := range v.Blocked {
			pod.Blocked = append(pod.Blocked, web.Block{Host: fmt.Sprintf("%s:%d", b.Host, b.Port), Why: b.Why, Allow: b.Allow})
		}
		out = append(out, pod)
	}
	return out
}

// errNoPod is for a name that no issue's pod has.
var errNoPod = errors.New("there is no such pod")

// key is of the pod with a name: the issue's, and the pod's own where a repository
// was renamed.
func (p webPods) key(name string) (issue, pod reconcile.Key, err error) {
	if last, known := p.found.Load(name); known { // every request of an agent's pages asks
		k, _ := last.(reconcile.Key)
		if v, there := p.loop.View(k); there && p.podName(v) == name {
			return k, p.loop.PodKey(k), nil
		}
		p.found.Delete(name)
	}
	for _, v := range p.views() {
		if p.podName(v) == name {
			p.found.Store(name, v.Key)
			return v.Key, p.loop.PodKey(v.Key), nil
		}
	}
	return issue, pod, errNoPod
}

// Control implements [web.Pods].
func (p webPods) Control(name string) (*podapi.Client, error) {
	_, pod, err := p.key(name)
	if err != nil {
		return nil, err
	}
	return p.pods.control(pod), nil
}

// Past implements [web.Pods].
func (p webPods) Past(name string, before int64, n int) ([]podapi.Event, error) {
	_, pod, err := p.key(name)
	if err != nil {
		return nil, err
	}
	return podapi.TranscriptPage(p.pods.manager.UsageDir(pods.Key(pod)), before, n)
}

// Retry implements [web.Pods].
func (p webPods) Retry(name string) error {
	issue, _, err := p.key(name)
	if err != nil {
		return err
	}
	if v, _ := p.loop.View(issue); v.State != reconcile.Failed {
		return fmt.Errorf("there is nothing to try again: it is %s", v.State)
	}
	p.loop.Retry(issue)
	return nil
}

// unpushedFor is how long it is not looked at again what is not pushed.
const unpushedFor = 10 * time.Second

// unpushed is what Work said of that last.
type unpushed struct {
	at time.Time
	n  int
}

// Unpushed implements [web.Pods].
func (p webPods) Unpushed(ctx context.Context, name string) (int, error) {
	if known, ok := p.unpushed.Load(name); ok {
		if u, _ := known.(unpushed); time.Since(u.at) < unpushedFor {
			return u.n, nil
		}
	}
	work, err := p.Work(ctx, name)
	n := len(work.Unpushed) + len(work.Uncommitted)
	p.unpushed.Store(name, unpushed{time.Now(), n})
	return n, err
}

// work is what is saved of a pod's agent, and its newest snapshot.
func (p webPods) work(ctx context.Context, name string) (foundWork, mirror.Snapshot, savedView, error) {
	issue, pod, err := p.key(name)
	if err != nil {
		return foundWork{}, mirror.Snapshot{}, savedView{}, err
	}
	account, err := pods.ReadAccount(p.pods.manager.UsageDir(pods.Key(pod))) // it outlives the pod
	if errors.Is(err, fs.ErrNotExist) {
		err = mirror.ErrNothingSaved
	}
	if err != nil {
		return foundWork{}, mirror.Snapshot{}, savedView{}, err
	}
	work := p.pods.savedWork(account.RepoID, issue)
	snap, view, err := work.newest(ctx)
	return work, snap, view, err
}

// Work implements [web.Pods].
func (p webPods) Work(ctx context.Context, name string) (web.Work, error) {
	work, snap, view, err := p.work(ctx, name)
	if errors.Is(err, mirror.ErrNothingSaved) {
		return web.Work{}, nil
	}
	if err != nil {
		return web.Work{}, err
	}
	out := web.Work{At: snap.At, NotSaved: view.notSavedLines()}
	git, err := work.Status(ctx, snap)
	if err != nil {
		return out, err
	}
	out.Branch, out.Ahead, out.Behind = git.Branch, git.Ahead, git.Behind
	for _, c := range git.Unpushed {
		out.Unpushed = append(out.Unpushed, c.Subject)
	}
	for _, c := range git.Changes {
		out.Uncommitted = append(out.Uncommitted, c.How+" "+c.Path)
	}
	if git.Base == "" {
		return out, nil
	}
	var stat strings.Builder
	err = work.Diff(ctx, &limited{&stat, 8 << 10}, git.Base, snap.ID, "--stat=80")
	out.Stat = stat.String()
	return out, err
}

// maxDiff bounds a diff on a page, in bytes.
const maxDiff = 1 << 20

// Diff implements [web.Pods].
func (p webPods) Diff(ctx context.Context, name string) (string, error) {
	work, snap, _, err := p.work(ctx, name)
	if errors.Is(err, mirror.ErrNothingSaved) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	base, err := work.Base(ctx, snap, "")
	if err != nil {
		return "", err
	}
	var text strings.Builder
	err = work.Diff(ctx, &limited{&text, maxDiff}, base, snap.ID)
	return text.String(), err
}

// facts answers GET …/facts with what the pod's page tells.
func (s *service) facts(w http.ResponseWriter, r *http.Request, k reconcile.Key) {
	v, ok := s.view(k)
	var facts []web.Fact
	if ok {
		facts, ok = s.site.Facts(r.Context(), webPods{s}.podName(v))
	}
	if !ok {
		http.Error(w, "no pod and no labeled issue "+k.String(), http.StatusNotFound)
		return
	}
	s.json(w, facts)
}

// openPage answers POST /api/open with a URL that lets a browser in.
func (s *service) openPage(w http.ResponseWriter, r *http.Request) {
	name := ""
	if issue := r.URL.Query().Get("issue"); issue != "" {
		for _, v := range (webPods{s}).views() {
			if v.Issue == issue {
				name = webPods{s}.podName(v)
			}
		}
		if name == "" {
			http.Error(w, "no pod and no labeled issue "+issue, http.StatusNotFound)
			return
		}
	}
	fmt.Fprintln(w, s.site.Open(name))
}

func (a *app) openCmd() *cobra.Command {
	var token bool
	var editor string
	cmd := &cobra.Command{
		Use: "open [POD]", Short: "Open the page of an agent, or of all, in a browser, or a workspace in an editor", Args: args(cobra.MaximumNArgs(1)),
		Long: "Print a link to the page of an issue's agent, or to the list of all, and open it where there\nis a desktop. The link lets a browser in, once, within a minute; it stays logged in then.\n\nWith --editor it is an editor of this machine that opens the pod's workspace by ssh\n(devaipod ssh-config).",
		RunE: func(cmd *cobra.Command, rest []string) error {
			if token {
				text, err := a.webToken()
				if err == nil {
					fmt.Fprintln(a.out, text)
				}
				return err
			}
			if editor != "" && len(rest) == 0 {
				return usagef("--editor wants a pod: devaipod open --editor %s owner/repo#3", editor)
			}
			if editor != "" {
				return a.openEditor(cmd.Context(), rest[0], editor)
			}
			path := "/api/open"
			if len(rest) > 0 {
				k, err := a.issueKey(cmd.Context(), rest[0])
				if err != nil {
					return err
				}
				if _, err := a.knownView(cmd.Context(), k); err != nil {
					return err
				}
				path += "?issue=" + url.QueryEscape(k.String())
			}
			return a.openLink(cmd.Context(), path)
		},
	}
	cmd.Flags().BoolVar(&token, "token", false, "print the token that the pages' login asks for instead")
	cmd.Flags().StringVar(&editor, "editor", "", "the `editor` that opens the pod's workspace: "+editorNames())
	return cmd
}

func (a *app) openLink(ctx context.Context, path string) error {
	resp, err := a.api().do(ctx, http.MethodPost, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	link, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return err
	}
	return a.browse(ctx, string(bytes.TrimSpace(link)))
}

// browse prints a URL, and opens it where there is a desktop.
func (a *app) browse(ctx context.Context, link string) error {
	fmt.Fprintln(a.out, link)
	if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
		return nil // nothing to open it with; the URL is what there is
	}
	if err := exec.CommandContext(ctx, "xdg-open", link).Start(); err != nil {
		return fmt.Errorf("opening a browser: %w; the URL is above", err)
	}
	return nil
}
