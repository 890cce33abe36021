#!/usr/bin/env bash
# One array task a shard:  sbatch --array=1-8 --cpus-per-task=8 slurm.sh CANDIDATE BASE POLICY
# and, when all have ended:  immunise report merge parts/* --policy POLICY --out report
set -euo pipefail
task=$SLURM_ARRAY_TASK_ID
rm -f "parts/$task/report.json"    # of an earlier candidate
# A part's own verdict says little: the whole is concluded by `report merge`.
immunise verify "$1" --base "$2" --policy "$3" --report "parts/$task" --run "runs/$task" \
    --shard "$task/$SLURM_ARRAY_TASK_COUNT" || [ -f "parts/$task/report.json" ]
