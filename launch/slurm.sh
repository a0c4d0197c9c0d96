#!/usr/bin/env bash
# Trains on GPUs under Slurm, one process a node with all its GPUs; docs/pod.md tells the rest.
#
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh train --config=configs/msrvtt.py --workdir=RUN ...
#
# Submitted from the repository's root, whose .venv (with requirements-gpu.txt) every node sees.
# Jobs of this name run one after another: submit it as often as the run's time needs.
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

# Under Slurm JAX takes one GPU a process, the one of its number on the node, unless told.
gpus=${SLURM_GPUS_ON_NODE:?ask for GPUs: sbatch --gpus-per-node=8}
export JAX_LOCAL_DEVICE_IDS
JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))

# --signal goes to the steps, not to this shell: 120 s before the end the run saves and ends.
# Without the process of one node the others can but wait: srun ends them all.
exec srun --kill-on-bad-exit=1 .venv/bin/python run.py "$@"
