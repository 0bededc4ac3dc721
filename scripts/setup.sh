#!/usr/bin/env bash
# Makes a fresh Debian 12/13 or Ubuntu 22.04+ able to build and test agentsight. Run it as often as you like: what is there
# already is left alone, and then it takes a second and needs neither root nor network.
#
# Does: system packages that are missing (apt-get), .venv with a Python of 3.11 or newer and the project's own dependencies,
# libbpf's sources; with the argument `tests` also the programs that tests watch.
# Environment: AGENTSIGHT_PYTHON (interpreter to take), AGENTSIGHT_LIBBPF_DIR (libbpf tree to take).
# Exit: 0 all there; 1 with one line that says what is missing and what to do.
set -euo pipefail
cd "$(dirname "$0")/.."

LIBBPF_URL=https://github.com/libbpf/libbpf
LIBBPF_VERSION=1.5.0
LIBBPF_DEBIAN_SUITE=trixie
LIBBPF_SHA256=53492aff6dd47e4da04ef5e672d753b9743848bdb38e9d90eafbe190b7983c44
LIBBPF_FALLBACK=.cache/libbpf-$LIBBPF_VERSION

work= # directory for one run, removed at its end
purpose=${1:-}
trap '[ -z "$work" ] || rm -rf "$work"' EXIT

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'Error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

quietly() { # what it prints is shown only when it fails
    local output
    output=$("$@" 2>&1 </dev/null) || { printf '%s\n' "$output" >&2; return 1; }
}

# ---- system packages ----

