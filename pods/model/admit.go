package model

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// A Route is a call of an API that is let through, below its base URL. The last
// part of a pattern may be {call}: the model and what to do with it.
type Route struct{ Method, Pattern string }

// Routes are those of an API.
func Routes(api string) []Route {
	switch api {
	case podfile.APIAnthropic:
		return []Route{{"POST", "/messages"}, {"POST", "/messages/count_tokens"}, {"GET", "/models"}}
	case podfile.APIGemini:
		return []Route{{"POST", "/models/{call}"}, {"GET", "/models"}}
	case podfile.APIResponses:
		return []Route{{"POST", "/responses"}, {"GET", "/models"}}
	default:
		return []Route{{"POST", "/chat/completions"}, {"POST", "/responses"}, {"GET", "/models"}}
	}
}

// Rules are what a pod's requests have to keep to.
type Rules struct {
	API, Name string
	// ProviderTools are the kinds of tools that the provider may run: "web_search"
	// is web_search itself and all whose type begins with "web_search_".
	ProviderTools []string
}

// A Request is one that may be sent.
type Request struct {
	Body []byte // as it came, or without what was taken out
	// Stripped names what was taken out.
	Stripped []string
	// MaxOutput is how many tokens it asks for at most, over all its answers; 0 when
	// it does not say.
	MaxOutput int64
	// Free is set for what costs nothing, such as counting tokens.
	Free bool
}

// Admit looks at a request's body; call is the last part of its path. What the
// provider itself would run is taken out, unless the rules allow it. The error
// tells in words why the request is refused: it asks for another model, it is
// not what it seems, or it makes the provider fetch something by reference, which
// would be a way around the gate.
func (r Rules) Admit(call string, body []byte) (Request, error) {
	var fields map[string]json.RawMessage
	if json.Unmarshal(body, &fields) != nil || fields == nil {
		return Request{}, fmt.Errorf("the request is not a JSON object")
	}
	if twice := repeated(body); twice != "" {
		return Request{}, fmt.Errorf("the request has the key %.60q twice", twice)
	}
	req := Request{Body: body, Free: strings.HasSuffix(call, "count_tokens")}
	if r.API == podfile.APIGemini {
		name, method, _ := strings.Cut(call, ":")
		if name != r.Name {
			return Request{}, r.otherModel()
		}
		if !slices.Contains([]string{"generateContent", "streamGenerateContent", "countTokens"}, method) {
			return Request{}, fmt.Errorf("%.60q is nothing that the gate lets through", method)
		}
		req.Free = method == "countTokens"
	}
	p := &pass{rules: r, req: &req, choices: 1}
	for key, value := range fields {
		keep, err := p.field(fold(key), value)
		if err != nil {
			return Request{}, err
		}
		if keep == nil {
			delete(fields, key)
		} else {
			fields[key] = keep
		}
	}
	if r.API != podfile.APIGemini && !p.named {
		return Request{}, r.otherModel()
	}
	req.MaxOutput = min(req.MaxOutput*p.choices, math.MaxInt32) // each is as much at most
	if len(req.Stripped) == 0 {
		return req, nil
	}
	slices.Sort(req.Stripped)
	for key := range fields {
		if k := fold(key); k == "toolchoice" || k == "toolconfig" || (k == "tools" && string(fields[key]) == "[]") {
			delete(fields, key) // it may name what is gone
		}
	}
	var err error
	req.Body, err = encode(fields)
	return req, err
}

func (r Rules) otherModel() error { return fmt.Errorf("this pod's model is %s, and no other", r.Name) }

