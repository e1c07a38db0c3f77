package egress

import (
	"encoding/xml"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// proxyUser is the name beside the token: programs hide passwords in what they
// print, and not names.
const proxyUser = "devaipod"

func proxyURL(addr, token string) string {
	u := url.URL{Scheme: "http", Host: addr}
	if token != "" {
		u.User = url.UserPassword(proxyUser, token)
	}
	return u.String()
}

// noProxy are hosts that are reached without the proxy: the container's own.
var noProxy = []string{"localhost", "127.0.0.1", "::1"}

// ProxyEnv gives the variables by which programs find the proxy at addr
// ("127.0.0.1:8099") and show it token, if that is not "". caFile, if not "", is a
// file of certificate authorities (PEM) to be trusted: those of the system and the
// gate's own, since for most programs it takes the place of the system's.
// docs/network.md tells which program reads what.
func ProxyEnv(addr, token, caFile string) map[string]string {
	proxy, direct := proxyURL(addr, token), strings.Join(noProxy, ",")
	env := map[string]string{}
	set := func(value string, names ...string) {
		for _, name := range names {
			env[name] = value
		}
	}
	set(proxy,
		"http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY",
		"npm_config_proxy", "npm_config_https_proxy", "YARN_HTTP_PROXY", "YARN_HTTPS_PROXY",
		"PIP_PROXY", "CARGO_HTTP_PROXY")
	set(direct, "no_proxy", "NO_PROXY", "npm_config_noproxy")
	set("1", "NODE_USE_ENV_PROXY") // Node.js 22.21 and 24 read the above with it
	set(javaOptions(addr), "JAVA_TOOL_OPTIONS")
	if caFile != "" {
		set(caFile,
			"SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "REQUESTS_CA_BUNDLE", "PIP_CERT",
			"NODE_EXTRA_CA_CERTS", "npm_config_cafile", "YARN_HTTPS_CA_FILE_PATH", "CARGO_HTTP_CAINFO",
			"AWS_CA_BUNDLE", "BUNDLE_SSL_CA_CERT", "DENO_CERT")
	}
	return env
}

// javaOptions are system properties (java.net, "Networking Properties"). There
// are none for the token: a program has to have an Authenticator, or, as Maven and
// Gradle do, settings of its own. By default Java shows no proxy a password by
// Basic before a tunnel; the empty list lets it.
func javaOptions(addr string) string {
	name, port, err := net.SplitHostPort(addr)
	if err != nil {
		name, port = addr, "80"
	}
	return fmt.Sprintf("-Dhttp.proxyHost=%[1]s -Dhttp.proxyPort=%[2]s -Dhttps.proxyHost=%[1]s -Dhttps.proxyPort=%[2]s"+
		" -Dhttp.nonProxyHosts=localhost|127.*|[::1] -Djdk.http.auth.tunneling.disabledSchemes=", name, port)
}

// ProxyFiles gives the contents of the files that some programs need beside
// [ProxyEnv], by path; "~/" stands for the user's home. Those with a token in them
// are for their user alone (0600).
func ProxyFiles(addr, token, caFile string) map[string]string {
	proxy := proxyURL(addr, token)
	name, port, err := net.SplitHostPort(addr)
	if err != nil {
		name, port = addr, "80"
	}
	apt := fmt.Sprintf("Acquire::http::Proxy %q;\nAcquire::https::Proxy %q;\n", proxy, proxy)
	if caFile != "" {
		apt += fmt.Sprintf("Acquire::https::CAInfo %q;\n", caFile)
	}
	gradle, login := "", ""
	for _, scheme := range []string{"http", "https"} {
		gradle += fmt.Sprintf("systemProp.%[1]s.proxyHost=%[2]s\nsystemProp.%[1]s.proxyPort=%[3]s\n", scheme, name, port)
		if token != "" {
			gradle += fmt.Sprintf("systemProp.%[1]s.proxyUser=%[2]s\nsystemProp.%[1]s.proxyPassword=%[3]s\n", scheme, proxyUser, token)
		}
	}
	gradle += "systemProp.http.nonProxyHosts=localhost|127.*\nsystemProp.jdk.http.auth.tunneling.disabledSchemes=\n"
	if token != "" {
		login = fmt.Sprintf("<username>%s</username><password>%s</password>", proxyUser, escapeXML(token))
	}
	maven := "<settings><proxies>\n"
	for _, scheme := range []string{"http", "https"} {
		maven += fmt.Sprintf("<proxy><id>devaipod-%[1]s</id><active>true</active><protocol>%[1]s</protocol><host>%[2]s</host><port>%[3]s</port>%[4]s<nonProxyHosts>localhost|127.*</nonProxyHosts></proxy>\n",
			scheme, escapeXML(name), escapeXML(port), login)
	}
	maven += "</proxies></settings>\n"
	return map[string]string{
		"/etc/apt/apt.conf.d/90devaipod": apt,
		"~/.m2/settings.xml":             maven,
		"~/.gradle/gradle.properties":    gradle,
	}
}

func escapeXML(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes all
	return b.String()
}
