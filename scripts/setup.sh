#!/usr/bin/env bash
# Make a machine ready: Debian packages that are missing, and the environment in .venv.
# Usage: scripts/setup.sh demo|test      (run again at will: what is there is left alone)
set -euo pipefail
cd "$(dirname "$0")/.."
purpose=${1:?demo or test}
# Where Debian puts daemons; not on the PATH of ordinary users.
PATH=$PATH:/usr/sbin:/sbin

log() { echo "setup: $*" >&2; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo -n "$@"
  else return 77
  fi
}

# Whether an environment can be made; Debian splits ensurepip off into a package of its own.
has_venv() { "$(python_command)" -c 'import ensurepip' 2>/dev/null; }

# Print the Debian packages whose commands are not there.
missing_packages() {
  [ -x .venv/bin/python ] || has_venv || echo python3-venv
  command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v sbatch >/dev/null ||
    echo slurmctld slurmd slurm-client slurm-wlm-basic-plugins
  command -v munged >/dev/null || echo munge
  if [ "$purpose" = test ]; then
    command -v java >/dev/null || echo openjdk-17-jre-headless
    command -v mvn >/dev/null || echo maven
  fi
}

install_packages() {
  local packages
  command -v apt-get >/dev/null || { log "no apt-get: what is not installed is not used"; return 0; }
  packages=$(missing_packages | tr '\n' ' ')
  [ -n "${packages// /}" ] || return 0
  log "installing $packages"
  # shellcheck disable=SC2086
  if ! { as_root apt-get update -q &&
         as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
           -o DPkg::Lock::Timeout=120 $packages; } \
       >build/setup-packages.log 2>&1; then
    log "could not install them (see build/setup-packages.log): what needs them is skipped"
  fi
}

python_command() {
  local name
  for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if command -v "$name" >/dev/null && "$name" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
      echo "$name"; return
    fi
  done
  log "Python 3.11 or newer is needed"; exit 1
}

create_environment() {
  has_venv || { log "cannot make .venv: install python3-venv (see build/setup-packages.log)"; exit 1; }
  "$(python_command)" -m venv .venv
}

install_environment() {
  local stamp
  stamp=.venv/.installed-$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
  [ -e "$stamp" ] && return 0
  [ -x .venv/bin/python ] || create_environment
  log "installing Python packages into .venv"
  [ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
  .venv/bin/uv pip install --quiet --python .venv/bin/python -c constraints.txt --group dev \
    -e '.[airflow,analysis,arrow,client,demo,elog,mpich,server,streamer]'
  rm -f .venv/.installed-*
  touch "$stamp"
}

mkdir -p build
if [ -x .venv/bin/python ] || has_venv; then
  # apt and uv wait for different servers: let them work side by side.
  install_packages &
  install_environment
  wait $!
else
  install_packages
  install_environment
fi
