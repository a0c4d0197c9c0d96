#!/bin/sh
# The tables of docs/plan.md: sh benchmarks/plan_tables.sh FOLDER, from the root of the repository.
# Compiles each step for all slices: hours of CPU time. A file that is there is not made again.
set -eu
out=${1:?usage: sh benchmarks/plan_tables.sh FOLDER}
python=${PYTHON:-python}
topologies=v5e:4x4,v4:2x2x4,v5p:2x2x1,v6e:4x4
mkdir -p "$out"

# VARIANT CONFIG BATCHES: batches over all chips, of 16 on most of these slices.
tables() {
    for batch in $3; do
        file=$out/$(echo "$1_$2_$batch" | tr '/' '-').md
        test -s "$file" && continue
        echo "$file" >&2
        "$python" run.py bench "--config=configs/$2.py" --config.bench=tpu \
            "--config.topology=$topologies" "--config.train.batch_size=$batch" \
            "--config.model.variant=$1" --config.precision=bfloat16 >"$file.part"
        mv "$file.part" "$file"
    done
}

for variant in ViT-B/32 ViT-B/16 ViT-L/14; do
    tables "$variant" msrvtt "128 256 512 1024"
    tables "$variant" activitynet "64 128 256"
done
