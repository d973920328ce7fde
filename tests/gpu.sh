#!/bin/bash
# What a GPU proves, in one call of under 8 minutes on a bare machine (a compiler, CMake, CUDA): builds the kernels alone,
# checks every operator against the CPU backend, runs small shapes under compute-sanitizer, measures every operator, and
# PyTorch's beside it where there is one. Writes one JSON object. Exit status 0: all holds, 1: something does not, 77:
# there is no GPU here.
#
#   tests/gpu.sh [OUT.json]
#   tests/gpu.sh bench [OUT.json]
#
# bench: whole training steps and generation instead (gpu_step), in under 9 minutes, with PyTorch's in the same run, and
# llm.c's where LLMC=FOLDER is a checkout of it with train_gpt2cu built and its data there. ONLY=NAME: one row.
#
# BUILD=FOLDER takes programs that were built elsewhere (gpu_check, gpu_bench, gpu_step, libbifocal_cuda.so); PYTHON names
# one that has torch.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
MODE=check
if [ "${1:-}" = bench ]; then
    MODE=bench
    shift
fi
readonly MODE OUT=${1:-gpu.json} BUILD_FOLDER=${BUILD:-build-kernels} PYTHON=${PYTHON:-python3}
readonly PARTS=$(mktemp -d)
trap 'rm -rf "$PARTS"' EXIT
readonly LIMIT=525 # seconds of bench; what is not reached is null
export PATH=$PATH:/usr/local/cuda/bin
export XDG_CACHE_HOME=$PARTS/cache # what is timed here is of this run

say() { printf '== %4d s  %s\n' "$SECONDS" "$*" >&2; }

gpu() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -1; }

if [ -z "$(gpu name)" ]; then
    say "skipped: no GPU is here (nvidia-smi finds none)"
    exit 77
fi
readonly NAME=$(gpu name) CAPABILITY=$(gpu compute_cap)

build() {
    local generator=() architecture=${CAPABILITY/./}
    [ -n "${BUILD:-}" ] && return
    command -v ninja >/dev/null && generator=(-G Ninja)
    cmake -S . -B "$BUILD_FOLDER" "${generator[@]}" -DBIFOCAL_KERNELS_ONLY=ON -DBIFOCAL_WERROR=OFF \
        -DCMAKE_CUDA_ARCHITECTURES="$architecture-real" >"$PARTS/build.log" 2>&1 &&
        cmake --build "$BUILD_FOLDER" --parallel "$(nproc)" >>"$PARTS/build.log" 2>&1
}

program() { # where a program lies: beside the module, or as the build left it
    local place=$BUILD_FOLDER/tests/gpu/$1
    [ -x "$place" ] || place=$BUILD_FOLDER/$1
    printf '%s' "$place"
}

has_torch() { "$PYTHON" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; }

# PyTorch compiles while ours is built, into its cache on disk; what it takes is no figure.
warm=''
if [ $MODE = bench ] && has_torch; then
    timeout 150 "$PYTHON" tests/oracles/gpu_step_peers.py --warm --seconds 140 ${ONLY:+--only "$ONLY"} \
        >/dev/null 2>"$PARTS/warm.log" &
    warm=$!
fi

say "building on $NAME"
if ! build; then
    tail -30 "$PARTS/build.log" >&2
    exit 1
fi
BIFOCAL_CUDA_MODULE=$(readlink -f "$BUILD_FOLDER/libbifocal_cuda.so")
export BIFOCAL_CUDA_MODULE
failed=0

head_of_json() {
    printf '{"gpu": "%s", "capability": "%s", "driver": "%s", "date": "%s", "seconds": %d' "$NAME" "$CAPABILITY" \
        "$(gpu driver_version)" "$(date -u +%Y-%m-%d)" "$SECONDS"
}

# GPT-2 124M at the same batch by llm.c: tokens a second of the last step, or null
llmc() {
    [ -x "${LLMC:-}/train_gpt2cu" ] || { printf null; return; }
    say "llm.c"
    (cd "$LLMC" && timeout 60 ./train_gpt2cu -e d12 -b 32 -t 1024 -d 32768 -x 20 -v 0 -s 0 -y 0) 2>&1 |
        sed -n 's/.*[^0-9]\([0-9.]*\) tok\/s.*/\1/p' | tail -1 | grep . || printf null
}

