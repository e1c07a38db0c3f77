# shellcheck shell=bash
# shellcheck disable=SC2154 # ../build, which sources this, sets here and work, and stops at errors
# The agent's image: the base with opencode, as package-lock.json pins it.
# Sourced by ../build. The Containerfile does the same where there is a registry.

recipe_agent() { # BASE ROOT OUT
  local base=$1 root=$2 out=$3
  [ "$(uname -m)" = x86_64 ] ||
    die "the agent image is made for x86_64, this machine is $(uname -m); package.json names opencode's build"
  need node npm
  cp "$here/agent/package.json" "$here/agent/package-lock.json" "$work/"
  step "fetching opencode" "10 s" \
    npm --prefix "$work" ci --ignore-scripts --no-audit --no-fund --no-update-notifier
  install -D -m 0755 "$work/node_modules/opencode-linux-x64/bin/opencode" "$root/usr/local/bin/opencode"
  # Where a pod mounts the tools image.
  install -d "$root/.devaipod"
  step "writing the agent image" "5 s" assemble "$base" "$root" "$out" agent /home/agent
  # A fresh named volume takes its owner from the directory it covers.
  step "adding its directories" "1 s" own "$out" home/agent workspace run/devaipod
}
