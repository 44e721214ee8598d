#!/usr/bin/env bash
# Run vitdiff_jax on a Cloud TPU VM or pod slice, and keep it running through preemptions.
#
#   launch/tpu_vm.sh ACTION --name=NAME --zone=ZONE [flags] -- ARGUMENTS
#
#   run      show what --mode=plan says of it; queue for NAME, or reuse it where it is READY; copy
#            this checkout (new and changed files too, all but what git ignores); install it; then,
#            on every worker, python -m vitdiff_jax.main ARGUMENTS, and follow its log. A VM that was
#            preempted or has vanished is queued for anew, and the program goes on from its workdir
#   log      follow the log of the newest run again, on worker 0
#   status   print the state of NAME: WAITING_FOR_RESOURCES, READY, PREEMPTED, ..., NOT_FOUND
#   delete   delete NAME, waiting or running; nothing else ends its billing, not even a finished run
#
#   --project=P     default: gcloud's own setting
#   --type=T        default: v5litepod-16. A READY VM is reused whatever its type
#   --version=V     software of the VM; default: the one that Google's table names for the type
#   --spot          cheaper, and may be preempted at any time
#   --bucket=B      mount gs://B at /mnt/bucket on every worker, by gcsfuse
#   --data=FOLDER   the program's TFDS_DATA_DIR, such as /mnt/bucket/tensorflow_datasets
#   --env-file=F    more of its environment, as lines NAME=VALUE: secrets are seen nowhere else
#   --retries=N     give up after N runs in a row without progress (default 20), progress being a
#                   run of PROGRESS_SECONDS (600). Each waits POLL_SECONDS (30) before the next;
#                   waiting in the queue is no retry
#   --no-plan       do not plan: it needs pip install -e ".[plan]" here
#   --dry-run       print every command, for a VM that does not exist yet, and run none
#
#   launch/tpu_vm.sh run --name=vit --zone=us-west4-a --type=v5litepod-8 --spot --bucket=mine -- \
#       --config=configs/imagenet.py --workdir=/mnt/bucket/imagenet
#
# Exit codes: 0 finished; 1 Google Cloud refused or the installation failed; 2 wrong usage, or no
# plan; 75 gave up after --retries, and the same command goes on later; else the program's own.
#
# A slice of several workers needs a workdir that all of them see, as in the bucket, and gcloud needs
# your key in the ssh agent there: ssh-add ~/.ssh/google_compute_engine. A workdir on a VM's own disk
# is lost with the VM.
#
# Ctrl-C ends this script, not the program: it runs detached on the workers, because gcloud answers
# a dropped connection by sending the command again. `log` shows it; `run` stops it (it saves) and
# goes on.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SCRIPT=tpu_vm
# shellcheck source=launch/shared.sh
source "$ROOT/launch/shared.sh"

gcloud_tpus() {  # GROUP VERB ARGUMENTS...: one call of gcloud, or its text under --dry-run
  local command=(gcloud compute tpus "$@" --zone="$ZONE" --quiet)
  [[ -z $PROJECT ]] || command+=(--project="$PROJECT")
  if $DRY_RUN; then show "${command[@]}"; else "${command[@]}" </dev/null; fi
}

queue() { gcloud_tpus queued-resources "$@"; }
tpu() { gcloud_tpus tpu-vm "$@"; }

on_workers() {  # WORKERS COMMAND; without keep-alive, ssh would wait for ever for a VM that is gone
  tpu ssh "$NAME" --worker="$1" --ssh-flag=-oServerAliveInterval=30 --command="$2"
}

reason() { tr -s '[:space:]' ' ' <"$SCRATCH/error"; }  # gcloud's last complaint, on one line

ask() {  # GROUP FORMAT: sets STATE to what it says of NAME
  if STATE=$("$1" describe "$NAME" "--format=value($2)" 2>"$SCRATCH/error"); then return; fi
  if grep -q NOT_FOUND "$SCRATCH/error"; then STATE=NOT_FOUND; return; fi
  $STARTED || die 1 "cannot look up $NAME: $(reason)"
  STATE=UNREACHABLE  # such as a laptop without network, while the program goes on over there
}

read_state() {  # sets STATE: of the request in the queue, and once that is ACTIVE, of the VM
  if $DRY_RUN; then
    queue describe "$NAME" '--format=value(state.state)'
    [[ $STATE == NOT_FOUND ]] || tpu describe "$NAME" '--format=value(state)'
    return
  fi
  ask queue state.state
  [[ $STATE == ACTIVE ]] || return 0
  ask tpu state
  [[ $STATE != NOT_FOUND ]] || STATE=GONE
}

refused() {  # REASON: fails where another try may help, else ends
  if $STARTED || grep -qi capacity <<<"$1"; then say "$1"; return 1; fi
  die 1 "$NAME was refused: $1-- ask for quota, or try another --type or --zone"
}

