#!/bin/bash
# What a GPU proves, in one call of under 8 minutes on a bare machine (a compiler, CMake, CUDA): builds the kernels alone,
# checks every operator against the CPU backend, runs small shapes under compute-sanitizer, measures every operator, and
# PyTorch's beside it where there is one. Writes one JSON object. Exit status 0: all holds, 1: something does not, 77:
# there is no GPU here.
#
#   tests/gpu.sh [OUT.json]
#
# BUILD=FOLDER takes programs that were built elsewhere (gpu_check, gpu_bench, libbifocal_cuda.so); PYTHON names one that
# has torch.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
readonly OUT=${1:-gpu.json} BUILD_FOLDER=${BUILD:-build-kernels} PYTHON=${PYTHON:-python3}
readonly PARTS=$(mktemp -d)
trap 'rm -rf "$PARTS"' EXIT
export PATH=$PATH:/usr/local/cuda/bin

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

say "building on $NAME"
if ! build; then
    tail -30 "$PARTS/build.log" >&2
    exit 1
fi
BIFOCAL_CUDA_MODULE=$(readlink -f "$BUILD_FOLDER/libbifocal_cuda.so")
export BIFOCAL_CUDA_MODULE
failed=0

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
    timeout 100 compute-sanitizer --tool "$1" --error-exitcode 9 "$(program gpu_check)" 1 >"$PARTS/$1.log" 2>&1
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
if "$PYTHON" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    say "PyTorch's kernels"
    timeout 120 "$PYTHON" tests/oracles/gpu_peers.py --check "$PARTS/check.json" --bench "$PARTS/bench.jsonl" \
        >"$PARTS/peers.json" 2>"$PARTS/peers.log" || failed=1
    [ -s "$PARTS/peers.json" ] && peers=$(cat "$PARTS/peers.json")
fi

{
    printf '{"gpu": "%s", "capability": "%s", "driver": "%s", "seconds": %d, "holds": %s,\n' "$NAME" "$CAPABILITY" \
        "$(gpu driver_version)" "$SECONDS" "$([ $failed -eq 0 ] && echo true || echo false)"
    printf '"memcheck": %s, "racecheck": %s,\n"check": ' "$memcheck" "$racecheck"
    cat "$PARTS/check.json"
    printf ',\n"bench": [%s],\n"peers": %s}\n' "$bench" "$peers"
} >"$OUT"
say "$([ $failed -eq 0 ] && echo 'all holds' || echo 'SOMETHING DOES NOT HOLD'): $OUT"
exit $failed
