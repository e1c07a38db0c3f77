package saver

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// pushes pushes when there is something, until ctx ends. While the service is
// away, what is saved waits in the store.
func (s *saver) pushes(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
			err := s.push(ctx)
			if err == nil || ctx.Err() != nil {
				break
			}
			s.log.Warn("the service does not take what was saved; trying again", "err", err, "in", wait)
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
		if err := s.store.upkeep(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("upkeep", "err", err)
		}
	}
}

// push makes the service's refs what ours are. It sends all objects that the
// service lacks; the agent's repository has no part in it.
func (s *saver) push(ctx context.Context) error {
	refs, err := s.store.refs(ctx)
	if err != nil || refs[s.work()] == "" {
		return err // nothing was ever saved
	}
	if !s.listed {
		if err := s.keepTheirs(ctx); err != nil {
			return fmt.Errorf("asking the service what it has: %w", err)
		}
		s.listed = true
	}
	spec := func(name string) string { return "+" + s.store.prefix + name + ":" + s.store.prefix + name }
	return s.store.run(ctx, call{
		args:  []string{"push", "--quiet", "--prune", "--no-verify", s.url, spec("work*"), spec("heads/*"), spec("stash/*")},
		limit: patience * s.cfg.GitTime,
	})
}

// takeUp goes on from the newest snapshot of a saver before us, of another volume:
// the agent's clone was made from it, so its objects can be had there. The service
// tells which one it is.
func (s *saver) takeUp(ctx context.Context) error {
	asking, cancel := context.WithTimeout(ctx, s.cfg.LastSave)
	defer cancel()
	theirs, err := s.advertised(asking)
	id := theirs[s.work()]
	if err != nil || id == "" {
		return err
	}
	if err := s.store.bring(ctx, []string{id}, s.plain(), patience*s.cfg.GitTime)[id]; err != nil {
		return err
	}
	if err := s.store.update(ctx, map[string]string{s.work(): id}); err != nil {
		return err
	}
	s.written = s.store.size()
	if err := s.readLast(ctx); err != nil { // no snapshot of ours
		return errors.Join(err, s.store.update(ctx, map[string]string{s.work(): ""}), s.readLast(ctx))
	}
	return nil
}

// keepTheirs keeps what else a saver before us, of another volume, has pushed for
// this issue: each commit that our refs don't hold gets a ref of its own there,
// kept/ID, before our refs take the place of those that named it.
func (s *saver) keepTheirs(ctx context.Context) error {
	theirs, err := s.advertised(ctx)
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for name := range theirs {
		if id, ok := strings.CutPrefix(name, s.store.prefix+"kept/"); ok {
			kept[id] = true
		}
	}
	create := map[string]string{}
	for name, id := range theirs {
		if strings.HasPrefix(name, s.store.prefix) && !kept[id] && !s.store.holds(ctx, id) {
			create[s.store.prefix+"kept/"+id] = id
		}
	}
	if len(create) == 0 {
		return ctx.Err()
	}
	return s.create(ctx, create)
}

// maxAdvertised bounds the service's list of refs, in bytes.
const maxAdvertised = 64 << 20

// advertised asks for the service's refs (gitprotocol-http(5), version 0).
func (s *saver) advertised(ctx context.Context) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.GitTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/info/refs?service=git-receive-pack", nil)
	if err != nil {
		return nil, err
	}
	body, err := ask(req)
	if err != nil {
		return nil, err
	}
	refs := map[string]string{}
	for r := bufio.NewReader(bytes.NewReader(body)); ; {
		line, err := packet(r)
		if errors.Is(err, io.EOF) {
			return refs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("the service's list of refs: %w", err)
		}
		line, _, _ = strings.Cut(line, "\x00") // what it can do
		if id, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " "); ok && validID(id) && name != ".have" {
			refs[name] = id
		}
	}
}

// packet reads one pkt-line (gitprotocol-common(5)); a flush is empty.
func packet(r io.Reader) (string, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return "", err
	}
	n, err := strconv.ParseUint(string(head), 16, 16)
	if err != nil || n > 0 && n < 4 {
		return "", fmt.Errorf("%q is no packet", head)
	}
	if n == 0 {
		return "", nil
	}
	text := make([]byte, n-4)
	if _, err := io.ReadFull(r, text); err != nil {
		return "", io.ErrUnexpectedEOF
	}
	return string(text), nil
}

// create makes refs at the service to commits that it has and we don't: a push
// with an empty pack (gitprotocol-pack(5), gitformat-pack(5)). git can't do it.
func (s *saver) create(ctx context.Context, refs map[string]string) error {
	var b bytes.Buffer
	capabilities := "\x00report-status"
	for name, id := range refs {
		line := fmt.Sprintf("%040d %s %s%s", 0, id, name, capabilities)
		fmt.Fprintf(&b, "%04x%s", len(line)+4, line)
		capabilities = ""
	}
	b.WriteString("0000")
	pack := []byte("PACK\x00\x00\x00\x02\x00\x00\x00\x00")
	sum := sha1.Sum(pack)
	b.Write(pack)
	b.Write(sum[:])
	ctx, cancel := context.WithTimeout(ctx, s.cfg.GitTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/git-receive-pack", &b)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-git-receive-pack-request")
	body, err := ask(req)
	if err != nil {
		return err
	}
	for r := bytes.NewReader(body); ; {
		line, err := packet(r)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("the service's answer: %w", err)
		case strings.HasPrefix(line, "ng ") || strings.HasPrefix(line, "unpack ") && strings.TrimSpace(line) != "unpack ok":
			return fmt.Errorf("keeping what was saved before: %q", strings.TrimSpace(line))
		}
	}
}

func ask(req *http.Request) ([]byte, error) {
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAdvertised))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("it answered %s: %.200q", resp.Status, body)
	}
	return body, err
}
