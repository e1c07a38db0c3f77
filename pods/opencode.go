package pods

import (
	"encoding/json"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// AgentName is what opencode is called in accounts and notes.
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
		"OPENCODE_MODELS_PATH":             podfile.ToolsDir + "/" + noModels,
		"OPENCODE_DISABLE_AUTOUPDATE":      "1",
		"OPENCODE_DISABLE_LSP_DOWNLOAD":    "1",
		"OPENCODE_DISABLE_SHARE":           "1",
		"OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
	}
}

// modelEnv tells other agents where the gate is, in the variables that the
// providers' own libraries read. They get the gate's token for a key.
func modelEnv(model podfile.Model, token string) map[string]string {
	gate := "http://" + podfile.GateAddr + "/model"
	switch model.API {
	case podfile.APIAnthropic:
		return map[string]string{"ANTHROPIC_BASE_URL": gate, "ANTHROPIC_API_KEY": token, "ANTHROPIC_MODEL": model.Name}
	case podfile.APIGemini:
		return map[string]string{"GOOGLE_GEMINI_BASE_URL": gate, "GOOGLE_GENAI_API_VERSION": "v1", "GEMINI_API_KEY": token, "GEMINI_MODEL": model.Name}
	}
	return map[string]string{"OPENAI_BASE_URL": gate + "/v1", "OPENAI_API_KEY": token, "OPENAI_MODEL": model.Name}
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
		"permission":  map[string]string{"*": "allow"},
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
