#!/usr/bin/env bash
# A file system that is really full, at every size from one unit to a whole result: the program has to name what it could not write
# and leave no OUT, and the same command, given room, has to end in the bytes of a run that never met the limit. Needs the right
# to mount (root in a container).
#
#   tests/interop/full_disk.sh target/release/immunise
set -euo pipefail
immunise=$(realpath "${1:?expected the program}")
work=$(mktemp -d)
disk=$work/disk
mkdir "$disk"
trap 'umount "$disk" 2>/dev/null || true; rm -rf "$work"' EXIT

cat >"$work/recipe.yaml" <<'YAML'
schema: 1
name: small
base_access: public
data: {prompts: builtin:tiny-chat}
layers: [2]
stages:
  - {kind: et, rank: 2, attack_rank: 2, attack_pairs: 8, rounds: 1, steps: 5, prompts: 16, anchors: 16}
suite:
  evaluation_prompts: 10
  max_new_tokens: 8
  attacks:
    - {kind: identity, layers: [0], knowledge: [frozen]}
utility:
  - {task: kl, items: 10}
YAML

# Everything is published, so 5 (nothing was gated) is the whole way.
harden() {
    local status=0
    "$immunise" harden "$work/recipe.yaml" --model builtin:tiny-chat --out "$1/out" --run "$1/run" --allow-fail \
        --progress plain >"$work/said" 2>&1 || status=$?
    echo "$status"
}
digest() { (cd "$1/out" && sha256sum model.safetensors config.json tokenizer.json immunisation/recipe.yaml); }

[ "$(harden "$work/free")" = 5 ] || { cat "$work/said"; exit 1; }
expected=$(digest "$work/free")

for size in 8k 40k 64k 100k 140k 600k 1500k 2050k 2100k 2150k 2200k; do
    mount -t tmpfs -o "size=$size" tmpfs "$disk"
    status=$(harden "$disk")
    said=$(grep '^error: ' "$work/said" || true)
    [ "$status" = 3 ] || { echo "$size: expected exit code 3, got $status"; exit 1; }
    [[ $said == "error: $disk/"*"No space left"* ]] || { echo "$size: expected a file on the full disk, got: $said"; exit 1; }
    [ "$(ls -A "$disk")" = run ] || { echo "$size: left $(ls -A "$disk")"; exit 1; }
    mount -o remount,size=20m "$disk"
    status=$(harden "$disk")
    [ "$status" = 5 ] || { cat "$work/said"; exit 1; }
    [ "$(digest "$disk")" = "$expected" ] || { echo "$size: other bytes than on a free disk"; exit 1; }
    [ "$(ls -A "$disk" | tr '\n' ' ')" = 'out run ' ] || { echo "$size: left $(ls -A "$disk")"; exit 1; }
    echo "$size: ${said#error: "$disk"/}"
    umount "$disk"
done
