package main_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/creack/pty"
)

// patienceAtTerminal is how long a person waits for a word.
const patienceAtTerminal = 60 * time.Second

// terminal runs a program in a terminal, and does what a file says, line by line:
// "size WxH" makes the terminal so large; "wait REGEXP" until the program has written
// that, after what was waited for before; "send TEXT" types a line; "keys HEX..."
// types bytes; "code N" is how it must end.
func (c *call) terminal() (err error) {
	if len(c.args) < 2 {
		return errors.New("usage: terminal FILE COMMAND ARG…")
	}
	program := c.args[1]
	if program == "devaipod" {
		program = filepath.Join(c.Bin, program)
	}
	cmd := exec.CommandContext(c.ctx, program, c.args[2:]...)
	cmd.Dir, cmd.Env = c.ts.MkAbs("."), []string{"TERM=xterm-test"}
	for _, name := range []string{"PATH", "HOME"} {
		cmd.Env = append(cmd.Env, name+"="+c.env(name))
	}
	cmd.Env = append(cmd.Env, c.Env()...)
	tty, err := pty.Start(cmd)
	if err != nil {
		return err
	}
	screen := &screen{}
	screen.cond = sync.NewCond(&screen.mu)
	var reading sync.WaitGroup
	reading.Go(func() { screen.read(tty) })
	defer func() {
		err = errors.Join(err, tty.Close())
		reading.Wait()
		c.printf("%q\n", screen.all)
	}()
	for line := range strings.Lines(c.ts.ReadFile(c.args[0])) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if err := screen.do(tty, cmd, word, rest); err != nil {
			return errors.Join(fmt.Errorf("%s %s: %w", word, rest, err), cmd.Process.Kill())
		}
	}
	return nil
}

// A screen is what a program has written to a terminal.
type screen struct {
	mu    sync.Mutex
	cond  *sync.Cond
	all   []byte
	seen  int // up to where it was waited for
	ended bool
}

func (s *screen) read(tty *os.File) {
	b := make([]byte, 4096)
	for {
		n, err := tty.Read(b)
		s.mu.Lock()
		s.all = append(s.all, b[:n]...)
		s.ended = err != nil
		s.cond.Broadcast()
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *screen) do(tty *os.File, cmd *exec.Cmd, word, rest string) error {
	switch word {
	case "size":
		var w, h uint16
		if _, err := fmt.Sscanf(rest, "%dx%d", &w, &h); err != nil {
			return err
		}
		return pty.Setsize(tty, &pty.Winsize{Cols: w, Rows: h})
	case "wait":
		return s.wait(rest)
	case "send":
		_, err := tty.WriteString(rest + "\r")
		return err
	case "keys":
		b, err := hex.DecodeString(strings.ReplaceAll(rest, " ", ""))
		if err == nil {
			_, err = tty.Write(b)
		}
		return err
	case "code":
		want, err := strconv.Atoi(rest)
		if err != nil {
			return err
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
			return err
		}
		if got := cmd.ProcessState.ExitCode(); got != want {
			return fmt.Errorf("it ended with %d", got)
		}
		return nil
	}
	return errors.New("no such word")
}

var escapes = regexp.MustCompile("\x1b\\[[0-9;?]*[a-zA-Z]|\x1b\\][^\x07]*\x07")

func (s *screen) wait(pattern string) error {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	late := time.AfterFunc(patienceAtTerminal, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ended = true
		s.cond.Broadcast()
	})
	defer late.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		plain := escapes.ReplaceAllFunc(s.all[s.seen:], func(b []byte) []byte { return bytes.Repeat([]byte{0}, len(b)) })
		if at := re.FindIndex(plain); at != nil {
			s.seen += at[1]
			return nil
		}
		if s.ended {
			return errors.New("it never wrote that")
		}
		s.cond.Wait()
	}
}
