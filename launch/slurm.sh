#!/usr/bin/env bash
# Trains on GPUs under Slurm, with one process per node that uses all its GPUs; see docs/pod.md.
#
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh train --config=configs/msrvtt.py --workdir=RUN ...
#
# Submit it from the repository's root, whose .venv (with requirements-gpu.txt) must be visible to
# every node. Jobs of this name run one after another: submit as many as the run needs.
#SBATCH --job-name=hvp
#SBATCH --dependency=singleton
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x.log
#SBATCH --signal=TERM@120
set -euo pipefail

# By default, JAX under Slurm uses one GPU per process, the one with its local index.
gpus=${SLURM_GPUS_ON_NODE:?ask for GPUs: sbatch --gpus-per-node=8}
export JAX_LOCAL_DEVICE_IDS
JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))

# --signal goes to the job steps, not to this shell: 120 s before the time limit the run saves a
# checkpoint and exits. If one process dies the others would wait forever, so srun kills them.
exec srun --kill-on-bad-exit=1 .venv/bin/python run.py "$@"
