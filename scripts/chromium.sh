#!/bin/sh
# Installs Debian's chromium, for tests of the chat page.
set -eu
root=""
[ "$(id -u)" = 0 ] || root="sudo"
$root apt-get update -qq
$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
