package egress_test

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"testing"
)

// Both ends of a tunnel see the end of a proxy that is killed, and one that is
// started in its place serves at once.
func TestAProxyThatIsKilledLeavesNothingOpen(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan error, 2)
	go func() {
		for range 2 {
			c, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			echo(c)
			ended <- c.Close()
		}
	}()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		proxy := exec.Command(os.Args[0])
		proxy.Env = append(os.Environ(), benchAt+"="+addr, "TEST_EGRESS_PORT="+port)
		proxy.Stderr = os.Stderr
		if err := proxy.Start(); err != nil {
			t.Fatal(err)
		}
		var c net.Conn
		eventually(t, "the proxy listens", func() bool {
			c, err = net.Dial("tcp", addr)
			return err == nil
		})
		if err != nil {
			t.Fatal(errors.Join(err, proxy.Process.Kill()))
		}
		say(c, "CONNECT "+benchHost+":"+port+" HTTP/1.1\r\nHost: x\r\n"+authorization+"\r\nping")
		r := bufio.NewReader(c)
		resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
		if err != nil || resp.StatusCode != 200 {
			t.Error(resp, err)
		}
		if got, err := r.Peek(4); string(got) != "ping" {
			t.Errorf("%q, %v", got, err)
		}
		must(t, proxy.Process.Kill())
		if err := proxy.Wait(); err == nil {
			t.Error("it was not killed")
		}
		if b, err := r.Peek(5); err == nil {
			t.Errorf("after the kill the client reads %q", b)
		}
		must(t, <-ended)
		c.Close()
	}
}
