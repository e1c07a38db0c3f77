package testkit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Remove ends and removes all that is in the world: containers, networks,
// processes, mounts, bridges, firewall rules and the directory. What is not
// there is no error, so it may be called again, and on a world that was killed
// at any point. Nothing is looked for by a program's name.
func (w *World) Remove(ctx context.Context) error {
	var errs []error
	var namespaces []string
	fences, err := w.fences(ctx)
	errs = append(errs, err)
	if w.made() {
		namespaces = w.namespaces(ctx)
		for _, args := range [][]string{
			{"pod", "rm", "--all", "--force", "--time", "0"},
			{"rm", "--all", "--force", "--time", "0"},
			{"volume", "rm", "--all", "--force"},
			{"secret", "rm", "--all"},
			{"network", "prune", "--force"},
		} {
			_, err := w.Podman(ctx, args...)
			errs = append(errs, err)
		}
	}
	errs = append(errs, w.endProcesses(ctx))
	errs = append(errs, w.unmount(namespaces))
	errs = append(errs, w.removeBridges(ctx), w.removeRules(ctx), removeFences(ctx, fences), w.removeFiles(ctx))
	if left, err := w.Left(ctx); err != nil || len(left) > 0 {
		return errors.Join(append(errs, err, fmt.Errorf("left behind: %s", strings.Join(left, ", ")))...)
	}
	// Errors on the way to a place where nothing is left are no errors.
	return nil
}

