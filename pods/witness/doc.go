// Package witness keeps what a pod's gate saw an agent run: the commands that the
// model asked for in its answers, each with the result that the agent's later
// requests told the model. An agent's words in its summary count for nothing here.
//
// A [Journal] is told by the gate of each answer's calls and of each request, which
// it reads in a goroutine of its own: no request waits for it. What it finds is in a
// file beside the account of what the model costs, and outlives the pod; [Commands]
// reads it.
//
// The calls are from the model. The results are as the agent told them, and only as
// true as it: it says nothing else to the model, but nobody else was there.
package witness
