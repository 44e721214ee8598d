#!/usr/bin/env bash
# Run vitdiff_jax as several processes on this machine, which share its GPUs or have a CPU each.
#
#   launch/local.sh --processes=N [flags] -- ARGUMENTS
#
#   --processes=N     at least one GPU for each, where there are GPUs; JAX_PLATFORMS=cpu leaves
#                     them alone, and CUDA_VISIBLE_DEVICES=0,1 says which there are
#   --data=FOLDER     the program's TFDS_DATA_DIR
#   --env-file=FILE   more of its environment, as lines NAME=VALUE: secrets are seen nowhere else
#   --no-plan         with GPUs: do not plan, which needs pip install -e ".[plan]"
#   --dry-run         print every command, and run none
#
#   launch/local.sh --processes=2 -- --config=configs/digits.py --workdir=runs/two
#
# Runs in the Python of $PYTHON (default: python3), that of an active virtual environment. Each line
# of output says whose it is. Ctrl-C has all of them save and end. When one ends, the others have
# GRACE_SECONDS (60) to do so too, then they are killed. Exit code: the highest of theirs; 75:
# stopped by a signal after saving, and the same command goes on; 2: wrong usage, or no plan.
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
  # What labels the output outlives Ctrl-C, or the last words would be lost.
  PYTHONUNBUFFERED=1 "${command[@]}" > >(trap '' INT TERM && exec sed -u "s/^/[$1] /") 2>&1 &
  STARTED+=("$!")
}

signal() { kill "-$1" "${STARTED[@]}" 2>/dev/null || true; }

running() {  # how many
  local pid count=0
  for pid in "${STARTED[@]}"; do if kill -0 "$pid" 2>/dev/null; then count=$((count + 1)); fi; done
  echo "$count"
}

finish() {  # waits for the first to end, then for the others; sets WORST to the highest exit code
  local pid until
  while (($(running) == PROCESSES)); do sleep 0.2 || true; done  # Ctrl-C ends the sleep, too
  until=$((SECONDS + GRACE_SECONDS))
  while (($(running) && SECONDS < until)); do sleep 0.2 || true; done
  (($(running) == 0)) || say "one has ended, others not within $GRACE_SECONDS s: killing them"
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
((PROCESSES)) || die 2 "--processes=$PROCESSES: at least 1"
need_program
read_environment
find_gpus
((${#GPUS[@]} % PROCESSES == 0)) ||
  die 2 "${#GPUS[@]} GPUs cannot be shared out evenly to $PROCESSES processes"
plan_gpus
export_environment
$DRY_RUN ||
  PORT=$("$PYTHON" -c 'import socket; s = socket.create_server(("", 0)); print(s.getsockname()[1])')
trap 'signal TERM' INT TERM
for ((process = 0; process < PROCESSES; process++)); do start "$process"; done
if $DRY_RUN; then exit; fi
finish
exit "$WORST"
