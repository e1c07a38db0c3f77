// Package devcontainer reads devcontainer.json
// (https://containers.dev/implementors/json_reference/), JSON with comments and
// trailing commas, and tells what of it holds in a pod.
//
// [Candidates] says where a repository may have the file. [Parse] reads it for a
// [Place], the pod it is for, and gives a [Config] of plain values: every variable
// is replaced but ${containerEnv:NAME}, which only the container knows and [Expand]
// replaces there. What a pod refuses, or does not do yet, is in Config.Unsupported,
// each once and by the property's name; the rest of the file holds nevertheless.
// What can't be understood at all is an error with the line it is on.
//
// The file is read as hostile: it is bounded in size, depth and counts, nothing in
// it names a path of the host, nothing of the host's environment gets into it, and
// nothing here runs anything.
package devcontainer