bench() {
    local memory peers=null llm
    [ -n "$warm" ] && wait "$warm"
    memory=$(gpu memory.free | sed 's/[^0-9]//g') # MiB
    say "steps and generation"
    timeout 200 "$(program gpu_step)" --seconds 3 --memory $(((memory - 2048) / 1024)) ${ONLY:+--only "$ONLY"} \
        >"$PARTS/step.jsonl" 2>"$PARTS/step.log" || failed=1
    cat "$PARTS/step.log" >&2
    llm=$(llmc)
    if [ -n "$warm" ]; then
        say "PyTorch"
        timeout $((LIMIT + 10 - SECONDS)) "$PYTHON" tests/oracles/gpu_step_peers.py --ours "$PARTS/step.jsonl" \
            --seconds $((LIMIT - 15 - SECONDS)) ${ONLY:+--only "$ONLY"} >"$PARTS/peers.json" 2>"$PARTS/peers.log" ||
            { tail -5 "$PARTS/peers.log" >&2; failed=1; }
        [ -s "$PARTS/peers.json" ] && peers=$(cat "$PARTS/peers.json")
    fi
    {
        head_of_json
        printf ', "llmc_tokens": %s,\n"rows": [%s],\n"peers": %s}\n' "$llm" "$(paste -sd, "$PARTS/step.jsonl")" "$peers"
    } >"$OUT"
    say "$OUT: $(grep -o '_met": false' "$OUT" | wc -l) goals or floors missed"
}
if [ $MODE = bench ]; then
    bench
    exit $failed
fi

say "every operator against the CPU backend"
timeout 150 "$(program gpu_check)" 4 >"$PARTS/check.json" 2>"$PARTS/check.log" || failed=1
grep -q '"seconds"' "$PARTS/check.json" || # which comes last
    { tail -5 "$PARTS/check.log" >&2; printf '{"failed": -1}' >"$PARTS/check.json"; }

# sanitize TOOL: small shapes, one of each
sanitize() {
    local status
    if ! command -v compute-sanitizer >/dev/null; then
        printf '"not here"'
        return
    fi
    say "compute-sanitizer $1"
    BIFOCAL_AUTOTUNE=0 timeout 100 compute-sanitizer --tool "$1" --error-exitcode 9 "$(program gpu_check)" 1 >"$PARTS/$1.log" 2>&1
    status=$?
    case $status in
    0) printf '"clean"' ;;
    124) printf '"out of time, nothing found until then"' ;;
    *)
        grep -m 8 '=========' "$PARTS/$1.log" >&2
        printf '"status %d"' $status
        return 1
        ;;
    esac
}
memcheck=$(sanitize memcheck) || failed=1
racecheck=$(sanitize racecheck) || failed=1

say "speed"
timeout 120 "$(program gpu_bench)" 0.02 >"$PARTS/bench.jsonl" 2>"$PARTS/bench.log" || failed=1
bench=$(paste -sd, "$PARTS/bench.jsonl")

peers='null'
if has_torch; then
    say "PyTorch's kernels"
    timeout 120 "$PYTHON" tests/oracles/gpu_peers.py --check "$PARTS/check.json" --bench "$PARTS/bench.jsonl" \
        >"$PARTS/peers.json" 2>"$PARTS/peers.log" || failed=1
    [ -s "$PARTS/peers.json" ] && peers=$(cat "$PARTS/peers.json")
fi

{
    head_of_json
    printf ', "holds": %s,\n' "$([ $failed -eq 0 ] && echo true || echo false)"
    printf '"memcheck": %s, "racecheck": %s,\n"check": ' "$memcheck" "$racecheck"
    cat "$PARTS/check.json"
    printf ',\n"bench": [%s],\n"peers": %s}\n' "$bench" "$peers"
} >"$OUT"
say "$([ $failed -eq 0 ] && echo 'all holds' || echo 'SOMETHING DOES NOT HOLD'): $OUT"
exit $failed
