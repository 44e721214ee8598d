#!/usr/bin/env bash
# Runs on each worker of a TPU VM, called by launch/tpu_vm.sh, which copies it there.
#
#   install BUCKET           stop earlier runs, create a virtual environment, mount the bucket if any
#   run RUN BUCKET COMMAND   start the command once per RUN, follow its log, exit with its code
#   log                      follow the log of the latest run until it ends
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SCRIPT="tpu_vm on $(hostname)"
# shellcheck source=launch/shared.sh
source "$ROOT/launch/shared.sh"
MOUNT=/mnt/bucket
GCSFUSE=3.11.1  # for images without it

boot() { cat /proc/sys/kernel/random/boot_id; }  # distinguishes runs (and pids) across reboots

stop() {  # stops runs of earlier launches: a TPU serves one process at a time
  local file pid
  for file in ~/vitdiff_runs/*."$(boot)"/pid; do
    [[ -e $file && ! -e ${file%/pid}/exit_code ]] || continue
    pid=$(<"$file")
    kill -TERM -- "-$pid" 2>/dev/null || continue
    say "stopping the earlier run"
    timeout 600 tail --pid="$pid" --sleep-interval=0.2 -f /dev/null || kill -KILL -- "-$pid"
  done
}

mount_bucket() {  # BUCKET; remounts after a reboot, or if another bucket is mounted
  local there file=/tmp/gcsfuse.deb
  [[ -n $1 ]] || return 0
  there=$(findmnt --noheadings --output=SOURCE "$MOUNT") || there=""
  [[ $there != "$1" ]] || return 0
  [[ -z $there ]] || sudo umount "$MOUNT"
  if ! command -v gcsfuse >/dev/null; then
    curl --fail --silent --show-error --location --output "$file" \
      "https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v$GCSFUSE/gcsfuse_${GCSFUSE}_amd64.deb" &&
      sudo apt-get install --yes --quiet "$file" >/dev/null || return 1
  fi
  sudo mkdir -p "$MOUNT" && sudo chown "$(id -u)" "$MOUNT" || return 1
  # By default gcsfuse renames no folders, but complete checkpoints are renamed.
  gcsfuse --implicit-dirs --rename-dir-limit=1000000 "$1" "$MOUNT" >/dev/null
}

install() {  # BUCKET
  local python
  stop
  chmod 600 ~/vitdiff_env
  python=$(find_python 2>/dev/null) ||
    die 1 "no Python 3.11 or newer, and uv cannot install one: try another --version"
  "$python" -m venv ~/vitdiff_venv
  cd "$ROOT"
  ~/vitdiff_venv/bin/pip install --quiet -e ".[tpu]" || die 1 "pip cannot install it, see above"
  mount_bucket "$1" || die 1 "cannot mount gs://$1: does it exist, and may this VM's account read it?"
}

follow() {  # FOLDER LINES
  until [[ -s $1/pid ]]; do sleep 0.2; done
  tail --pid="$(<"$1/pid")" --sleep-interval=0.2 --lines="$2" -f "$1/log"
  [[ -s $1/exit_code ]] || echo 75 >"$1/exit_code"  # killed before it could write one
  exit "$(<"$1/exit_code")"
}

run() {  # RUN BUCKET COMMAND...
  local run lines=20
  run=~/vitdiff_runs/$1.$(boot)
  [[ -d $run ]] || stop
  mount_bucket "$2" || die 1 "cannot mount gs://$2"
  ENV_FILE=~/vitdiff_env
  read_environment
  export_environment
  mkdir -p ~/vitdiff_runs
  if mkdir "$run" 2>/dev/null; then
    lines=+1
    : >"$run/log"
    # The trap lets bash survive a SIGTERM to the group, to record the exit code of the program.
    # shellcheck disable=SC2016
    PYTHONUNBUFFERED=1 setsid bash -c 'trap : TERM; "$@"; echo "$?" >"$0/exit_code"' \
      "$run" "${@:3}" </dev/null >"$run/log" 2>&1 &
    echo "$!" >"$run/pid"
  fi
  follow "$run" "$lines"
}

log() {
  local run="" each
  for each in ~/vitdiff_runs/*."$(boot)"; do
    if [[ $each -nt $run ]]; then run=$each; fi
  done
  [[ -n $run ]] || die 1 "no run since the VM started"
  follow "$run" +1
}

"$@"
