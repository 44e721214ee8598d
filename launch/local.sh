#!/usr/bin/env bash
# Run vitdiff_jax as several processes on this machine, on its GPUs or CPUs.
#
#   launch/local.sh --processes=N [flags] -- ARGUMENTS
#
#   --processes=N     number of processes; GPUs are divided evenly among them. JAX_PLATFORMS=cpu
#                     ignores GPUs, and CUDA_VISIBLE_DEVICES=0,1 selects some
#   --data=FOLDER     TFDS_DATA_DIR of the program
#   --env-file=FILE   more environment variables, as lines NAME=VALUE; use this for secrets
#   --no-plan         with GPUs: skip --mode=plan, which needs pip install -e ".[plan]"
#   --dry-run         print all commands without running them
#
#   launch/local.sh --processes=2 -- --config=configs/digits.py --workdir=runs/two
#
# Runs $PYTHON (default: python3), usually that of an active virtual environment. Lines of output
# are prefixed with the process index. On Ctrl-C all processes save and exit. Once one has exited,
# the others are killed after GRACE_SECONDS (60). Exit code: the highest of theirs; 75: stopped by
# a signal after saving (the same command resumes); 2: invalid usage, or --mode=plan failed.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SCRIPT=local
# shellcheck source=launch/shared.sh
source "$ROOT/launch/shared.sh"
GRACE_SECONDS=${GRACE_SECONDS:-60}

share() {  # PROCESS: its GPUs, such as 2,3
  local each=$((${#GPUS[@]} / PROCESSES))
  (IFS=, && echo "${GPUS[*]:$(($1 * each)):each}")
}

start() {  # PROCESS
  local command=(
    "$PYTHON" -m vitdiff_jax.main "${PROGRAM[@]}"
    --coordinator="localhost:$PORT" --processes="$PROCESSES" --process="$1"
  )
  ((${#GPUS[@]} == 0)) || command=(env CUDA_VISIBLE_DEVICES="$(share "$1")" "${command[@]}")
  if $DRY_RUN; then show "${command[@]}"; return; fi
  # sed ignores Ctrl-C, so that the last lines are not lost.
  PYTHONUNBUFFERED=1 "${command[@]}" > >(trap '' INT TERM && exec sed -u "s/^/[$1] /") 2>&1 &
  STARTED+=("$!")
}

signal() { kill "-$1" "${STARTED[@]}" 2>/dev/null || true; }

running() {  # prints the number of running processes
  local pid count=0
  for pid in "${STARTED[@]}"; do if kill -0 "$pid" 2>/dev/null; then count=$((count + 1)); fi; done
  echo "$count"
}

finish() {  # waits for the first to exit, then for the others; sets WORST to the highest exit code
  local pid until
  while (($(running) == PROCESSES)); do sleep 0.2 || true; done  # Ctrl-C interrupts the sleep too
  until=$((SECONDS + GRACE_SECONDS))
  while (($(running) && SECONDS < until)); do sleep 0.2 || true; done
  (($(running) == 0)) || say "one has exited, others not within $GRACE_SECONDS s: killing them"
  signal KILL
  WORST=0
  for pid in "${STARTED[@]}"; do
    await "$pid"
    if ((CODE > WORST)); then WORST=$CODE; fi
  done
}

PROCESSES="" STARTED=() PORT=PORT
while (($#)); do
  case $1 in
    --processes=*) PROCESSES=${1#*=} ;;
    --) PROGRAM=("${@:2}"); break ;;
    *) shared_flag "$1" ;;
  esac
  shift
done
number --processes "$PROCESSES"
((PROCESSES)) || die 2 "--processes=$PROCESSES: must be at least 1"
need_program
read_environment
find_gpus
((${#GPUS[@]} % PROCESSES == 0)) ||
  die 2 "${#GPUS[@]} GPUs cannot be divided evenly among $PROCESSES processes"
plan_gpus
export_environment
$DRY_RUN ||
  PORT=$("$PYTHON" -c 'import socket; s = socket.create_server(("", 0)); print(s.getsockname()[1])')
trap 'signal TERM' INT TERM
for ((process = 0; process < PROCESSES; process++)); do start "$process"; done
if $DRY_RUN; then exit; fi
finish
exit "$WORST"
