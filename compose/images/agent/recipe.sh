# shellcheck shell=bash
# shellcheck disable=SC2154 # ../build, which sources this, sets here and work, and stops at errors
# The agent's image: the base with opencode, as package-lock.json pins it.
# Sourced by ../build. The Containerfile does the same where there is a registry.

recipe_agent() { # BASE ROOT OUT
  local base=$1 root=$2 out=$3
  [ "$(uname -m)" = x86_64 ] ||
    die "the agent image is made for x86_64, this machine is $(uname -m); package.json names opencode's build"
  need node npm perl
  cp "$here/agent/package.json" "$here/agent/package-lock.json" "$work/"
  step "fetching opencode" "10 s" \
    npm --prefix "$work" ci --ignore-scripts --no-audit --no-fund --no-update-notifier
  step "making its programs run in any image" "2 s" relocate_agent "$base" "$root"
  # Where a pod mounts the tools image.
  install -d "$root/.devaipod"
  step "writing the agent image" "5 s" assemble "$base" "$root" "$out" agent /home/agent
  # A fresh named volume takes its owner from the directory it covers.
  step "adding its directories" "1 s" own "$out" home/agent workspace run/devaipod
}

# relocate_agent BASE ROOT puts opencode into ROOT, and what makes it and git run in
# images of others, where this image is mounted at /.agent; here the same path leads
# to the same files.
relocate_agent() {
  local base=$1 root=$2 from=$work/from set=$2/usr/lib/dvp
  install -D -m 0755 "$work/node_modules/opencode-linux-x64/bin/opencode" "$from/usr/local/bin/opencode"
  install -d "$set" "$root/usr/local/bin" "$root/.agent"
  tar -C "$from" -xf "$base" ./usr/bin/git ./usr/bin/rg ./usr/lib/git-core ./usr/lib/x86_64-linux-gnu
  perl "$here/agent/relocate.pl" "$from" "$set" opencode git git-remote-http rg
  mv "$set/bin/opencode" "$root/usr/local/bin/opencode"
  ln -s ../../../local/bin/opencode "$set/bin/opencode"
  ln -s ../usr "$root/.agent/usr"
}
