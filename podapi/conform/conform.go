// Package conform holds what goes between a pod-api and its clients against the
// pod-api's own OpenAPI document. It is for tests and for their build of the
// service; what people run does not have it.
package conform

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"codeberg.org/devaipod/devaipod/podapi"
)

// A Document is the pod-api's, read and found sound.
type Document struct {
	*openapi3.T
	router routers.Router
}

// Read reads the document once for all.
var Read = sync.OnceValues(func() (*Document, error) {
	doc, err := openapi3.NewLoader().LoadFromData(podapi.OpenAPI)
	if err != nil {
		return nil, fmt.Errorf("reading the pod-api's document: %w", err)
	}
	if err := doc.Validate(openapi3.NewLoader().Context); err != nil {
		return nil, fmt.Errorf("the pod-api's document: %w", err)
	}
	r, err := gorillamux.NewRouter(doc)
	return &Document{doc, r}, err
})

// Transport is next, but an exchange that the document does not have is an error:
// a request before it is made, an answer instead of it, an event in place of the
// rest of its stream. Its requests are for http://pod.
func Transport(next http.RoundTripper) http.RoundTripper { return transport{next} }

type transport struct{ next http.RoundTripper }

// maxBody bounds what is held of a body to look at it.
const maxBody = 8 << 20

// RoundTrip implements [http.RoundTripper].
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.URL.Path, "/agent/") {
		return t.next.RoundTrip(r) // the agent's own, which it documents itself or does not
	}
	doc, err := Read()
	if err != nil {
		return nil, err
	}
	in, err := doc.request(r)
	if err != nil {
		return nil, fmt.Errorf("%s %s is not as the pod-api's document has it: %w", r.Method, r.URL.Path, err)
	}
	resp, err := t.next.RoundTrip(in.Request)
	if err != nil {
		return nil, err
	}
	if err := doc.response(in, resp); err != nil {
		return nil, errors.Join(fmt.Errorf("the answer to %s %s is not as the pod-api's document has it: %w", r.Method, r.URL.Path, err), resp.Body.Close())
	}
	return resp, nil
}

// request checks a request, and returns it with a body that can be read again.
func (d *Document) request(r *http.Request) (*openapi3filter.RequestValidationInput, error) {
	body, err := hold(&r.Body)
	if err != nil {
		return nil, err
	}
	route, params, err := d.router.FindRoute(r)
	if err != nil {
		return nil, err
	}
	query := r.URL.Query()
	for name := range query {
		if route.Operation.Parameters.GetByInAndName("query", name) == nil {
			return nil, fmt.Errorf("no parameter %q is documented", name)
		}
	}
	in := &openapi3filter.RequestValidationInput{
		Request: r.Clone(r.Context()), PathParams: params, QueryParams: query, Route: route,
		Options: &openapi3filter.Options{RejectWhenRequestBodyNotSpecified: true, SkipSettingDefaults: true},
	}
	in.Request.Body = io.NopCloser(bytes.NewReader(body))
	if err := openapi3filter.ValidateRequest(r.Context(), in); err != nil {
		return nil, err
	}
	in.Request = r.Clone(r.Context())
	if r.Body != nil {
		in.Request.Body = io.NopCloser(bytes.NewReader(body))
	}
	return in, nil
}

// response checks an answer, and leaves it a body that can be read again.
func (d *Document) response(in *openapi3filter.RequestValidationInput, resp *http.Response) error {
	options := &openapi3filter.Options{IncludeResponseStatus: true}
	var body []byte
	if kind := resp.Header.Get("Content-Type"); kind == "text/event-stream" || kind == "application/jsonl" {
		options.ExcludeResponseBody = true
		resp.Body = &events{ReadCloser: resp.Body, sse: kind == "text/event-stream", schema: d.Components.Schemas["Event"].Value}
	} else {
		var err error
		if body, err = hold(&resp.Body); err != nil {
			return err
		}
		defined := in.Route.Operation.Responses.Status(resp.StatusCode)
		if defined != nil && len(defined.Value.Content) == 0 && len(body) > 0 {
			return fmt.Errorf("%d has no body, and came with %q", resp.StatusCode, podapi.Clip(string(body), 200))
		}
	}
	return openapi3filter.ValidateResponse(in.Request.Context(), (&openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: resp.StatusCode, Header: resp.Header, Options: options,
	}).SetBodyBytes(body))
}

// hold reads a body to its end, and puts what it read in its place.
func hold(body *io.ReadCloser) ([]byte, error) {
	if *body == nil {
		return nil, nil
	}
	b, err := io.ReadAll(io.LimitReader(*body, maxBody+1))
	if len(b) > maxBody {
		err = fmt.Errorf("a body of more than %d bytes", maxBody)
	}
	if err := errors.Join(err, (*body).Close()); err != nil {
		return nil, err
	}
	*body = io.NopCloser(bytes.NewReader(b))
	return b, nil
}

// events checks a stream of events as it passes, server-sent or one a line.
type events struct {
	io.ReadCloser
	sse    bool
	schema *openapi3.Schema
	line   []byte
}

func (e *events) Read(p []byte) (int, error) {
	n, err := e.ReadCloser.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		i := slices.Index(rest, '\n')
		if i < 0 {
			e.line = append(e.line, rest...)
			break
		}
		e.line = append(e.line, rest[:i]...)
		rest = rest[i+1:]
		if bad := e.check(string(e.line)); bad != nil {
			return 0, bad
		}
		e.line = e.line[:0]
	}
	return n, err
}

func (e *events) check(line string) error {
	data, ok := line, true
	if e.sse {
		data, ok = strings.CutPrefix(line, "data: ")
	}
	if !ok {
		if line == "" || strings.HasPrefix(line, ":") || strings.HasPrefix(line, "id: ") {
			return nil
		}
		return fmt.Errorf("%q is no line of an event that is documented", podapi.Clip(line, 200))
	}
	var v any
	if err := json.Unmarshal([]byte(data), &v); err != nil {
		return fmt.Errorf("an event is no JSON: %w", err)
	}
	if err := e.schema.VisitJSON(v, openapi3.EnableJSONSchema2020(), openapi3.EnableFormatValidation()); err != nil {
		return fmt.Errorf("an event is not as documented: %w", err)
	}
	return nil
}
