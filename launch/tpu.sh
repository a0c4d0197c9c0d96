#!/usr/bin/env bash
# Creates a TPU slice and runs a job on it, one subcommand per call; see docs/pod.md.
#
#   export NAME=hvp ZONE=us-west4-a TYPE=v5litepod-16 VERSION=v2-alpha-tpuv5-lite
#   export SHARE=10.0.0.2:/share REPOSITORY=https://HOST/hvpnet.git
#   launch/tpu.sh create | install | start ARGUMENTS... | watch | stop | delete
#
# The ARGUMENTS of `start` are those of `python run.py`. Needs an authenticated gcloud.
set -euo pipefail

: "${NAME:?the name of the slice}" "${ZONE:?a zone that offers TYPE}"
MOUNT=/mnt/share # where every host mounts SHARE, an NFS export

# Runs command $2 on the hosts $1: "all" or the index of one.
on() { gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker="$1" --command="$2"; }

case "${1:-}" in
create)
  # A queued resource waits for capacity; --spot is cheaper and may be preempted.
  gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
    --accelerator-type="${TYPE:?such as v5litepod-16 or v4-32}" \
    --runtime-version="${VERSION:?such as v2-alpha-tpuv5-lite or tpu-ubuntu2204-base}" \
    ${SPOT:+--spot}
  gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format="value(state)"
  ;;
install)
  # The image's Python may be older than 3.11; uv installs its own.
  on all "set -e
    sudo apt-get -qq update && sudo apt-get -qq install -y git nfs-common
    sudo mkdir -p $MOUNT && { mountpoint -q $MOUNT || sudo mount ${SHARE:?host:/export} $MOUNT; }
    [ -d hvp ] || git clone --quiet ${REPOSITORY:?where to clone from} hvp
    cd hvp && git pull --quiet
    python3 -m pip install --quiet --user uv
    [ -d .venv ] || python3 -m uv venv --quiet --python 3.11 .venv
    python3 -m uv pip install --quiet -p .venv -r requirements.txt -r requirements-tpu.txt
    .venv/bin/python -c 'import jax; jax.distributed.initialize(); print(jax.devices())'"
  ;;
start)
  shift
  # Every host runs the same command in a session that outlives this connection. It is restarted
  # if it fails, as when the process of another host died, but not on 2, a usage error.
  on all "cd hvp && { setsid bash -c '
    echo \$\$ > run.pid
    for try in \$(seq 20); do
      .venv/bin/python run.py \"\$@\"; status=\$?
      case \$status in 0 | 2) exit \$status ;; esac
      sleep 30
    done' run$(printf ' %q' "$@") > run.log 2>&1 < /dev/null & } && sleep 1"
  ;;
watch) on 0 "tail -n 20 -F hvp/run.log" ;;
# SIGTERM to the loop and the run, which saves a checkpoint and exits.
stop) on all 'kill -TERM -- -$(cat hvp/run.pid)' ;;
delete) gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet ;;
*)
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac
