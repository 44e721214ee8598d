# shellcheck shell=bash disable=SC2034
# Functions shared by the launch scripts, which source this file. Flags common to all of them:
#
#   --data=FOLDER     folder of the prepared datasets: TFDS_DATA_DIR of the program
#   --env-file=FILE   more environment variables, especially secrets: lines NAME=VALUE, used
#                     verbatim. Values are never printed, nor visible in a command line to `ps`
#   --no-plan         start without the table of --mode=plan
#   --dry-run         print all commands without running them
#   -- ARGUMENTS      for python -m vitdiff_jax.main: --config=, --workdir=, ...

POLL_SECONDS=${POLL_SECONDS:-30}
PROGRESS_SECONDS=${PROGRESS_SECONDS:-600}
PYTHON=${PYTHON:-python3}
DATA="" ENV_FILE="" PLAN=true DRY_RUN=false PROGRAM=() ENVIRONMENT=() FAILURES=0 CODE=0

say() { echo "$SCRIPT: $*" >&2; }
die() { say "${@:2}"; exit "$1"; }  # CODE TEXT
show() { printf '%q ' "$@" && echo; }  # prints a command in shell syntax

shared_flag() {  # FLAG; exits if it is unknown
  case $1 in
    --data=*) DATA=${1#*=} ;;
    --env-file=*) ENV_FILE=${1#*=} ;;
    --no-plan) PLAN=false ;;
    --dry-run) DRY_RUN=true ;;
    --help | -h) sed -n '2,/^set /{/^#\( \|$\)/s/^# \{0,1\}//p}' "$0"; exit ;;
    *) die 2 "unknown argument '$1': write --flag=value, and arguments of the program after --" ;;
  esac
}

need_program() {
  ((${#PROGRAM[@]})) ||
    die 2 "nothing to run: add arguments for the program, such as -- --config=configs/imagenet.py"
}

number() {  # FLAG VALUE
  [[ $2 =~ ^[0-9]+$ ]] || die 2 "$1=$2 is not a number"
}

read_environment() {  # sets ENVIRONMENT, an array of NAME=VALUE
  local line number=0
  ENVIRONMENT=()
  if [[ -n $ENV_FILE ]]; then
    [[ -f $ENV_FILE && -r $ENV_FILE ]] || die 2 "--env-file=$ENV_FILE: no such readable file"
    while IFS= read -r line || [[ -n $line ]]; do
      number=$((number + 1))
      [[ -n $line && $line != \#* ]] || continue
      [[ $line =~ ^[A-Za-z_][A-Za-z_0-9]*= ]] || die 2 "$ENV_FILE: line $number is not NAME=VALUE"
      ENVIRONMENT+=("$line")
    done <"$ENV_FILE"
  fi
  [[ -z $DATA ]] || ENVIRONMENT+=("TFDS_DATA_DIR=$DATA")
}

export_environment() {  # for the programs started here; a dry run prints only the names
  local line
  for line in "${ENVIRONMENT[@]}"; do
    if $DRY_RUN; then echo "export ${line%%=*}=***"; else export "${line?}"; fi
  done
}

find_python() {  # prints a Python that JAX supports; Ubuntu 22.04 images have only 3.10
  local python
  for python in python3.13 python3.12 python3.11 python3; do
    if "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$python" && return
    fi
  done
  python3 -m pip install --quiet --user uv && python3 -m uv python install --quiet 3.12 &&
    python3 -m uv python find 3.12
}

plan() {  # TOPOLOGY FLAGS...: prints the table of a training run, before anything is created
  local argument command=()
  $PLAN || return 0
  for argument in "${PROGRAM[@]}"; do
    case $argument in
      --mode=train) ;;
      --mode=*) return 0 ;;
      --config=* | --config.* | --workdir=*) command+=("$argument") ;;
    esac
  done
  command=("$PYTHON" -m vitdiff_jax.main "${command[@]}" "${@:2}" --mode=plan "--topology=$1")
  if $DRY_RUN; then show "${command[@]}"; return; fi
  say "plan for $1:"
  "${command[@]}" >&2 || die 2 "--mode=plan failed, see above; --no-plan starts without it"
}

find_gpus() {  # sets GPUS to the indices of the usable GPUs
  local seen
  GPUS=()
  [[ ${JAX_PLATFORMS:-} != cpu ]] && command -v nvidia-smi >/dev/null || return 0
  seen=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>&1) ||
    die 2 "nvidia-smi: $(head -n 1 <<<"$seen")"
  seen=${CUDA_VISIBLE_DEVICES-${seen//[[:space:]]/,}}
  IFS=, read -ra GPUS <<<"$seen"
}

plan_gpus() {  # prints the plan for GPUS, if --mode=plan knows them
  local name
  ((${#GPUS[@]})) && $PLAN || return 0
  name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)
  case $name in
    *A100*) plan "a100:${#GPUS[@]}" ;;
    *H100*) plan "h100:${#GPUS[@]}" ;;
    *H200*) plan "h200:${#GPUS[@]}" ;;
    *) say "no plan for $name: --mode=plan does not know it" ;;
  esac
}

again() {  # LASTED CODE: waits before a retry, or gives up with CODE; a long run resets the count
  if (($1 >= PROGRESS_SECONDS)); then FAILURES=0; fi
  FAILURES=$((FAILURES + 1))
  ((FAILURES <= RETRIES)) || die "$2" "gave up after $RETRIES retries without progress"
  sleep "$POLL_SECONDS"
}

await() {  # PID: sets CODE to its exit code, whatever traps run meanwhile; silences bash
  CODE=0
  # No immediate `wait`: a trap that fires in it as the process exits may lose the exit code.
  while kill -0 "$1"; do sleep 0.2 || true; done 2>/dev/null
  wait "$1" 2>/dev/null || CODE=$?
}
