#!/usr/bin/env bash
# Run vitdiff_jax on a Cloud TPU VM or pod slice, and restart it after preemptions.
#
#   launch/tpu_vm.sh ACTION --name=NAME --zone=ZONE [flags] -- ARGUMENTS
#
#   run      print the table of --mode=plan; request NAME, or reuse it if it is READY; copy this
#            checkout (including new and changed files, excluding what git ignores); install it; run
#            python -m vitdiff_jax.main ARGUMENTS on every worker, and follow its log. If the VM is
#            preempted or disappears it is requested again, and the program resumes from its workdir
#   log      follow the log of the latest run, on worker 0
#   status   print the state of NAME: WAITING_FOR_RESOURCES, READY, PREEMPTED, ..., NOT_FOUND
#   delete   delete NAME, queued or running; billing continues until then, even after a run finished
#
#   --project=P     default: gcloud's own setting
#   --type=T        default: v5litepod-16. A READY VM is reused whatever its type
#   --version=V     runtime version; default: the one recommended by Google for the type
#   --spot          cheaper, but may be preempted at any time
#   --bucket=B      mount gs://B at /mnt/bucket on every worker, with gcsfuse
#   --data=FOLDER   TFDS_DATA_DIR of the program, such as /mnt/bucket/tensorflow_datasets
#   --env-file=F    more environment variables, as lines NAME=VALUE; use this for secrets
#   --retries=N     give up after N consecutive runs without progress, i.e. shorter than
#                   PROGRESS_SECONDS (600); default: 20. Waits POLL_SECONDS (30) before a retry;
#                   waiting in the queue does not count
#   --no-plan       skip --mode=plan, which needs pip install -e ".[plan]" here
#   --dry-run       print all commands, for a VM that does not exist yet, without running them
#
#   launch/tpu_vm.sh run --name=vit --zone=us-west4-a --type=v5litepod-8 --spot --bucket=mine -- \
#       --config=configs/imagenet.py --workdir=/mnt/bucket/imagenet
#
# Exit codes: 0 finished; 1 refused by Google Cloud, or installation failed; 2 invalid usage, or
# --mode=plan failed; 75 gave up after --retries (the same command resumes); else the program's own.
#
# A slice of several workers needs a workdir that all of them see, such as in the bucket, and gcloud
# needs your key in the ssh agent: ssh-add ~/.ssh/google_compute_engine. A workdir on the VM's disk
# is lost with the VM.
#
# Ctrl-C ends this script, not the program, which runs detached on the workers, because gcloud
# resends the command after a dropped connection. `log` shows its output; `run` stops it (it saves)
# and resumes it.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SCRIPT=tpu_vm
# shellcheck source=launch/shared.sh
source "$ROOT/launch/shared.sh"

gcloud_tpus() {  # GROUP VERB ARGUMENTS...: calls gcloud, or prints the call under --dry-run
  local command=(gcloud compute tpus "$@" --zone="$ZONE" --quiet)
  [[ -z $PROJECT ]] || command+=(--project="$PROJECT")
  if $DRY_RUN; then show "${command[@]}"; else "${command[@]}" </dev/null; fi
}

queue() { gcloud_tpus queued-resources "$@"; }
tpu() { gcloud_tpus tpu-vm "$@"; }

on_workers() {  # WORKERS COMMAND; with keep-alive, or ssh would wait forever for a VM that is gone
  tpu ssh "$NAME" --worker="$1" --ssh-flag=-oServerAliveInterval=30 --command="$2"
}

reason() { tr -s '[:space:]' ' ' <"$SCRATCH/error"; }  # the last error of gcloud, on one line

describe() {  # GROUP FORMAT: sets STATE to that field of NAME
  if STATE=$("$1" describe "$NAME" "--format=value($2)" 2>"$SCRATCH/error"); then return; fi
  if grep -q NOT_FOUND "$SCRATCH/error"; then STATE=NOT_FOUND; return; fi
  $STARTED || die 1 "cannot look up $NAME: $(reason)"
  STATE=UNREACHABLE  # for example no network here, while the program keeps running there
}

