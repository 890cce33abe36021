#!/usr/bin/env bash
# Blocks of a local stage over array tasks:  sbatch --array=1-8 --cpus-per-task=8 slurm-harden.sh RECIPE MODEL OUT
# and, when all have ended:  immunise harden RECIPE --model MODEL --out OUT --assemble OUT.part-*
set -euo pipefail
immunise harden "$1" --model "$2" --out "$3" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
