package panel

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// loginFor is how long a token is good.
	loginFor = 12 * time.Hour
	// loginWithin is how long a person may take to log in.
	loginWithin = 10 * time.Minute
	// forgeWithin is how long the forge may take for one answer.
	forgeWithin = 30 * time.Second
	callback    = "/callback"
	loginCookie = "devaipod-login"
	// scope is the least that the forge gives: who it is.
	scope = "openid read:user"
)

// Callback is the URL to which the forge sends people back, for the application that a
// panel is there.
func Callback(listen string) (string, error) {
	host, err := hostOf(listen)
	return "http://" + host + callback, err
}

// A claim is what a token says.
type claim struct {
	Person

	Till int64 `json:"till"` // seconds
}

// token is one for a person.
func (p *Panel) token(who Person) (string, error) {
	b, err := json.Marshal(claim{who, p.cfg.Now().Add(loginFor).Unix()})
	if err != nil {
		return "", err
	}
	text := base64.RawURLEncoding.EncodeToString(b)
	return text + "." + p.sign(text), nil
}

// sign is a token's proof. What it is for is part of it: the pages' cookies are signed
// with the same key.
func (p *Panel) sign(text string) string {
	mac := hmac.New(sha256.New, []byte(p.cfg.Key))
	mac.Write([]byte("devaipod panel\x00" + text))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// person is whose token it is, false when it is none that is good.
func (p *Panel) person(token string) (Person, bool) {
	text, proof, _ := strings.Cut(token, ".")
	if !hmac.Equal([]byte(proof), []byte(p.sign(text))) {
		return Person{}, false
	}
	var c claim
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || json.Unmarshal(b, &c) != nil || p.cfg.Now().Unix() >= c.Till || c.ID <= 0 || c.Name == "" {
		return Person{}, false
	}
	return c.Person, true
}

// logIn sends a window to the forge. A cookie, for this host and the way back alone, binds
// what comes of it to this browser (RFC 6749, 10.12).
func (p *Panel) logIn(w http.ResponseWriter, r *http.Request) {
	state, verifier := rand.Text(), rand.Text()+rand.Text()
	http.SetCookie(w, &http.Cookie{Name: loginCookie, Value: state + "." + verifier, Path: callback, MaxAge: int(loginWithin / time.Second), HttpOnly: true, SameSite: http.SameSiteLaxMode})
	sum := sha256.Sum256([]byte(verifier))
	http.Redirect(w, r, p.cfg.Forge+"/login/oauth/authorize?"+url.Values{
		"client_id": {p.cfg.Client}, "redirect_uri": {p.back()}, "response_type": {"code"}, "scope": {scope}, "state": {state},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"},
	}.Encode(), http.StatusSeeOther)
}

func (p *Panel) back() string { return "http://" + p.host + callback }

// callback is where the forge sends the window back.
func (p *Panel) callback(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: loginCookie, Path: callback, MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	q := r.URL.Query()
	state, verifier := "", ""
	if c, err := r.Cookie(loginCookie); err == nil {
		state, verifier, _ = strings.Cut(c.Value, ".")
	}
	switch {
	case state == "" || subtle.ConstantTimeCompare([]byte(state), []byte(q.Get("state"))) != 1:
		p.page(w, http.StatusForbidden, handedOver{Why: "This login was not begun in this browser, or took too long."})
		return
	case q.Get("error") != "" || q.Get("code") == "":
		p.page(w, http.StatusForbidden, handedOver{Why: "The forge did not let the panel know who you are."})
		return
	}
	who, err := p.whose(r.Context(), q.Get("code"), verifier)
	token := ""
	if err == nil {
		token, err = p.token(who)
	}
	if err != nil {
		p.cfg.Log.Warn("a login to the panel failed", "err", err)
		p.page(w, http.StatusBadGateway, handedOver{Why: "The forge does not say who you are; the service's log has why."})
		return
	}
	p.cfg.Log.Info("logged in to the panel", "who", who.Name)
	p.page(w, http.StatusOK, handedOver{Token: token, User: who.Name, Forge: p.origin})
}

// whose asks the forge who a code is of. The forge's token is forgotten then.
func (p *Panel) whose(ctx context.Context, code, verifier string) (Person, error) {
	form := url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {p.back()}, "code_verifier": {verifier}, "client_id": {p.cfg.Client}, "client_secret": {p.cfg.Secret}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.cfg.Forge+"/login/oauth/access_token", strings.NewReader(form.Encode()))
	if err != nil {
		return Person{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	var got struct {
		Token string `json:"access_token"`
	}
	if err := p.ask(req, &got); err != nil {
		return Person{}, err
	}
	if got.Token == "" {
		return Person{}, errors.New("the forge answered without a token")
	}
	if req, err = http.NewRequestWithContext(ctx, http.MethodGet, p.cfg.Forge+"/login/oauth/userinfo", nil); err != nil {
		return Person{}, err
	}
	req.Header.Set("Authorization", "Bearer "+got.Token)
	var info struct {
		ID   string `json:"sub"`
		Name string `json:"preferred_username"`
	}
	if err := p.ask(req, &info); err != nil {
		return Person{}, err
	}
	id, err := strconv.ParseInt(info.ID, 10, 64)
	if err != nil || id <= 0 || !name.MatchString(info.Name) {
		return Person{}, fmt.Errorf("the forge says it is %.100q, number %.100q", info.Name, info.ID)
	}
	return Person{id, info.Name}, nil
}

// ask asks the forge for JSON.
func (p *Panel) ask(req *http.Request, out any) error {
	req.Header.Set("Accept", "application/json")
	resp, err := p.forge.Do(req)
	if err != nil {
		return fmt.Errorf("asking the forge: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("reading the forge's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var why struct {
			Error string `json:"error_description"`
		}
		_ = json.Unmarshal(b, &why) // its own words are a help, no more
		return fmt.Errorf("the forge answered %s to %s: %.200q", resp.Status, req.URL.Path, why.Error)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("reading the forge's answer to %s: %w", req.URL.Path, err)
	}
	return nil
}

// handedOver is what the window ends with: a token for the page that opened it, if that is
// the forge's, or why there is none.
type handedOver struct{ Token, User, Forge, Why string }

var handOverPage = template.Must(template.New("").Parse(`<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>devaipod</title>{{if .Token}}<script src="/login.js" defer></script>{{end}}</head>
<body data-token="{{.Token}}" data-user="{{.User}}" data-forge="{{.Forge}}">
<p>{{or .Why "You are logged in. Close this window; if the panel does not show it, log in there once more."}}</p>
</body>
</html>
`))

func (p *Panel) page(w http.ResponseWriter, status int, h handedOver) {
	var b bytes.Buffer
	if err := handOverPage.Execute(&b, h); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // the browser is gone: nobody to tell
}

// handOver is that page's script.
func handOver(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
	_, _ = io.WriteString(w, `"use strict";
const { token, user, forge } = document.body.dataset;
if (window.opener) {
  window.opener.postMessage({ devaipod: { token, user } }, forge);
  window.close();
}
`)
}
