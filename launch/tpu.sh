#!/usr/bin/env bash
# Creates a TPU slice and runs a job on it, one subcommand per call; see docs/pod.md.
#
#   export NAME=hvp ZONE=us-west4-a TYPE=v5litepod-16 VERSION=v2-alpha-tpuv5-lite
#   export BUCKET=gs://BUCKET REPOSITORY=https://HOST/hvpnet.git
#   export SPOT=1      # optional: cheaper, and may be taken back
#   export SLICES=2    # optional: several slices, which train one run together
#   launch/tpu.sh create | install | start ARGUMENTS... | watch | stop | delete
#   launch/tpu.sh keep ARGUMENTS...   # all of it, again after each preemption, until the run ends
#
# The ARGUMENTS of `start` and `keep` are those of `python run.py`. Needs an authenticated gcloud.
set -euo pipefail

: "${NAME:?the name of the slice}" "${ZONE:?a zone that offers TYPE}"

queued_resources() { gcloud compute tpus queued-resources "$1" "$NAME" --zone="$ZONE" "${@:2}"; }

ssh_to() { gcloud compute tpus tpu-vm ssh "$1" --zone="$ZONE" --worker="$2" --command="$3"; }

# Runs a command on all hosts, at the same time on all slices.
on_all() {
  [ "${SLICES:-}" ] || { ssh_to "$NAME" all "$1"; return; }
  local slice job jobs=() status=0
  for slice in $(seq -f "$NAME-%g" 0 $((SLICES - 1))); do
    ssh_to "$slice" all "$1" & jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || status=$?; done
  return "$status"
}

# Runs a command on host 0, of the first slice if there are several.
on_first() { ssh_to "$NAME${SLICES:+-0}" 0 "$1"; }

say() { echo "$(date -u +%FT%TZ) $*"; }

create() {
  # A queued resource waits for capacity. Several slices get the names NAME-0, NAME-1, ...
  local nodes=(--node-id="$NAME")
  [ -z "${SLICES:-}" ] || nodes=(--node-count="$SLICES" --node-prefix="$NAME")
  queued_resources create "${nodes[@]}" \
    --accelerator-type="${TYPE:?such as v5litepod-16 or v4-32}" \
    --runtime-version="${VERSION:?such as v2-alpha-tpuv5-lite or tpu-ubuntu2204-base}" \
    ${SPOT:+--spot}
}

delete() { queued_resources delete --force --quiet; }

# The state of the queued resource; NONE if there is none, UNKNOWN if gcloud does not answer.
state() {
  local answer
  if answer=$(queued_resources describe --format="value(state.state)" 2>&1); then
    echo "${answer##*$'\n'}"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo "$answer" >&2
    echo UNKNOWN
  fi
}

install() {
  # The image's Python may be older than 3.11; uv installs its own. The last two lines show that
  # the hosts find each other, and that each may write to the bucket.
  on_all "set -e
    sudo apt-get -qq update && sudo apt-get -qq install -y git
    [ -d hvp ] || git clone --quiet ${REPOSITORY:?where to clone from} hvp
    cd hvp && git pull --quiet
    python3 -m pip install --quiet --user uv
    [ -d .venv ] || python3 -m uv venv --quiet --python 3.11 .venv
    python3 -m uv pip install --quiet -p .venv -r requirements.txt -r requirements-tpu.txt \
      -r requirements-bucket.txt
    .venv/bin/python -c 'import jax; jax.distributed.initialize(); print(jax.devices())'
    .venv/bin/python -c 'import socket; from data.storage import files
path = \"${BUCKET:?such as gs://NAME}/check/\" + socket.gethostname()
files.write_bytes(path, b\"\"); files.remove(path)'"
}

start() {
  # Every host runs the same command in a session that outlives this connection. It is restarted
  # if it fails, as when the process of another host died, but not on 2, a usage error. A session
  # of before ends first.
  on_all "cd hvp && rm -f run.status && { setsid bash -c '
    if [ -e run.pid ] && kill -TERM -- -\$(cat run.pid) 2> /dev/null; then
      while kill -0 -- -\$(cat run.pid) 2> /dev/null; do sleep 1; done
    fi
    echo \$\$ > run.pid
    for try in \$(seq 20); do
      .venv/bin/python run.py \"\$@\"; status=\$?
      case \$status in 0 | 2) break ;; esac
      sleep 30
    done
    echo \$status > run.status' run$(printf ' %q' "$@") > run.log 2>&1 < /dev/null & } && sleep 1"
}

# What host 0 says about the run: the exit status of its last try, `running` or `none`.
run_state() {
  on_first 'cd hvp 2> /dev/null || { echo none; exit; }
    if [ -e run.status ]; then cat run.status
    elif [ -e run.pid ] && kill -0 -- -$(cat run.pid) 2> /dev/null; then echo running
    else echo none; fi' 2> /dev/null || echo unreachable
}

# Has the slice and the run, until the run ends. Ctrl-C leaves both as they are.
keep() {
  local now before="" started="" # by this command, or before it and still running
  trap 'say "left: slice and run go on; the same command watches them again"; exit 130' INT
  while true; do
    now=$(state)
    [ "$now" != ACTIVE ] || now="ACTIVE, run $(run_state)"
    [ "$now" = "$before" ] || say "$NAME: $now"
    before=$now
    case $now in
    NONE) say "asking for ${TYPE:-}${SPOT:+, spot}" && create || say "refused; asking again" ;;
    SUSPENDED | FAILED)
      started=""
      say "deleting it, to ask again" && delete || say "not deleted; trying again"
      ;;
    "ACTIVE, run running") started=yes ;;
    "ACTIVE, run none" | "ACTIVE, run "[0-9]*)
      if [ -z "$started" ] || [ "$now" = "ACTIVE, run none" ]; then
        say "installing" && install && say "starting" && start "$@" && started=yes ||
          say "failed; trying again"
      elif [ "$now" = "ACTIVE, run 0" ]; then
        say "the run has finished; launch/tpu.sh delete ends the slice"
        return 0
      else
        on_first "tail -n 5 hvp/run.log" || true
        say "the run has failed, and is not tried again"
        return "${now##* }"
      fi
      ;;
    esac
    sleep "${POLL:-60}"
  done
}

case "${1:-}" in
create) create && state ;;
install | delete) "$1" ;;
start | keep) "$@" ;;
watch) on_first "tail -n 20 -F hvp/run.log" ;;
# SIGTERM to the loop and the run, which saves a checkpoint and exits.
stop) on_all 'kill -TERM -- -$(cat hvp/run.pid)' ;;
*)
  sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac
