#!/usr/bin/env bash
# Run vitdiff_jax on a Cloud TPU VM or pod slice, and keep it running through preemptions.
#
#   launch/tpu_vm.sh [--dry-run] ACTION --name=NAME --zone=ZONE [flags] -- ARGUMENTS
#
#   run      create NAME, or reuse it where it is READY; copy this checkout (new and changed files
#            too, all but what git ignores); pip install -e ".[tpu]"; then, on every worker,
#            python -m vitdiff_jax.main ARGUMENTS. A VM that was preempted or has vanished is made
#            anew and the program run again: it resumes from its workdir by itself.
#   status   print the state of NAME: READY, CREATING, PREEMPTED, ..., NOT_FOUND
#   delete   delete NAME; nothing else ends its billing, not even a finished run
#
#   --project=P     default: gcloud's own setting
#   --type=T        default: v5litepod-16. A READY VM is reused whatever its type
#   --version=V     software of the VM; default: the one that Google's table names for the type
#   --spot          cheaper, and may be preempted at any time
#   --retries=N     give up after N runs in a row without progress (default 20), progress being a
#                   run of PROGRESS_SECONDS (600). Each waits POLL_SECONDS (30) before the next,
#                   also where the zone is out of capacity: with --spot, a large N buys patience
#   --dry-run       print every command, for a VM that does not exist yet, and run none
#
#   launch/tpu_vm.sh run --name=vit --zone=us-west4-a --type=v5litepod-8 --spot -- \
#       --config=configs/imagenet.py --workdir=/mnt/bucket/imagenet
#
# Exit codes: 0 finished; 1 Google Cloud refused or the installation failed; 2 wrong usage;
# 75 gave up after --retries, and the same command goes on later; else the program's own.
#
# A slice of several workers needs a workdir that all of them see, such as a bucket that gcsfuse
# mounts on each (gs:// paths come later), and gcloud needs your key in the ssh agent there:
# ssh-add ~/.ssh/google_compute_engine. A workdir on a VM's own disk is lost with the VM.
#
# Ctrl-C ends this script, not the program: it runs detached on the workers, because gcloud answers
# a dropped connection by sending the command again. `run` then stops it (it saves) and goes on.
set -euo pipefail

POLL_SECONDS=${POLL_SECONDS:-30}
PROGRESS_SECONDS=${PROGRESS_SECONDS:-600}
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { echo "tpu_vm: $*" >&2; }
die() { say "${@:2}"; exit "$1"; }

# ---- on a worker: what the script's own copy there does ----

worker_python() {  # prints a Python that JAX supports; the images of Ubuntu 22.04 have only 3.10
  local python
  for python in python3.13 python3.12 python3.11 python3; do
    if "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$python" && return
    fi
  done
  python3 -m pip install --quiet --user uv && python3 -m uv python install --quiet 3.12 &&
    python3 -m uv python find 3.12
}

worker_stop() {  # ends runs of an earlier launch: a TPU serves one process at a time
  local file pid
  for file in ~/vitdiff_runs/*."$(boot)"/pid; do
    [[ -e $file && ! -e ${file%/pid}/exit_code ]] || continue
    pid=$(<"$file")
    kill -TERM -- "-$pid" 2>/dev/null || continue
    say "stopping the earlier run on $(hostname)"
    timeout 600 tail --pid="$pid" --sleep-interval=0.2 -f /dev/null || kill -KILL -- "-$pid"
  done
}

worker_install() {
  local python
  worker_stop
  python=$(worker_python 2>/dev/null) ||
    die 1 "no Python 3.11 or newer on $(hostname), and uv cannot install one: try another --version"
  "$python" -m venv ~/vitdiff_venv
  cd "$ROOT" && ~/vitdiff_venv/bin/pip install --quiet -e ".[tpu]"
}

boot() { cat /proc/sys/kernel/random/boot_id; }  # names what a reboot ended, pids and all

worker_run() {  # RUN COMMAND...: start the command once per RUN, follow its log, exit with its code
  local run lines=20
  run=~/vitdiff_runs/$1.$(boot)
  [[ -d $run ]] || worker_stop
  mkdir -p ~/vitdiff_runs
  if mkdir "$run" 2>/dev/null; then
    lines=+1
    : >"$run/log"
    # The trap lets bash outlive a SIGTERM to the group, to note what the program makes of it.
    # shellcheck disable=SC2016
    PYTHONUNBUFFERED=1 setsid bash -c 'trap : TERM; "$@"; echo "$?" >"$0/exit_code"' \
      "$run" "${@:2}" </dev/null >"$run/log" 2>&1 &
    echo "$!" >"$run/pid"
  fi
  until [[ -s $run/pid ]]; do sleep 0.2; done
  tail --pid="$(<"$run/pid")" --sleep-interval=0.2 --lines="$lines" -f "$run/log"
  [[ -s $run/exit_code ]] || echo 75 >"$run/exit_code"  # killed before it could say why
  exit "$(<"$run/exit_code")"
}

# ---- here ----

tpu() {  # VERB ARGUMENTS...: one call of gcloud, or its text under --dry-run
  local command=(gcloud compute tpus tpu-vm "$@" --zone="$ZONE" --quiet)
  [[ -z $PROJECT ]] || command+=(--project="$PROJECT")
  if $DRY_RUN; then printf '%q ' "${command[@]}" && echo; else "${command[@]}" </dev/null; fi
}

on_workers() {  # COMMAND; without keep-alive, ssh would wait for ever for a VM that was taken away
  tpu ssh "$NAME" --worker=all --ssh-flag=-oServerAliveInterval=30 --command="$1"
}

reason() { tr -s '[:space:]' ' ' <"$SCRATCH/error"; }  # gcloud's last complaint, on one line

read_state() {  # sets STATE
  if $DRY_RUN; then tpu describe "$NAME" '--format=value(state)'; return; fi
  if STATE=$(tpu describe "$NAME" '--format=value(state)' 2>"$SCRATCH/error"); then return; fi
  if grep -q NOT_FOUND "$SCRATCH/error"; then STATE=NOT_FOUND; return; fi
  $STARTED || die 1 "cannot look up $NAME: $(reason)"
  STATE=UNREACHABLE  # such as a laptop without network, while the program goes on over there
}

create() {
  local options=(--accelerator-type="$TYPE" --version="$VERSION")
  if $SPOT; then options+=(--spot); fi
  INSTALLED=false
  say "creating $NAME ($TYPE in $ZONE), which takes minutes"
  if tpu create "$NAME" "${options[@]}" 2>"$SCRATCH/error"; then return; fi
  if $STARTED || grep -qi capacity "$SCRATCH/error"; then say "$(reason)"; return 1; fi
  die 1 "$NAME was refused: $(reason)-- ask for quota, or try another --type or --zone"
}

make_ready() {  # fails where another try may help
  while true; do
    read_state
    case $STATE in
      READY) return ;;
      NOT_FOUND) create; return ;;
      PREEMPTED | TERMINATED) say "$NAME is $STATE, deleting it"; tpu delete "$NAME" || return 1 ;;
      CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING | STOPPING | DELETING)
        say "$NAME is $STATE, waiting"; sleep "$POLL_SECONDS" ;;
      UNREACHABLE) return 1 ;;
      *) die 1 "$NAME is $STATE, which this script does not touch: start it, or delete it" ;;
    esac
  done
}

pack() {  # the checkout as it is: tracked and new files that are there, nothing that git ignores
  local list=(git -C "$ROOT" ls-files --cached --others --exclude-standard) file
  if $DRY_RUN; then echo "${list[*]} | tar -C $ROOT -T - -czf $ARCHIVE"; return; fi
  "${list[@]}" -z |
    while IFS= read -r -d '' file; do [[ ! -e $ROOT/$file ]] || printf '%s\0' "$file"; done |
    tar -C "$ROOT" --null -T - -czf "$ARCHIVE" || die 1 "cannot pack $ROOT: is it a git checkout?"
}

install() {
  say "copying the checkout to $NAME and installing it"
  pack
  if tpu scp "$ARCHIVE" "$NAME:" --worker=all && on_workers "mkdir -p vitdiff_jax && \
cd vitdiff_jax && tar -xzf ../vitdiff_jax.tar.gz && bash launch/tpu_vm.sh worker_install"; then
    INSTALLED=true
    return
  fi
  read_state
  $STARTED || [[ $STATE != READY ]] || die 1 "the installation on $NAME failed, see above"
  return 1
}

follow() {  # RUN: sets CODE to the program's exit code, or to `lost` where not all workers tell it
  local codes code program
  printf -v program ' %q' "${PROGRAM[@]}"
  CODE=0
  if on_workers "cd vitdiff_jax && bash launch/tpu_vm.sh worker_run $1 \
~/vitdiff_venv/bin/python -m vitdiff_jax.main$program"; then return; fi
  # gcloud's code may be ssh's, or any one worker's: ask what the program itself returned.
  codes=$(on_workers "cat vitdiff_runs/$1.*/exit_code" 2>/dev/null) || codes=lost
  for code in $codes; do
    if [[ $CODE == 0 || $code == 75 ]]; then CODE=$code; fi
  done
}

