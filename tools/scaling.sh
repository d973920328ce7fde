#!/usr/bin/env bash
# Every figure and drawing of docs/scaling.md: tools/scaling.sh [PROGRAM [FOLDER]] prints the tables and draws into FOLDER
# (docs).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
program=$(realpath "${1:-$root/build/bifocal}")
out=$(realpath "${2:-$root/docs}")

memory=72e9 # of 80e9: the rest is the driver's, the network's, and what plans do not know

# plan CONFIG RANKS SETTINGS...
plan() {
    local config=$1 ranks=$2
    shift 2
    "$program" plan step "$root/configs/$config.yaml" parallel.zero=1 "$@" --ranks "$ranks" --memory $memory
}

# row CONFIG RANKS SETTINGS...: a line of a table
row() {
    plan "$@" | awk '
        NR == 1 { sub(/^[0-9]+ processes: /, ""); pieces = $0; sub(/.*step, /, "", pieces); sub(/,? ZeRO.*/, ""); layout = $0 }
        /^features/ { features = $5 } /^rows/ { rows = $5; bubble = $8 } /^gradients/ { exchange = $4 }
        /^step / { step = $2 } /^fullest/ { memory = $3 } /^positions/ { text = $4 } /^pictures/ { pictures = $2 }
        /^a message/ { sent = $(NF - 5) } /MFU/ { mfu = $6 }
        END {
            sub(/ on each data rank.*/, "", pieces)
            printf "| %s | %s | %.1f | %.1f + %.1f + %.1f = %.1f | %s %% | %s | %.3g | %.0f | %s %% |\n", layout, pieces,
                memory, features, rows, exchange, step, bubble, sent, text / 1e6, pictures, mfu
        }'
}

# table TITLE CONFIG RANKS SETTINGS..., then candidates on stdin, the best first
table() {
    local config=$2 ranks=$3
    printf '\n%s\n' "$1"
    printf '| layout | microbatches of a data rank | fullest stage, GB | step, ms: features + rows + exchange | bubble | sent by a rank, GB | M tokens/s | pictures/s | MFU |\n'
    printf '|---|---|---|---|---|---|---|---|---|\n'
    shift 3
    while read -r line; do
        # shellcheck disable=SC2086 # settings are words
        row "$config" "$ranks" "$@" $line || printf '| %s | | does not fit | | | | | | |\n' "$line"
    done
}

v='parallel.schedule=zb-v'
t2='parallel.tensor=2 parallel.sequence=true'
t4='parallel.tensor=4 parallel.sequence=true'
large='data.0.batch=16384 data.1.batch=1024'
huge='data.0.batch=32768 data.1.batch=4096'
# shellcheck disable=SC2086
{
    table 'joint-b, 8' joint_b 8 train.microbatches=64 <<EOF
seed=1
parallel.pipeline=2 $v
EOF
    table 'joint-b, 64' joint_b 64 $large train.microbatches=256 <<EOF
seed=1
parallel.pipeline=2
parallel.pipeline=4 $v
EOF
    table 'joint-b, 1,024' joint_b 1024 $huge train.microbatches=2048 <<EOF
parallel.pipeline=4 $v
parallel.pipeline=2
train.microbatches=1024
parallel.pipeline=8 $v
EOF
    table 'joint-l, 8' joint_l 8 train.microbatches=128 <<EOF
seed=1
parallel.pipeline=2 $v
EOF
    table 'joint-l, 64' joint_l 64 $large train.microbatches=256 <<EOF
seed=1
parallel.pipeline=2 $v
parallel.pipeline=4 $v train.microbatches=512
EOF
    table 'joint-l, 1,024' joint_l 1024 $huge train.microbatches=2048 <<EOF
parallel.pipeline=4 $v
parallel.pipeline=2 $v
train.microbatches=1024
EOF
    table 'joint-10b, 8' joint_10b 8 data.0.batch=4096 data.1.batch=512 train.microbatches=512 <<EOF
parallel.pipeline=4 $v
parallel.pipeline=8 $v
parallel.pipeline=8 parallel.schedule=1f1b
parallel.pipeline=4 $t2 $v
parallel.pipeline=2 $t4 $v
EOF
    table 'joint-10b, 64' joint_10b 64 data.0.batch=8192 data.1.batch=512 train.microbatches=512 <<EOF
parallel.pipeline=4 $v
parallel.pipeline=8 $v
parallel.pipeline=2 $t2 $v
parallel.pipeline=4 $t2 $v
$t4
EOF
    table 'joint-10b, 1,024' joint_10b 1024 data.0.batch=32768 data.1.batch=2048 train.microbatches=2048 <<EOF
parallel.pipeline=2 $t2 $v
parallel.pipeline=4 $t2 $v
parallel.pipeline=4 $v
EOF

    # The same layouts where products reach less, or the network does.
    machine='--flops 400e12'
    table 'joint-10b, 1,024, products at 400 TFLOP/s' joint_10b 1024 data.0.batch=32768 data.1.batch=2048 train.microbatches=2048 $machine <<EOF
parallel.pipeline=2 $t2 $v
parallel.pipeline=4 $v
EOF
    machine='--outside 20e9'
    table 'joint-10b, 1,024, 20 GB/s between nodes' joint_10b 1024 data.0.batch=32768 data.1.batch=2048 train.microbatches=2048 $machine <<EOF
parallel.pipeline=2 $t2 $v
parallel.pipeline=4 $v
EOF

    # Drawings: where a data rank has more than 16 microbatches, a step of 16 that are as large.
    draw() {
        local name=$1
        shift
        printf '\n%s\n' "$name"
        plan "$@" --svg "$out/scaling_$name.svg"
    }
    draw b_8 joint_b 8 train.microbatches=64
    draw b_64 joint_b 64 $large train.microbatches=256
    draw b_1024 joint_b 1024 $huge train.microbatches=2048 parallel.pipeline=4 $v
    draw l_8 joint_l 8 train.microbatches=128
    draw l_64 joint_l 64 $large train.microbatches=256
    draw l_1024 joint_l 1024 $huge train.microbatches=2048 parallel.pipeline=4 $v
    draw 10b_8 joint_10b 8 data.0.batch=256 data.1.batch=32 train.microbatches=32 parallel.pipeline=4 $v
    draw 10b_64 joint_10b 64 data.0.batch=4096 data.1.batch=256 train.microbatches=256 parallel.pipeline=4 $v
    draw 10b_1024 joint_10b 1024 data.0.batch=32768 data.1.batch=2048 train.microbatches=2048 parallel.pipeline=2 $t2 $v
}