// unmount undoes the world's mounts and removes its network namespaces.
func (w *World) unmount(namespaces []string) error {
	mounts, err := w.mounts(namespaces)
	errs := []error{err}
	for _, m := range mounts {
		if err := syscall.Unmount(m, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", m, err))
		}
	}
	for _, n := range namespaces {
		if err := os.Remove(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeFiles removes the directory. An ordinary user's containers leave files
// of users that only podman can act as.
func (w *World) removeFiles(ctx context.Context) error {
	var errs []error
	if w.made() && os.Getuid() != 0 {
		// Where it has mounts of its own, empty directories stay, for now.
		_, err := w.Podman(ctx, "unshare", "rm", "-rf", w.path("g"), w.path("x"), w.path("t"))
		// What holds the user's namespace has to end, and with it the mounts.
		errs = append(errs, err, w.endProcesses(ctx))
	}
	if err := os.RemoveAll(w.Dir); err != nil {
		return errors.Join(append(errs, err)...)
	}
	return nil
}

// Left lists what is still there of the world, in words.
func (w *World) Left(ctx context.Context) ([]string, error) {
	var left []string
	if _, err := os.Lstat(w.Dir); err == nil {
		left = append(left, "directory "+w.Dir)
	}
	pids, err := w.Processes()
	if err != nil {
		return left, err
	}
	for _, pid := range pids {
		left = append(left, fmt.Sprintf("process %d", pid))
	}
	mounts, err := w.mounts(nil)
	if err != nil {
		return left, err
	}
	for _, m := range mounts {
		left = append(left, "mount "+m)
	}
	bridges, err := w.bridges()
	if err != nil {
		return left, err
	}
	for _, b := range bridges {
		left = append(left, "network interface "+b)
	}
	fences, err := w.fences(ctx)
	if err != nil {
		return left, err
	}
	for _, f := range fences {
		left = append(left, "packet filter's table "+f)
	}
	for _, table := range []string{"nat", "filter"} {
		rules, _, err := w.rules(ctx, table)
		if err != nil {
			return left, err
		}
		for _, r := range rules {
			left = append(left, "firewall rule "+strings.Join(r, " "))
		}
	}
	return left, nil
}

// namespaces are the network namespaces of the world's containers. A podman
// that does not answer has none that we could know of.
func (w *World) namespaces(ctx context.Context) []string {
	ids, err := w.Podman(ctx, "ps", "--all", "--quiet")
	if err != nil || strings.TrimSpace(ids) == "" {
		return nil
	}
	out, err := w.Podman(ctx, append([]string{"inspect", "--format", "{{.NetworkSettings.SandboxKey}}"}, strings.Fields(ids)...)...)
	if err != nil {
		return nil
	}
	var found []string
	for _, ns := range strings.Fields(out) {
		if strings.HasPrefix(ns, "/run/netns/netns-") || strings.HasPrefix(ns, "/run/user/") {
			found = append(found, ns)
		}
	}
	return found
}

// Processes are, by pid, those that were started with this world's environment
// and those whose root is one of its containers'; this process and those that
// started it are never among them.
func (w *World) Processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	above, ours := ancestors(), w.Env()
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || slices.Contains(above, pid) {
			continue
		}
		// Gone by now, or of another user, which one of a container may be.
		env, err := os.ReadFile("/proc/" + e.Name() + "/environ")
		// Any will do: podman gives not all of them to what keeps its execs' ends.
		marked := err == nil && slices.ContainsFunc(bytes.Split(env, []byte{0}), func(kv []byte) bool { return slices.Contains(ours, string(kv)) })
		if marked || w.contains(pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// contains tells whether a process has its root in the world's storage: one of
// a container whose podman was killed.
func (w *World) contains(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return false // gone, or not ours to read
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == "/" {
			return strings.Contains(line, w.path("g")+"/")
		}
	}
	return false
}

// ancestors are this process and those above it.
func ancestors() []int {
	var pids []int
	for pid := os.Getpid(); pid > 1; {
		pids = append(pids, pid)
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			break
		}
		// "pid (name) state ppid …"; the name may hold anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 {
			break
		}
		if pid, err = strconv.Atoi(fields[1]); err != nil {
			break
		}
	}
	return pids
}

// endProcesses asks the world's processes to end, and after three seconds
// makes them.
func (w *World) endProcesses(ctx context.Context) error {
	for try := 0; ; try++ {
		pids, err := w.Processes()
		if err != nil || len(pids) == 0 {
			return err
		}
		signal := syscall.SIGTERM
		if try >= 30 {
			signal = syscall.SIGKILL
		}
		if try == 0 || try >= 30 {
			for _, pid := range pids {
				if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
					return fmt.Errorf("ending process %d: %w", pid, err)
				}
			}
		}
		if try > 60 {
			return fmt.Errorf("processes %v do not end", pids)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// mounts are those at or below the world's directory and on paths, innermost
// first.
func (w *World) mounts(paths []string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		at := unescape.Replace(f[4])
		if at == w.Dir || strings.HasPrefix(at, w.Dir+"/") || slices.Contains(paths, at) {
			found = append(found, at)
		}
	}
	slices.Reverse(found)
	return found, nil
}

// bridges are the interfaces that have an address out of the world's pool.
func (w *World) bridges() ([]string, error) {
	if !w.pool.IsValid() {
		return nil, nil
	}
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away meanwhile
		}
		for _, a := range addrs {
			if ip, ok := a.(*net.IPNet); ok && w.owns(ip.IP) {
				found = append(found, i.Name)
				break
			}
		}
	}
	return found, nil
}

func (w *World) owns(ip net.IP) bool {
	v4, pool := ip.To4(), w.pool.Addr().As4()
	return v4 != nil && v4[0] == pool[0] && v4[1] == pool[1]
}

func (w *World) removeBridges(ctx context.Context) error {
	names, err := w.bridges()
	for _, n := range names {
		if out, e := exec.CommandContext(ctx, "ip", "link", "delete", "dev", n).CombinedOutput(); e != nil {
			err = errors.Join(err, fmt.Errorf("removing the interface %s: %w: %s", n, e, bytes.TrimSpace(out)))
		}
	}
	return err
}