missing_packages() {
    # name of a command, and the package that brings it
    while read -r command package; do
        have "$command" || echo "$package"
    done <<'LIST'
clang clang
llvm-strip llvm
gcc gcc
g++ g++
make make
git git
curl curl
pkg-config pkg-config
node nodejs
openssl openssl
strace strace
unshare util-linux
LIST
    # the programs that tests watch, and what fetches them
    [ "$purpose" != tests ] || while read -r command package; do
        have "$command" || echo "$package"
    done <<'LIST'
npm npm
wget wget
go golang-go
LIST
    [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
    # name of a pkg-config module, and the package that brings it
    while read -r module package; do
        have pkg-config && pkg-config --exists "$module" || echo "$package"
    done <<'LIST'
libelf libelf-dev
zlib zlib1g-dev
libcrypto libssl-dev
libbrotlidec libbrotli-dev
libzstd libzstd-dev
LIST
}

apt_updated=
apt_install() {
    have apt-get || fail "these packages are missing, and there is no apt-get to install them: $*"
    [ "$(id -u)" = 0 ] || fail "these packages are missing; run as root: apt-get install $*"
    say "installing: $*"
    if [ -z "$apt_updated" ]; then
        quietly apt-get -qq update || say "apt-get update failed; going on with the lists that are there"
        apt_updated=1
    fi
    quietly env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends -o Dpkg::Use-Pty=0 "$@" || fail "apt-get could not install: $*"
}

# ---- Python ----

usable_python() { # at least 3.11, with venv and headers
    "$1" - 2>/dev/null <<'PY'
import os, sys, sysconfig
assert sys.version_info >= (3, 11)
import ensurepip, venv
assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
PY
}

find_python() {
    local name
    for name in ${AGENTSIGHT_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if have "$name" && usable_python "$name"; then
            command -v "$name"
            return
        fi
    done
    return 1
}

choose_python() {
    find_python && return
    local version
    # The distribution's own python3 where it is new enough, else a newer one beside it.
    if ! have python3 || python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        apt_install python3 python3-venv python3-dev
        find_python && return
    fi
    for version in 3.13 3.12 3.11; do
        if have apt-cache && apt-cache show "python$version-venv" >/dev/null 2>&1; then
            apt_install "python$version" "python$version-venv" "python$version-dev"
            find_python && return
        fi
    done
    fail "agentsight needs Python 3.11 or newer with venv and headers, and this system's packages have none;" \
        "install one and run again with AGENTSIGHT_PYTHON=/path/to/python"
}

make_venv() {
    if [ -x .venv/bin/python ] && usable_python .venv/bin/python; then
        return
    fi
    local python
    python=$(choose_python)
    say "making .venv with $python"
    rm -rf .venv
    "$python" -m venv .venv
}

install_requirements() { # the project's, from pyproject.toml; again only when they changed
    local wanted
    wanted=$(.venv/bin/python - <<'PY'
import tomllib
with open("pyproject.toml", "rb") as f:
    t = tomllib.load(f)
def group(name):
    for entry in t["dependency-groups"][name]:
        yield from group(entry["include-group"]) if isinstance(entry, dict) else (entry,)
print(*t["build-system"]["requires"], *t["project"]["dependencies"], *group("dev"), sep="\n")
PY
    )
    if [ "$wanted" != "$(cat .venv/requirements.txt 2>/dev/null)" ]; then
        say "installing the Python dependencies into .venv"
        printf '%s\n' "$wanted" >.venv/requirements.new
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r .venv/requirements.new >&2 ||
            fail "pip could not install the dependencies listed in .venv/requirements.new"
        mv .venv/requirements.new .venv/requirements.txt
    fi
}

# ---- libbpf ----

is_libbpf() { [ -e "$1/src/libbpf.c" ]; }

libbpf_from_git() {
    # A quick question first: where the host cannot be reached, nothing hangs and nobody is asked for a password.
    export GIT_TERMINAL_PROMPT=0
    git rev-parse --is-inside-work-tree >/dev/null 2>&1 || return 1
    timeout 20 git ls-remote --exit-code "$LIBBPF_URL" HEAD >/dev/null 2>&1 </dev/null || return 1
    say "fetching libbpf: submodule native/libbpf"
    timeout 300 git submodule --quiet update --init --depth 1 native/libbpf >&2 </dev/null || return 1
    is_libbpf native/libbpf
}

libbpf_from_debian() { # the same version from Debian's source package, by a private apt configuration
    local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    local archive=libbpf_$LIBBPF_VERSION.orig.tar.gz
    have apt-get && [ -e "$keyring" ] || return 1
    work=$(mktemp -d)
    mkdir -p "$work"/{sources,lists/partial,cache/archives/partial,download}
    # The machine's own mirrors, as apt itself reads them (both formats of sources, any file).
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -E '/debian/?$' | sort -u |
        while read -r mirror; do
            printf 'Types: deb-src\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n\n' \
                "$mirror" "$LIBBPF_DEBIAN_SUITE" "$keyring"
        done >"$work/sources/libbpf.sources"
    [ -s "$work/sources/libbpf.sources" ] || return 1
    local apt=(apt-get -qq -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$work/sources"
        -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root
        -o Acquire::Retries=2 -o Acquire::Languages=none)
    say "fetching libbpf: Debian's source package ($LIBBPF_DEBIAN_SUITE)"
    quietly "${apt[@]}" update || return 1
    (cd "$work/download" && quietly "${apt[@]}" source --download-only libbpf) || return 1
    [ -e "$work/download/$archive" ] || fail "$LIBBPF_DEBIAN_SUITE has no $archive any more"
    echo "$LIBBPF_SHA256  $work/download/$archive" | sha256sum --check --status ||
        fail "the sha256 of Debian's $archive is not the expected one: not used"
    mkdir -p .cache
    rm -rf "$LIBBPF_FALLBACK" "$LIBBPF_FALLBACK.new"
    mkdir "$LIBBPF_FALLBACK.new"
    tar -xzf "$work/download/$archive" -C "$LIBBPF_FALLBACK.new" --strip-components=1 --no-same-owner &&
        mv "$LIBBPF_FALLBACK.new" "$LIBBPF_FALLBACK" || # whole or not at all
        fail "could not unpack $archive into $LIBBPF_FALLBACK"
}

get_libbpf() {
    local dir
    for dir in ${AGENTSIGHT_LIBBPF_DIR:+"$AGENTSIGHT_LIBBPF_DIR"} native/libbpf "$LIBBPF_FALLBACK"; do
        is_libbpf "$dir" && return
    done
    libbpf_from_git || libbpf_from_debian ||
        fail "no libbpf: the submodule's host does not answer, and this machine's apt sources give no Debian mirror with" \
            "$LIBBPF_DEBIAN_SUITE; unpack libbpf $LIBBPF_VERSION somewhere and set AGENTSIGHT_LIBBPF_DIR to it"
}

mapfile -t packages < <(missing_packages | sort -u)
[ ${#packages[@]} = 0 ] || apt_install "${packages[@]}"
make_venv
install_requirements
get_libbpf
say "all there"