create() {
  local where options=(--node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$VERSION")
  if $SPOT; then options+=(--spot); fi
  INSTALLED=false
  if ! $PLANNED; then
    where=$(topology "$TYPE")
    [[ -z $where ]] || (cd "$ROOT" && plan "$where" --workdir="$SCRATCH/plan") || exit
    [[ -n $where ]] || ! $PLAN || say "no plan for $TYPE: --mode=plan does not know it"
    PLANNED=true
  fi
  say "queueing for $NAME ($TYPE in $ZONE)"
  queue create "$NAME" "${options[@]}" 2>"$SCRATCH/error" || refused "$(reason)"
}

make_ready() {  # fails where another try may help
  local said="" reason
  while true; do
    read_state
    case $STATE in
      READY) return ;;
      NOT_FOUND) create || return 1; if $DRY_RUN; then STATE=READY; fi; said="" ;;
      FAILED)
        ask queue state.failedData.error.message
        reason=$(tr -s '[:space:]' ' ' <<<"$STATE")
        say "the request failed, deleting it: it would count against the quota"
        queue delete "$NAME" --force || return 1
        refused "$reason" || return 1 ;;
      PREEMPTED | TERMINATED | SUSPENDED | GONE)
        say "$NAME is $STATE, deleting it"
        queue delete "$NAME" --force || return 1 ;;
      ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING | CREATING | STARTING | RESTARTING | \
        REIMAGING | REPAIRING | STOPPING | SUSPENDING | DELETING)
        [[ $said == "$STATE" ]] || say "$NAME is $STATE, waiting"
        said=$STATE
        sleep "$POLL_SECONDS" ;;
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
  local code=0 bucket
  say "copying the checkout to $NAME and installing it"
  pack
  printf -v bucket %q "$BUCKET"
  tpu scp "$ARCHIVE" "$SCRATCH/vitdiff_env" "$NAME:" --worker=all && on_workers all \
    "mkdir -p vitdiff_jax && cd vitdiff_jax && tar -xzf ../vitdiff_jax.tar.gz && \
bash launch/tpu_worker.sh install $bucket" || code=$?
  if ((code == 0)); then INSTALLED=true; return; fi
  read_state
  # 255 is ssh's own: a connection broke, of one worker perhaps
  $STARTED || [[ $STATE != READY || $code == 255 ]] ||
    die 1 "the installation on $NAME failed, see above"
  return 1
}

follow() {  # RUN: sets CODE to the program's exit code, or to `lost` where not all workers tell it
  local codes code program
  printf -v program ' %q' "$BUCKET"
  program+=" ~/vitdiff_venv/bin/python -m vitdiff_jax.main$(printf ' %q' "${PROGRAM[@]}")"
  CODE=0
  if on_workers all "cd vitdiff_jax && bash launch/tpu_worker.sh run $1$program"; then return; fi
  # gcloud's code may be ssh's, or any one worker's: ask what the program itself returned.
  codes=$(on_workers all "cat vitdiff_runs/$1.*/exit_code" 2>/dev/null) || codes=lost
  for code in $codes; do
    if [[ $CODE == 0 || $code == 75 ]]; then CODE=$code; fi
  done
}

run() {
  local attempt=1 started lasted launch
  need_program
  read_environment
  (umask 077 && printf '%s\n' "${ENVIRONMENT[@]}" >"$SCRATCH/vitdiff_env")
  if $DRY_RUN; then export_environment; fi
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
    again "$lasted" 75
  done
}

delete() {
  read_state
  if [[ $STATE == NOT_FOUND ]]; then say "$NAME does not exist"; return; fi
  queue delete "$NAME" --force
}

status() { read_state; $DRY_RUN || echo "$STATE"; }

log() { on_workers 0 "bash vitdiff_jax/launch/tpu_worker.sh log"; }

default_version() {  # TYPE; https://cloud.google.com/tpu/docs/runtimes
  case $1 in
    v6e*) echo v2-alpha-tpuv6e ;;
    v5p*) echo v2-alpha-tpuv5 ;;
    v5lite*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

topology() {  # TYPE: its slice as --mode=plan names it, or nothing; v5p counts cores, two a chip
  local chips=${1##*-} x=1 y=1 z=1
  [[ $chips =~ ^[0-9]+$ ]] || return 0
  case $1 in
    v5litepod-* | v6e-*)
      while ((x * y < chips)); do if ((x < y)); then x=$((2 * x)); else y=$((2 * y)); fi; done
      ((x * y != chips)) || echo "${1:0:2}e:${x}x$y" ;;
    v5p-*)
      chips=$((chips / 2)) x=2 y=2
      while ((x * y * z < chips)); do
        if ((x < y)); then x=$((2 * x)); elif ((y < z)); then y=$((2 * y)); else z=$((2 * z)); fi
      done
      ((x * y * z != chips)) || echo "v5p:${x}x${y}x$z" ;;
  esac
}

parse() {
  ACTION="" NAME="" ZONE="" PROJECT="" TYPE=v5litepod-16 VERSION="" BUCKET="" RETRIES=20
  SPOT=false INSTALLED=false STARTED=false PLANNED=false STATE=READY
  while (($#)); do
    case $1 in
      run | log | status | delete) ACTION=$1 ;;
      --name=*) NAME=${1#*=} ;;
      --zone=*) ZONE=${1#*=} ;;
      --project=*) PROJECT=${1#*=} ;;
      --type=*) TYPE=${1#*=} ;;
      --version=*) VERSION=${1#*=} ;;
      --bucket=*) BUCKET=${1#*=} BUCKET=${BUCKET#gs://} ;;
      --retries=*) RETRIES=${1#*=} ;;
      --spot) SPOT=true ;;
      --) PROGRAM=("${@:2}"); break ;;
      *) shared_flag "$1" ;;
    esac
    shift
  done
  [[ -n $ACTION ]] || die 2 "no action: say run, log, status or delete (or --help)"
  [[ -n $NAME ]] || die 2 "--name is missing: add --name=NAME, the TPU VM to $ACTION"
  [[ -n $ZONE ]] || die 2 "--zone is missing: add --zone=ZONE, such as --zone=us-west4-a"
  number --retries "$RETRIES"
  $DRY_RUN || command -v gcloud >/dev/null || die 2 "no gcloud here: install the Google Cloud CLI"
  VERSION=${VERSION:-$(default_version "$TYPE")}
  if $DRY_RUN && [[ $ACTION == run ]]; then STATE=NOT_FOUND; fi
}

parse "$@"
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
ARCHIVE=$SCRATCH/vitdiff_jax.tar.gz
"$ACTION"