run() {
  local attempt=1 failures=0 started lasted launch
  launch=$(date +%Y%m%d-%H%M%S)-$$
  while true; do
    CODE=lost lasted=0
    if make_ready && { $INSTALLED || install; }; then
      STARTED=true started=$SECONDS
      follow "$launch-$attempt"
      lasted=$((SECONDS - started))
    fi
    case $CODE in
      0) $DRY_RUN || say "finished; $NAME stays, and is billed, until you delete it"; return ;;
      75) say "the program saved its state, to be run again"; attempt=$((attempt + 1)) ;;
      lost) say "$NAME is not there, or not all of it answers: trying again" ;;
      *) die "$CODE" "the program failed with exit code $CODE; $NAME stays, and is billed" ;;
    esac
    if ((lasted >= PROGRESS_SECONDS)); then failures=0; fi
    failures=$((failures + 1))
    ((failures <= RETRIES)) || die 75 "gave up after $RETRIES retries without progress"
    sleep "$POLL_SECONDS"
  done
}

delete() {
  read_state
  if [[ $STATE == NOT_FOUND ]]; then say "$NAME does not exist"; else tpu delete "$NAME"; fi
}

status() { read_state; $DRY_RUN || echo "$STATE"; }

default_version() {  # TYPE; https://cloud.google.com/tpu/docs/runtimes
  case $1 in
    v6e*) echo v2-alpha-tpuv6e ;;
    v5p*) echo v2-alpha-tpuv5 ;;
    v5lite*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

parse() {
  ACTION="" NAME="" ZONE="" PROJECT="" TYPE=v5litepod-16 VERSION="" RETRIES=20 PROGRAM=()
  DRY_RUN=false SPOT=false INSTALLED=false STARTED=false STATE=READY
  while (($#)); do
    case $1 in
      run | status | delete) ACTION=$1 ;;
      --name=*) NAME=${1#*=} ;;
      --zone=*) ZONE=${1#*=} ;;
      --project=*) PROJECT=${1#*=} ;;
      --type=*) TYPE=${1#*=} ;;
      --version=*) VERSION=${1#*=} ;;
      --retries=*) RETRIES=${1#*=} ;;
      --spot) SPOT=true ;;
      --dry-run) DRY_RUN=true ;;
      --help | -h) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
      --) PROGRAM=("${@:2}"); break ;;
      *) die 2 "unknown argument '$1': write --flag=value, and the program's own after --" ;;
    esac
    shift
  done
  [[ -n $ACTION ]] || die 2 "no action: say run, status or delete (or --help)"
  [[ -n $NAME ]] || die 2 "--name is missing: add --name=NAME, the TPU VM to $ACTION"
  [[ -n $ZONE ]] || die 2 "--zone is missing: add --zone=ZONE, such as --zone=us-west4-a"
  [[ $RETRIES =~ ^[0-9]+$ ]] || die 2 "--retries=$RETRIES is not a number"
  [[ $ACTION != run ]] || ((${#PROGRAM[@]})) ||
    die 2 "nothing to run: add the program's arguments, such as -- --config=configs/imagenet.py"
  $DRY_RUN || command -v gcloud >/dev/null || die 2 "no gcloud here: install the Google Cloud CLI"
  VERSION=${VERSION:-$(default_version "$TYPE")}
  if $DRY_RUN && [[ $ACTION == run ]]; then STATE=NOT_FOUND; fi
}

case ${1:-} in worker_install | worker_run) "$@"; exit ;; esac
parse "$@"
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
ARCHIVE=$SCRATCH/vitdiff_jax.tar.gz
"$ACTION"
