package lab

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// zone is what the resolver knows for good.
var zone = map[string][]string{
	AllowedName:                       {AllowedAddr, Allowed6},
	DeniedName:                        {DeniedAddr, Denied6},
	"www." + AllowedName:              {AllowedAddr},
	ModelName:                         {ModelAddr},
	MetadataName:                      {MetadataAddr},
	"loopback.test":                   {"127.0.0.1"},
	"linklocal-mapped." + AllowedName: {"::ffff:" + MetadataAddr},
	SoundName:                         {AllowedAddr},
	OtherName:                         {AllowedAddr},
	ExpiredName:                       {AllowedAddr},
	WrongName:                         {AllowedAddr},
	CutName:                           {AllowedAddr},
}

// resolver answers questions by UDP and TCP (RFC 1035).
func (l *Lab) resolver() error {
	at := net.JoinHostPort(ResolverAddr, "53")
	udp, err := net.ListenPacket("udp", at)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	tcp, err := net.Listen("tcp", at)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	l.closers = append(l.closers, udp.Close, tcp.Close)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return // closed
			}
			if answer := l.answer(buf[:n]); answer != nil {
				_, _ = udp.WriteTo(answer, from) // lost, as packets are
			}
		}
	}()
	go func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return // closed
			}
			go l.answerTCP(conn)
		}
	}()
	return nil
}

func (l *Lab) answerTCP(conn net.Conn) {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return
	}
	for {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		question := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, question); err != nil {
			return
		}
		answer := l.answer(question)
		if answer == nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// answer makes the answer to a packed question, nil to one that is none.
func (l *Lab) answer(packed []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(packed) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	if l.see("dns " + name); l.isMute() {
		return nil
	}
	m.Header = dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true, RecursionDesired: m.RecursionDesired, RecursionAvailable: true}
	m.Answers, m.Authorities, m.Additionals = nil, nil, nil
	addrs, known := l.resolve(name, q.Type)
	if !known {
		m.RCode = dnsmessage.RCodeNameError
	}
	for _, a := range addrs {
		h := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}
		switch {
		case q.Type == dnsmessage.TypeA && a.Is4():
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
		case q.Type == dnsmessage.TypeAAAA && !a.Is4():
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	if q.Type == dnsmessage.TypeTXT {
		m.RCode = dnsmessage.RCodeSuccess
		m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}, Body: &dnsmessage.TXTResource{TXT: []string{l.Mark("dns")}}}}
	}
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	return out
}

func (l *Lab) isMute() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mute
}

func (l *Lab) resolve(name string, kind dnsmessage.Type) (addrs []netip.Addr, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if turns := l.rebind[name]; len(turns) > 0 {
		if kind != dnsmessage.TypeA {
			return nil, true
		}
		l.turns[name]++
		return turns[(l.turns[name]-1)%len(turns):][:1], true
	}
	for _, a := range zone[name] {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	return addrs, len(addrs) > 0
}
