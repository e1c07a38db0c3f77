package main

import (
	"net/http"
	"net/http/httputil"
	"net/url"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// events passes the pod-api's event stream on to the command line.
func (s *service) events(w http.ResponseWriter, r *http.Request, k reconcile.Key) {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL = &url.URL{Scheme: "http", Host: "pod", Path: "/events", RawQuery: r.URL.RawQuery}
		},
		Transport:     s.pods.control(k).Transport(),
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "the pod of "+k.String()+" does not run: "+err.Error(), http.StatusServiceUnavailable)
		},
	}
	proxy.ServeHTTP(w, r)
}
