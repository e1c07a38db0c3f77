package gate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// refuseModel tells why a request to the model is refused, "" when it is
// admitted: it asks for another model, or it asks the provider itself to reach
// out (search, fetch, run code, MCP, files by reference), which would be a way
// around the gate.
//
// The request is forwarded as it came, so it must not read otherwise there
// than here: keys that come twice are refused, and those that decide are found
// in any case.
func refuseModel(body []byte, model podfile.Model) string {
	var req map[string]any
	if json.Unmarshal(body, &req) != nil || req == nil {
		return "the request is not a JSON object"
	}
	if twice := repeated(body); twice != "" {
		return fmt.Sprintf("the request has the key %.60q twice", twice)
	}
	for key, value := range req {
		switch key = strings.ToLower(key); key {
		case "model":
			if name, ok := value.(string); !ok || name != model.Name {
				return fmt.Sprintf("this pod's model is %s, and no other", model.Name)
			}
		case "web_search_options", "mcp_servers", "container", "file_ids", "previous_response_id", "plugins", "models":
			if value != nil {
				return key + " is not admitted: it makes the provider reach out by itself"
			}
		case "tools":
			if why := refuseTools(value, model.API); why != "" {
				return why
			}
		case "messages":
			if why := refuseMessages(value); why != "" {
				return why
			}
		}
	}
	return ""
}

// ownTools are the types of tools that the agent runs itself; Anthropic's may
// leave the type out.
var ownTools = map[string]map[any]bool{
	podfile.APIOpenAI:    {"function": true},
	podfile.APIAnthropic: {nil: true, "custom": true},
}

func refuseTools(value any, api string) string {
	if value == nil {
		return ""
	}
	tools, ok := value.([]any)
	if !ok {
		return "tools is not a list of tools"
	}
	for _, v := range tools {
		tool, ok := v.(map[string]any)
		if !ok {
			return "tools is not a list of tools"
		}
		types := fields(tool, "type")
		if len(types) == 0 {
			types = []any{nil}
		}
		for _, kind := range types {
			if _, text := kind.(string); (kind != nil && !text) || !ownTools[api][kind] {
				return fmt.Sprintf("tools of type %.60q are not admitted: the provider runs them, outside this pod", fmt.Sprint(kind))
			}
		}
	}
	return ""
}

func refuseMessages(value any) string {
	messages, _ := value.([]any)
	for _, v := range messages {
		message, _ := v.(map[string]any)
		for _, content := range fields(message, "content") {
			if why := refuseContent(content); why != "" {
				return why
			}
		}
	}
	return ""
}

// refuseContent looks for what the provider would fetch: content by URL or by
// the id of a file. A tool's arguments and results may hold any text.
func refuseContent(content any) string {
	parts, _ := content.([]any)
	for _, v := range parts {
		part, _ := v.(map[string]any)
		for key, value := range part {
			why := ""
			switch key = strings.ToLower(key); key {
			case "content":
				why = refuseContent(value)
			case "image_url", "video_url", "audio_url":
				why = refuseURL(key, value)
			case "file":
				file, _ := value.(map[string]any)
				for _, data := range fields(file, "file_data") {
					why += refuseURL("file_data", data)
				}
				if len(fields(file, "file_id")) > 0 {
					why = "file_id is not admitted: send the content itself"
				}
			case "file_id":
				why = "file_id is not admitted: send the content itself"
			case "source":
				why = refuseSource(value)
			}
			if why != "" {
				return why
			}
		}
	}
	return ""
}

// refuseSource is about Anthropic's documents and images.
func refuseSource(value any) string {
	source, _ := value.(map[string]any)
	for _, kind := range fields(source, "type") {
		if kind != "base64" && kind != "text" && kind != "content" {
			return fmt.Sprintf("a source of type %.60q is not admitted: send the content itself", fmt.Sprint(kind))
		}
	}
	for _, content := range fields(source, "content") {
		if why := refuseContent(content); why != "" {
			return why
		}
	}
	return ""
}

// refuseURL admits data URLs (RFC 2397) alone; value is a URL, or an object
// with one.
func refuseURL(name string, value any) string {
	urls := []any{value}
	if o, ok := value.(map[string]any); ok {
		urls = fields(o, "url")
	}
	for _, u := range urls {
		if s, ok := u.(string); !ok || len(s) < 5 || !strings.EqualFold(s[:5], "data:") {
			return name + " is admitted as a data: URL only: the provider would fetch any other"
		}
	}
	return ""
}

// fields are the values of key, however it is written.
func fields(o map[string]any, key string) []any {
	var found []any
	for k, v := range o {
		if strings.EqualFold(k, key) {
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
