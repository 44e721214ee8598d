#!/usr/bin/env bash
# Run vitdiff_jax on all GPUs of this machine, in one process, and restart it after a crash.
#
#   launch/gpu.sh [flags] -- ARGUMENTS
#
# Creates or updates a virtual environment, with JAX for the CUDA version of the driver; prints the
# table of --mode=plan; starts the run. After a crash it resumes from its workdir.
#
#   --venv=FOLDER     the virtual environment; default: .venv in this checkout
#   --retries=N       give up after N consecutive crashes without progress, i.e. without a run of
#                     PROGRESS_SECONDS (600); default: 3. Waits POLL_SECONDS (30) before a restart
#   --data=FOLDER     TFDS_DATA_DIR of the program
#   --env-file=FILE   more environment variables, as lines NAME=VALUE; use this for secrets
#   --no-plan         skip --mode=plan
#   --dry-run         print all commands without running them
#
#   launch/gpu.sh --data=/data/tensorflow_datasets -- --config=configs/imagenet.py
#
# CUDA_VISIBLE_DEVICES=0,1 uses only these GPUs. On Ctrl-C the program saves and exits. Exit codes:
# 0 finished; 1 installation failed; 2 invalid usage, no GPU, or --mode=plan failed; 75 stopped by a
# signal after saving (the same command resumes); else the program's own.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SCRIPT=gpu
# shellcheck source=launch/shared.sh
source "$ROOT/launch/shared.sh"

cuda() {  # prints the newest CUDA that both the driver and JAX support
  local version
  version=$(nvidia-smi | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p')
  ((${version:-0} >= 12)) || die 2 "the driver supports CUDA ${version:-?}, JAX needs 12: update it"
  echo "cuda$((version > 12 ? 13 : 12))"
}

install() {  # once for each state of pyproject.toml
  local extra=$1 mark python
  mark="$extra $(cksum <"$ROOT/pyproject.toml")"
  [[ $(cat "$VENV/installed" 2>/dev/null) != "$mark" ]] || return 0
  if $DRY_RUN; then
    show python3 -m venv "$VENV"
    show "$VENV/bin/pip" install --quiet -e "${ROOT}[$extra]"
    return
  fi
  say "installing JAX for $extra into $VENV; this takes minutes the first time"
  python=$(find_python 2>/dev/null) || die 1 "no Python 3.11 or newer found: install one"
  if ! "$python" -m venv "$VENV" || ! "$VENV/bin/pip" install --quiet -e "${ROOT}[$extra]"; then
    die 1 "the installation failed, see above"
  fi
  echo "$mark" >"$VENV/installed"
}

run() {
  local started
  while true; do
    started=$SECONDS
    "$PYTHON" -m vitdiff_jax.main "${PROGRAM[@]}" &
    CHILD=$!
    await "$CHILD"
    case $CODE in
      0 | 2) exit "$CODE" ;;
      *) ! $STOPPED || exit "$CODE"; say "the program ended with exit code $CODE" ;;
    esac
    again $((SECONDS - started)) "$CODE"
  done
}

stop() {
  STOPPED=true
  if [[ -n $CHILD ]]; then kill -TERM "$CHILD" 2>/dev/null || true; else exit 75; fi
}

VENV=$ROOT/.venv RETRIES=3 STOPPED=false CHILD=""
while (($#)); do
  case $1 in
    --venv=*) VENV=${1#*=} ;;
    --retries=*) RETRIES=${1#*=} ;;
    --) PROGRAM=("${@:2}"); break ;;
    *) shared_flag "$1" ;;
  esac
  shift
done
number --retries "$RETRIES"
need_program
read_environment
find_gpus
((${#GPUS[@]})) || die 2 "no GPU found: install NVIDIA's driver; launch/local.sh runs on CPUs"
EXTRA=$(cuda)
install "$EXTRA"
PYTHON=$VENV/bin/python
plan_gpus
export_environment
if $DRY_RUN; then show "$PYTHON" -m vitdiff_jax.main "${PROGRAM[@]}"; exit; fi
trap stop INT TERM
run
