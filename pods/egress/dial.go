package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// maxAddresses bounds how many addresses of one name are looked at.
const maxAddresses = 16

// addresses are those of a target. All of them are fit to be reached, or it is
// refused.
func (p *Proxy) addresses(ctx context.Context, to target) ([]netip.Addr, error) {
	if to.host.name == "" {
		return []netip.Addr{to.host.ip}, nil // enter has looked at it
	}
	all, err := p.cfg.Resolve(ctx, to.host.name+".")
	if err != nil {
		return nil, unanswered(to, whyNoAddress(err))
	}
	if len(all) == 0 {
		return nil, unanswered(to, "the name has no address")
	}
	for i, ip := range all {
		if all[i] = ip.Unmap(); p.cfg.Reachable(all[i]) {
			continue
		}
		return nil, notPublic(to, "its name leads to "+ip.String()+", which is no address of the public internet")
	}
	return all[:min(len(all), maxAddresses)], nil
}

func whyNoAddress(err error) string {
	dns := new(net.DNSError)
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return "there is no such name"
	case errors.Is(err, context.DeadlineExceeded), dns.IsTimeout:
		return "looking its name up takes too long"
	}
	return "its name can't be looked up (" + err.Error() + ")"
}

// dial connects to one of the addresses of to, and to no other. An error of ours
// is a [refusal].
func (p *Proxy) dial(ctx context.Context, to target) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.DialWithin)
	defer cancel()
	all, err := p.addresses(ctx, to)
	if err != nil {
		return nil, err
	}
	conn, err := p.race(ctx, alternate(all), to.port)
	if err != nil {
		return nil, unanswered(to, whyNoConn(err))
	}
	return conn, nil
}

func whyNoConn(err error) string {
	timeout, ok := err.(interface{ Timeout() bool })
	if ok && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return "it does not answer"
	}
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return err.Error()
}

// alternate puts the families in turn, IPv6 first (RFC 8305, 4).
func alternate(all []netip.Addr) []netip.Addr {
	var six, four, turns []netip.Addr
	for _, ip := range all {
		if ip.Is4() {
			four = append(four, ip)
		} else {
			six = append(six, ip)
		}
	}
	for i := range max(len(six), len(four)) {
		turns = append(turns, six[min(i, len(six)):min(i+1, len(six))]...)
		turns = append(turns, four[min(i, len(four)):min(i+1, len(four))]...)
	}
	return slices.Clip(turns)
}

// headStart is what an address has before the next is tried beside it (RFC 8305, 5).
const headStart = 250 * time.Millisecond

// race takes the first that answers.
func (p *Proxy) race(ctx context.Context, all []netip.Addr, port uint16) (net.Conn, error) {
	if len(all) == 1 {
		return p.cfg.Dial(ctx, netip.AddrPortFrom(all[0], port))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	running, started := 0, 0
	start := func() {
		to := netip.AddrPortFrom(all[started], port)
		started, running = started+1, running+1
		go func() {
			conn, err := p.cfg.Dial(ctx, to)
			results <- result{conn, err}
		}()
	}
	var failed error
	for start(); running > 0; {
		var wait <-chan time.Time
		if started < len(all) {
			wait = time.After(headStart)
		}
		select {
		case <-wait:
			start()
		case r := <-results:
			running--
			if r.err == nil {
				cancel()
				for ; running > 0; running-- { // the others end at once
					if late := <-results; late.err == nil {
						late.conn.Close()
					}
				}
				return r.conn, nil
			}
			if failed == nil {
				failed = r.err
			}
			if started < len(all) && ctx.Err() == nil {
				start()
			}
		}
	}
	return nil, fmt.Errorf("none of %d addresses answers: %w", len(all), failed)
}