// rules are a table's rules that name an address of the world's pool, each as
// iptables's arguments after -A, and the chains that are the world's alone.
// A user who may not read the firewall has none there.
func (w *World) rules(ctx context.Context, table string) (rules [][]string, chains []string, err error) {
	if !w.pool.IsValid() || os.Getuid() != 0 {
		return nil, nil, nil
	}
	out, err := exec.CommandContext(ctx, "iptables", "-w", "-t", table, "-S").Output()
	if err != nil {
		return nil, nil, fmt.Errorf("reading the firewall's table %s: %w", table, err)
	}
	pool := w.pool.Addr().As4()
	prefix := fmt.Sprintf(" %d.%d.", pool[0], pool[1])
	shared := map[string]bool{} // netavark names chains by the network's name, which others may have too
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		line := lines.Text()
		rule, isRule := strings.CutPrefix(line, "-A ")
		if !isRule {
			continue
		}
		f := strings.Fields(rule)
		if !strings.Contains(line, prefix) {
			shared[f[0]] = shared[f[0]] || privateAddr.MatchString(line)
			continue
		}
		rules = append(rules, f)
		// netavark gives each network a chain NETAVARK-<hash>.
		if strings.HasPrefix(f[0], "NETAVARK-") && !strings.HasPrefix(f[0], "NETAVARK-HOSTPORT") && !slices.Contains(chains, f[0]) {
			chains = append(chains, f[0])
		}
	}
	return rules, slices.DeleteFunc(chains, func(c string) bool { return shared[c] }), nil
}

// fences are the tables of the packet filter in which services of this world, that
// were killed, have fenced off their pods' networks: those that name an interface
// of one of them, all but its last eight digits.
func (w *World) fences(ctx context.Context) ([]string, error) {
	files, err := filepath.Glob(w.path("net/*.json"))
	if err != nil || os.Getuid() != 0 {
		return nil, err // without root they are in a namespace that ends
	}
	var prefixes []string
	for _, f := range files {
		text, err := os.ReadFile(f)
		var network struct {
			Interface string `json:"network_interface"`
		}
		if err != nil || json.Unmarshal(text, &network) != nil {
			continue // being removed
		}
		if len(network.Interface) == 15 && strings.HasPrefix(network.Interface, "dvp") {
			prefixes = append(prefixes, `"`+network.Interface[:7]+`*"`)
		}
	}
	if len(prefixes) == 0 {
		return nil, nil
	}
	list, err := exec.CommandContext(ctx, "nft", "list", "tables", "inet").Output()
	if err != nil {
		return nil, fmt.Errorf("reading the packet filter: %w", err)
	}
	var found []string
	for line := range strings.Lines(string(list)) {
		name, ours := strings.CutPrefix(strings.TrimSpace(line), "table inet devaipod_")
		if !ours {
			continue
		}
		rules, err := exec.CommandContext(ctx, "nft", "list", "table", "inet", "devaipod_"+name).Output()
		if err == nil && slices.ContainsFunc(prefixes, func(p string) bool { return bytes.Contains(rules, []byte(p)) }) {
			found = append(found, "devaipod_"+name)
		}
	}
	return found, nil
}

func removeFences(ctx context.Context, tables []string) error {
	var errs []error
	for _, t := range tables {
		// The service may have been quicker.
		if out, err := exec.CommandContext(ctx, "nft", "delete", "table", "inet", t).CombinedOutput(); err != nil && !bytes.Contains(out, []byte("No such file")) {
			errs = append(errs, fmt.Errorf("removing the packet filter's table %s: %w: %s", t, err, bytes.TrimSpace(out)))
		}
	}
	return errors.Join(errs...)
}

// privateAddr finds an address that a podman network may have.
var privateAddr = regexp.MustCompile(` (10|172|192)(\.\d+){3}[/: ]`)

// removeRules takes out the firewall rules that podman would have, had it not
// been killed.
func (w *World) removeRules(ctx context.Context) error {
	var errs []error
	for _, table := range []string{"nat", "filter"} {
		rules, chains, err := w.rules(ctx, table)
		errs = append(errs, err)
		for _, r := range rules {
			errs = append(errs, iptables(ctx, table, append([]string{"-D"}, r...)...))
		}
		for _, c := range chains {
			errs = append(errs, iptables(ctx, table, "-F", c))
			// What still jumps there keeps it; it is then empty and does nothing.
			if err := iptables(ctx, table, "-X", c); err != nil {
				continue
			}
		}
	}
	return errors.Join(errs...)
}

func iptables(ctx context.Context, table string, args ...string) error {
	out, err := exec.CommandContext(ctx, "iptables", append([]string{"-w", "-t", table}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("iptables %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
