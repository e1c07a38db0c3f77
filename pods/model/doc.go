// Package model knows the APIs that models are spoken to by: which requests a
// pod's gate lets through, what of them it takes out, how their answers tell what
// was used and which tools the agent shall run, and how requests tell the results.
//
//   - openai: chat completions and responses, of OpenAI or whoever is compatible
//     (platform.openai.com/docs/api-reference)
//   - openai-responses: responses alone
//   - anthropic: messages (docs.anthropic.com/en/api)
//   - gemini: generateContent (ai.google.dev/api)
//
// Requests are written by an agent: hostile. They must not read otherwise at the
// provider than here: keys that come twice are refused, and those that decide
// are found in any case.
package model
