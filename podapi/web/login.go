package web

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	cookieName = "devaipod"
	// loginFor is how long a browser stays logged in.
	loginFor = 30 * 24 * time.Hour
	// ticketFor is how long a ticket is good.
	ticketFor = time.Minute
	// maxTickets bounds those that nobody has used.
	maxTickets = 1000
)

// A login knows who may see what. Its methods are safe for concurrent use.
type login struct {
	token []byte
	now   func() time.Time

	mu      sync.Mutex
	tickets map[string]ticket
}

// A ticket lets a browser in at one host, once.
type ticket struct {
	host string
	till time.Time
}

func newLogin(token string) *login {
	return &login{token: []byte(token), now: time.Now, tickets: map[string]ticket{}}
}

// issue makes a ticket for a host.
func (l *login) issue(host string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for t, has := range l.tickets {
		if now.After(has.till) || len(l.tickets) >= maxTickets {
			delete(l.tickets, t)
		}
	}
	t := rand.Text()
	l.tickets[t] = ticket{host, now.Add(ticketFor)}
	return t
}

// redeem takes a ticket back.
func (l *login) redeem(t, host string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	has, ok := l.tickets[t]
	delete(l.tickets, t)
	return ok && has.host == host && l.now().Before(has.till)
}

// knows tells whether that is the token.
func (l *login) knows(token string) bool {
	return subtle.ConstantTimeCompare([]byte(token), l.token) == 1
}

// sign is a cookie's proof: of a host, until a time.
func (l *login) sign(host, till string) string {
	mac := hmac.New(sha256.New, l.token)
	mac.Write([]byte("devaipod cookie\x00" + host + "\x00" + till))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// admit gives a browser its cookie. Lax: it comes along when a link leads here, and
// with no other request that another site makes.
func (l *login) admit(w http.ResponseWriter, host string) {
	till := strconv.FormatInt(l.now().Add(loginFor).Unix(), 10)
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: till + "." + l.sign(host, till), Path: "/", MaxAge: int(loginFor / time.Second), HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

// dismiss takes the cookie away.
func dismiss(w http.ResponseWriter) {
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

// admitted tells whether a request's browser may see what is at its host.
func (l *login) admitted(r *http.Request, host string) bool {
	for _, c := range r.CookiesNamed(cookieName) {
		till, proof, ok := strings.Cut(c.Value, ".")
		end, err := strconv.ParseInt(till, 10, 64)
		if ok && err == nil && l.now().Unix() < end && hmac.Equal([]byte(proof), []byte(l.sign(host, till))) {
			return true
		}
	}
	return false
}