// fold makes one of all spellings of a key: Google's parser takes two, Go's takes
// any case, of letters such as ſ as well.
func fold(key string) string {
	return strings.ToLower(strings.ToUpper(strings.ReplaceAll(key, "_", "")))
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// A pass is one look at a request.
type pass struct {
	rules   Rules
	req     *Request
	named   bool
	choices int64
}

// serverState are fields that refer to what lies at the provider, perhaps another
// pod's.
var serverState = []string{"previousresponseid", "conversation", "prompt", "cachedcontent", "fileids", "models", "background"}

// providerFields are fields that make the provider reach out, with the tool that
// each stands for.
var providerFields = map[string]string{"websearchoptions": "web_search", "mcpservers": "mcp", "container": "code_execution", "plugins": "plugins"}

// field looks at a field of the request. It returns what is to be sent of it,
// nil for nothing.
func (p *pass) field(key string, raw json.RawMessage) (json.RawMessage, error) {
	var value any
	if err := json.Unmarshal(raw, &value); err != nil {
		return nil, err
	}
	if tool, ok := providerFields[key]; ok && value != nil && !p.allowed(tool) {
		p.req.Stripped = append(p.req.Stripped, key)
		return nil, nil
	}
	switch {
	case value == nil:
	case slices.Contains(serverState, key):
		if value != false {
			return nil, fmt.Errorf("%s is not let through: send the content itself", key)
		}
	case key == "model":
		if name, ok := value.(string); !ok || name != p.rules.Name {
			return nil, p.rules.otherModel()
		}
		p.named = true
	case key == "tools":
		return p.tools(raw)
	case key == "messages", key == "input", key == "contents", key == "system", key == "systeminstruction", key == "instructions":
		if err := refuseContent(value); err != nil {
			return nil, err
		}
	case key == "maxtokens", key == "maxcompletiontokens", key == "maxoutputtokens":
		p.req.MaxOutput = max(p.req.MaxOutput, count(value))
	case key == "n":
		p.choices = max(1, count(value))
	case key == "generationconfig":
		p.generation(value)
	}
	return raw, nil
}

// generation is Gemini's part with the limits.
func (p *pass) generation(value any) {
	config, _ := value.(map[string]any)
	for key, v := range config {
		switch fold(key) {
		case "maxoutputtokens":
			p.req.MaxOutput = max(p.req.MaxOutput, count(v))
		case "candidatecount":
			p.choices = max(1, count(v))
		}
	}
}

func count(v any) int64 {
	f, _ := v.(float64)
	return int64(min(max(f, 0), math.MaxInt32))
}

var openAITools = []string{"function", "custom", "local_shell", "apply_patch"}

// ownTools are the types of tools that the agent runs itself, or the beginnings
// of their types.
var ownTools = map[string][]string{
	podfile.APIOpenAI:    openAITools,
	podfile.APIResponses: openAITools,
	podfile.APIAnthropic: {"custom", "bash_", "text_editor_", "memory_", "computer_"},
}

// tools takes out what the provider would run.
func (p *pass) tools(raw json.RawMessage) (json.RawMessage, error) {
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("tools is not a list of tools")
	}
	kept, stripped := list[:0:0], len(p.req.Stripped)
	for _, text := range list {
		var tool map[string]any
		if err := json.Unmarshal(text, &tool); err != nil || tool == nil {
			return nil, fmt.Errorf("tools is not a list of tools")
		}
		keep, err := p.tool(tool)
		if err != nil {
			return nil, err
		}
		if keep == nil {
			continue
		}
		if len(keep) < len(tool) {
			if text, err = encode(keep); err != nil {
				return nil, err
			}
		}
		kept = append(kept, text)
	}
	if len(p.req.Stripped) == stripped {
		return raw, nil
	}
	return encode(kept)
}

// tool is what is to be sent of a tool, nil for nothing.
func (p *pass) tool(tool map[string]any) (map[string]any, error) {
	if p.rules.API == podfile.APIGemini {
		keep := map[string]any{}
		for key, value := range tool { // each key is a tool of its own
			if fold(key) == "functiondeclarations" || p.allowed(key) {
				keep[key] = value
			} else {
				p.req.Stripped = append(p.req.Stripped, fmt.Sprintf("%.60s", key))
			}
		}
		if len(keep) == 0 {
			return nil, nil
		}
		return keep, nil
	}
	types := valuesOf(tool, "type")
	if len(types) > 1 {
		return nil, fmt.Errorf("a tool has two types")
	}
	if len(types) == 0 {
		types = []any{nil}
	}
	switch kind := types[0].(type) {
	case nil:
		if p.rules.API == podfile.APIAnthropic { // it leaves the type of the agent's own out
			return tool, nil
		}
		p.req.Stripped = append(p.req.Stripped, "a tool without a type")
	case string:
		own := func(name string) bool {
			return kind == name || strings.HasSuffix(name, "_") && strings.HasPrefix(kind, name)
		}
		if slices.ContainsFunc(ownTools[p.rules.API], own) || p.allowed(kind) {
			return tool, nil
		}
		p.req.Stripped = append(p.req.Stripped, fmt.Sprintf("%.60s", kind))
	default:
		return nil, fmt.Errorf("a tool's type is no text")
	}
	return nil, nil
}

