# shellcheck shell=bash disable=SC2034
# What the launch scripts have in common; they source it. These flags mean the same in all of them:
#
#   --data=FOLDER     where the prepared data sets lie: TFDS_DATA_DIR of the program
#   --env-file=FILE   more of its environment, secrets above all: lines NAME=VALUE, taken as they
#                     stand. Values are never printed, nor part of a command that `ps` shows
#   --no-plan         start without the table of --mode=plan
#   --dry-run         print every command, and run none
#   -- ARGUMENTS      of python -m vitdiff_jax.main: --config=, --workdir=, ...

POLL_SECONDS=${POLL_SECONDS:-30}
PROGRESS_SECONDS=${PROGRESS_SECONDS:-600}
PYTHON=${PYTHON:-python3}
DATA="" ENV_FILE="" PLAN=true DRY_RUN=false PROGRAM=() ENVIRONMENT=() FAILURES=0 CODE=0

say() { echo "$SCRIPT: $*" >&2; }
die() { say "${@:2}"; exit "$1"; }  # CODE TEXT
show() { printf '%q ' "$@" && echo; }  # a command as a shell reads it

shared_flag() {  # FLAG; exits where there is none of this name
  case $1 in
    --data=*) DATA=${1#*=} ;;
    --env-file=*) ENV_FILE=${1#*=} ;;
    --no-plan) PLAN=false ;;
    --dry-run) DRY_RUN=true ;;
    --help | -h) sed -n '2,/^set /{/^#\( \|$\)/s/^# \{0,1\}//p}' "$0"; exit ;;
    *) die 2 "unknown argument '$1': write --flag=value, and the program's own after --" ;;
  esac
}

need_program() {
  ((${#PROGRAM[@]})) ||
    die 2 "nothing to run: add the program's arguments, such as -- --config=configs/imagenet.py"
}

number() {  # FLAG VALUE
  [[ $2 =~ ^[0-9]+$ ]] || die 2 "$1=$2 is not a number"
}

read_environment() {  # sets ENVIRONMENT, of NAME=VALUE
  local line number=0
  ENVIRONMENT=()
  if [[ -n $ENV_FILE ]]; then
    [[ -f $ENV_FILE && -r $ENV_FILE ]] || die 2 "--env-file=$ENV_FILE: there is no such file to read"
    while IFS= read -r line || [[ -n $line ]]; do
      number=$((number + 1))
      [[ -n $line && $line != \#* ]] || continue
      [[ $line =~ ^[A-Za-z_][A-Za-z_0-9]*= ]] || die 2 "$ENV_FILE: line $number is not NAME=VALUE"
      ENVIRONMENT+=("$line")
    done <"$ENV_FILE"
  fi
  [[ -z $DATA ]] || ENVIRONMENT+=("TFDS_DATA_DIR=$DATA")
}

export_environment() {  # to what this script starts; of a dry run only the names are seen
  local line
  for line in "${ENVIRONMENT[@]}"; do
    if $DRY_RUN; then echo "export ${line%%=*}=***"; else export "${line?}"; fi
  done
}

find_python() {  # prints a Python that JAX supports; images of Ubuntu 22.04 have only 3.10
  local python
  for python in python3.13 python3.12 python3.11 python3; do
    if "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$python" && return
    fi
  done
  python3 -m pip install --quiet --user uv && python3 -m uv python install --quiet 3.12 &&
    python3 -m uv python find 3.12
}

plan() {  # TOPOLOGY FLAGS...: the table of a training run, before anything is made for it
  local argument asked=()
  $PLAN || return 0
  for argument in "${PROGRAM[@]}"; do
    case $argument in
      --mode=train) ;;
      --mode=*) return 0 ;;
      --config=* | --config.* | --workdir=*) asked+=("$argument") ;;
    esac
  done
  asked=("$PYTHON" -m vitdiff_jax.main "${asked[@]}" "${@:2}" --mode=plan "--topology=$1")
  if $DRY_RUN; then show "${asked[@]}"; return; fi
  say "what is to be expected of $1:"
  "${asked[@]}" >&2 || die 2 "no plan, see above; --no-plan starts without one"
}

find_gpus() {  # sets GPUS to the indices of those that may be used
  local seen
  GPUS=()
  [[ ${JAX_PLATFORMS:-} != cpu ]] && command -v nvidia-smi >/dev/null || return 0
  seen=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>&1) ||
    die 2 "nvidia-smi: $(head -n 1 <<<"$seen")"
  seen=${CUDA_VISIBLE_DEVICES-${seen//[[:space:]]/,}}
  IFS=, read -ra GPUS <<<"$seen"
}

plan_gpus() {  # the plan for GPUS, where there are any and --mode=plan knows them
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

again() {  # LASTED CODE: waits for another run, or gives up with CODE; a long run renews patience
  if (($1 >= PROGRESS_SECONDS)); then FAILURES=0; fi
  FAILURES=$((FAILURES + 1))
  ((FAILURES <= RETRIES)) || die "$2" "gave up after $RETRIES retries without progress"
  sleep "$POLL_SECONDS"
}

await() {  # PID: sets CODE to its exit code, whatever traps run meanwhile; bash need not comment
  CODE=0
  # Not `wait` at once: a trap that runs in it as the process ends may lose the exit code.
  while kill -0 "$1"; do sleep 0.2 || true; done 2>/dev/null
  wait "$1" 2>/dev/null || CODE=$?
}