read_state() {  # sets STATE: of the queued request or, once that is ACTIVE, of the VM
  if $DRY_RUN; then
    queue describe "$NAME" '--format=value(state.state)'
    [[ $STATE == NOT_FOUND ]] || tpu describe "$NAME" '--format=value(state)'
    return
  fi
  describe queue state.state
  [[ $STATE == ACTIVE ]] || return 0
  describe tpu state
  [[ $STATE != NOT_FOUND ]] || STATE=GONE
}

refused() {  # REASON: fails if a retry may help, else exits
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

make_ready() {  # fails if a retry may help
  local said="" reason
  while true; do
    read_state
    case $STATE in
      READY) return ;;
      NOT_FOUND) create || return 1; if $DRY_RUN; then STATE=READY; fi; said="" ;;
      FAILED)
        describe queue state.failedData.error.message
        reason=$(tr -s '[:space:]' ' ' <<<"$STATE")
        say "the request failed; deleting it, since it counts against the quota"
        queue delete "$NAME" --force || return 1
        refused "$reason" || return 1 ;;
      PREEMPTED | TERMINATED | SUSPENDED | GONE)
        say "$NAME is $STATE; deleting it"
        queue delete "$NAME" --force || return 1 ;;
      ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING | CREATING | STARTING | RESTARTING | \
        REIMAGING | REPAIRING | STOPPING | SUSPENDING | DELETING)
        [[ $said == "$STATE" ]] || say "$NAME is $STATE; waiting"
        said=$STATE
        sleep "$POLL_SECONDS" ;;
      UNREACHABLE) return 1 ;;
      *) die 1 "$NAME is $STATE, which this script does not handle: start it, or delete it" ;;
    esac
  done
}

pack() {  # packs the checkout: tracked and new files, without what git ignores
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
  # 255 is from ssh: a connection broke, perhaps to one worker
  $STARTED || [[ $STATE != READY || $code == 255 ]] ||
    die 1 "the installation on $NAME failed, see above"
  return 1
}

follow() {  # RUN: sets CODE to the program's exit code, or `lost` if a worker does not answer
  local codes code program
  printf -v program ' %q' "$BUCKET"
  program+=" ~/vitdiff_venv/bin/python -m vitdiff_jax.main$(printf ' %q' "${PROGRAM[@]}")"
  CODE=0
  if on_workers all "cd vitdiff_jax && bash launch/tpu_worker.sh run $1$program"; then return; fi
  # The exit code of gcloud may be from ssh or a single worker: read those of the program.
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
      0) $DRY_RUN || say "finished; $NAME is billed until you delete it"; return ;;
      75) say "the program saved a checkpoint; restarting it"; attempt=$((attempt + 1)) ;;
      lost) say "$NAME is gone, or some of its workers do not answer: trying again" ;;
      *) die "$CODE" "the program failed with exit code $CODE; $NAME keeps running, and is billed" ;;
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

topology() {  # TYPE: its topology for --mode=plan, or nothing; v5p counts cores, two per chip
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
  [[ -n $ACTION ]] || die 2 "no action: use run, log, status or delete (or --help)"
  [[ -n $NAME ]] || die 2 "--name is missing: add --name=NAME, the TPU VM to $ACTION"
  [[ -n $ZONE ]] || die 2 "--zone is missing: add --zone=ZONE, such as --zone=us-west4-a"
  number --retries "$RETRIES"
  $DRY_RUN || command -v gcloud >/dev/null || die 2 "gcloud not found: install the Google Cloud CLI"
  VERSION=${VERSION:-$(default_version "$TYPE")}
  if $DRY_RUN && [[ $ACTION == run ]]; then STATE=NOT_FOUND; fi
}

parse "$@"
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
ARCHIVE=$SCRATCH/vitdiff_jax.tar.gz
"$ACTION"
