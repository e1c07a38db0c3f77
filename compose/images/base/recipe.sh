# shellcheck shell=bash
# What both images stand on: Debian 12 with git and the everyday tools of an agent.
# Sourced by ../build.

recipe_base() { # BASE ROOT OUT
  need mmdebstrap
  step "fetching and unpacking Debian 12" "40 s" \
    mmdebstrap --variant=minbase --skip=output/dev \
    --include=bash,ca-certificates,curl,dumb-init,git,jq,less,make,openssh-client,patch,procps,ripgrep \
    --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    bookworm "$3"
}