// allowed tells whether the provider may run a tool of this type.
func (p *pass) allowed(kind string) bool {
	return slices.ContainsFunc(p.rules.ProviderTools, func(name string) bool {
		return fold(kind) == fold(name) || strings.HasPrefix(kind, name+"_")
	})
}

// refuseContent looks for what the provider would fetch: content by URL, or by
// the name that it has at the provider. Messages, their content and its parts
// are all looked at alike; a tool's arguments and results may hold any text.
func refuseContent(value any) error {
	switch v := value.(type) {
	case []any:
		for _, item := range v {
			if err := refuseContent(item); err != nil {
				return err
			}
		}
	case map[string]any:
		for key, item := range v {
			if err := refusePart(fold(key), item); err != nil {
				return err
			}
		}
	}
	return nil
}

func refusePart(key string, item any) error {
	switch key {
	case "content", "parts", "output", "functionresponse":
		return refuseContent(item)
	case "imageurl", "videourl", "audiourl", "fileurl":
		return refuseURL(key, item)
	case "file":
		file, _ := item.(map[string]any)
		for _, data := range valuesOf(file, "file_data") {
			if err := refuseURL("file_data", data); err != nil {
				return err
			}
		}
		if len(valuesOf(file, "file_id")) > 0 {
			return fmt.Errorf("file_id is not let through: send the content itself")
		}
	case "fileid", "filedata":
		if key == "fileid" || isMap(item) { // Gemini's is a reference, OpenAI's is the content
			return fmt.Errorf("%s is not let through: send the content itself", key)
		}
		return refuseURL(key, item)
	case "source":
		return refuseSource(item)
	case "type":
		if item == "item_reference" {
			return fmt.Errorf("item_reference is not let through: send the content itself")
		}
	}
	return nil
}

func isMap(v any) bool { _, ok := v.(map[string]any); return ok }

// refuseSource is about Anthropic's documents and images.
func refuseSource(value any) error {
	source, _ := value.(map[string]any)
	for _, kind := range valuesOf(source, "type") {
		if kind != "base64" && kind != "text" && kind != "content" {
			return fmt.Errorf("a source of type %.60q is not let through: send the content itself", fmt.Sprint(kind))
		}
	}
	for _, content := range valuesOf(source, "content") {
		if err := refuseContent(content); err != nil {
			return err
		}
	}
	return nil
}

// refuseURL lets data URLs (RFC 2397) through; value is a URL, or an object with
// one.
func refuseURL(name string, value any) error {
	urls := []any{value}
	if o, ok := value.(map[string]any); ok {
		urls = valuesOf(o, "url")
	}
	for _, u := range urls {
		if s, ok := u.(string); u != nil && (!ok || len(s) < 5 || !strings.EqualFold(s[:5], "data:")) {
			return fmt.Errorf("%s is let through as a data: URL only: the provider would fetch any other", name)
		}
	}
	return nil
}

// valuesOf are the values of key, however it is written.
func valuesOf(o map[string]any, key string) []any {
	var found []any
	for k, v := range o {
		if fold(k) == fold(key) {
			found = append(found, v)
		}
	}
	return found
}

// repeated finds a key that one object of a valid JSON text has twice; parsers
// differ in which one they take.
func repeated(body []byte) string {
	type frame struct {
		keys map[string]bool // nil in a list
		key  bool            // a key comes next
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var stack []frame
	for {
		token, err := dec.Token()
		if err != nil {
			return "" // the end: the text is known to be valid
		}
		top := len(stack) - 1
		if name, ok := token.(string); ok && top >= 0 && stack[top].key {
			if stack[top].keys[name] {
				return name
			}
			stack[top].keys[name], stack[top].key = true, false
			continue
		}
		switch token {
		case json.Delim('{'):
			stack = append(stack, frame{keys: map[string]bool{}, key: true})
			continue
		case json.Delim('['):
			stack = append(stack, frame{})
			continue
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:top]
			top--
		}
		if top >= 0 && stack[top].keys != nil {
			stack[top].key = true // a value is whole
		}
	}
}
