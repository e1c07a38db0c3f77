package pods

import (
	"encoding/json"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// AgentName is what the agent is called in accounts and notes.
const AgentName = "opencode"

// opencodeEnv configures opencode. The repository's own configuration is left
// out: it would be merged with ours, and could take the provider away or make
// opencode ask for permissions that nobody grants. The gate stands behind that
// in any case.
func opencodeEnv(s Spec, token string) map[string]string {
	return map[string]string{
		"OPENCODE_CONFIG_CONTENT":          OpencodeConfig(s.Model, token),
		"OPENCODE_DISABLE_PROJECT_CONFIG":  "1",
		"OPENCODE_DISABLE_MODELS_FETCH":    "1",
		"OPENCODE_DISABLE_AUTOUPDATE":      "1",
		"OPENCODE_DISABLE_LSP_DOWNLOAD":    "1",
		"OPENCODE_DISABLE_SHARE":           "1",
		"OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
	}
}

// OpencodeConfig is opencode's configuration (opencode.ai/docs/config): one
// provider, which is the pod's gate, spoken to with the gate's token.
func OpencodeConfig(model podfile.Model, token string) string {
	npm := map[string]string{
		podfile.APIOpenAI: "@ai-sdk/openai-compatible", podfile.APIResponses: "@ai-sdk/openai", podfile.APIAnthropic: "@ai-sdk/anthropic", podfile.APIGemini: "@ai-sdk/google",
	}[model.API]
	name := "devaipod/" + model.Name
	b, err := json.Marshal(map[string]any{
		"$schema":     "https://opencode.ai/config.json",
		"model":       name,
		"small_model": name,
		"share":       "disabled",
		"autoupdate":  false,
		"permission":  map[string]string{"*": "allow", "question": "deny"},
		// Without the project's configuration AGENTS.md is read only when it is
		// named, and found only by its absolute path.
		"instructions": []string{podfile.RepoDir + "/AGENTS.md"},
		"provider": map[string]any{"devaipod": map[string]any{
			"npm": npm, "name": "devaipod gate",
			"options": map[string]any{"baseURL": "http://" + podfile.GateAddr + "/model/v1", "apiKey": token},
			"models":  map[string]any{model.Name: map[string]any{"name": model.Name, "tool_call": true}},
		}},
	})
	if err != nil {
		panic(err) // plain data
	}
	return string(b)
}
