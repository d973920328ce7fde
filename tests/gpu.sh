#!/bin/bash
# What a GPU proves, in one call on a bare machine (a compiler, CMake, CUDA; no network): builds the kernels and a training
# step alone, and then does what fits into LIMIT seconds (540), the most telling first. Writes one JSON object, anew after
# every part, so that whatever ends the call leaves what was known until then. Exit status 0: all holds, 1: something does
# not, 77: there is no GPU here.
#
#   tests/gpu.sh [all] [OUT.json]    what follows, but for speed of single operators only as far as time is left
#   tests/gpu.sh check [OUT.json]    every operator against the CPU backend, small training steps beside the CPU's,
#                                    links between ranks and GPUs, compute-sanitizer, the speed of every operator, and PyTorch's beside it
#   tests/gpu.sh bench [OUT.json]    whole training steps and generation (gpu_step), PyTorch's in the same run, and
#                                    llm.c's where LLMC=FOLDER has train_gpt2cu built and its data there
#   tests/gpu.sh pack FOLDER         builds the programs where there is no GPU, to be taken along as BUILD=FOLDER
#
# BUILD=FOLDER     programs built elsewhere (gpu_check, gpu_bench, gpu_step, gpu_links, libbifocal_cuda.so)
# ARCHITECTURES=90 what pack compiles for
# PYTHON=python3   one that may have torch; its packages of cuDNN, NCCL and cuBLAS serve where CUDA's folder has none
# ONLY=NAME        one row of bench alone
# LOGS=FOLDER      keeps what the parts wrote
# TINY=1           tries this script: small rows, on whatever the programs run on
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/.." || exit 1
MODE=all
case ${1:-} in all | check | bench | pack)
    MODE=$1
    shift
    ;;
esac
readonly MODE OUT=${1:-gpu.json} BUILD_FOLDER=${BUILD:-build-kernels} PYTHON=${PYTHON:-python3} LIMIT=${LIMIT:-540}
readonly PARTS=${LOGS:-$(mktemp -d)} TINY=${TINY:-}
mkdir -p "$PARTS" || exit 1
warm=''
leave() {
    [ -z "$warm" ] || kill "$warm" 2>/dev/null
    [ -n "${LOGS:-}" ] || rm -rf "$PARTS"
}
trap leave EXIT
export PATH=$PATH:/usr/local/cuda/bin
export XDG_CACHE_HOME=$PARTS/cache # what is timed here is of this run
failed=0

say() { printf '== %4d s  %s\n' "$SECONDS" "$*" >&2; }
left() { echo $((LIMIT - SECONDS)); }
least() { [ "$1" -lt "$2" ] && echo "$1" || echo "$2"; }

# ---- the machine ----

gpu() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -1; }

# Folders of Python's packages of NVIDIA's libraries that have a file: "cudnn_graph.h", "libnccl.so.2"
wheels() {
    "$PYTHON" - "$1" 2>/dev/null <<'PY'
import glob, importlib.util, os, sys
spec = importlib.util.find_spec("nvidia")
for place in spec.submodule_search_locations if spec else ():
    for folder in ("include", "lib"):
        for found in sorted(glob.glob(os.path.join(place, "*", folder, sys.argv[1]))):
            print(os.path.dirname(found))
            sys.exit()
PY
}

# ---- building ----

toolkit() { dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")"; }

# Headers and libraries that CUDA's own folder lacks.
cmake_hints() {
    local root cudnn nccl blas
    root=$(toolkit)
    cudnn=$(wheels cudnn_graph.h) nccl=$(wheels nccl.h)
    [ -e "$root/include/cudnn_graph.h" ] || [ -z "$cudnn" ] || echo "-DCUDNN_INCLUDE=$cudnn"
    [ -e "$root/include/nccl.h" ] || [ -e /usr/include/nccl.h ] || [ -z "$nccl" ] || echo "-DNCCL_INCLUDE=$nccl"
    [ -e "$root/include/cublasLt.h" ] && return
    blas=$(wheels 'libcublasLt.so.*')
    [ -z "$blas" ] || printf '%s\n' "-DCUDA_cublasLt_LIBRARY=$(echo "$blas"/libcublasLt.so.*)" \
        "-DCMAKE_C_FLAGS=-isystem $(wheels cublasLt.h)"
}

build() { # FOLDER ARCHITECTURES SECONDS
    local generator=() hints
    command -v ninja >/dev/null && generator=(-G Ninja)
    mapfile -t hints < <(cmake_hints)
    timeout "$3" cmake -S . -B "$1" "${generator[@]}" -DBIFOCAL_KERNELS_ONLY=ON -DBIFOCAL_WERROR=OFF \
        -DCMAKE_CUDA_ARCHITECTURES="$2" "${hints[@]}" >"$PARTS/build.log" 2>&1 &&
        timeout "$3" cmake --build "$1" --parallel "$(nproc)" >>"$PARTS/build.log" 2>&1
}

if [ "$MODE" = pack ]; then
    say "building for compute capability ${ARCHITECTURES:=90}"
    build build-kernels "$ARCHITECTURES-real" 7200 || { tail -30 "$PARTS/build.log" >&2; exit 1; }
    mkdir -p "$OUT" && cp build-kernels/tests/gpu/gpu_{check,bench,step,links} build-kernels/libbifocal_cuda.so "$OUT"
    exit $?
fi

if [ -z "$(gpu name)" ]; then
    say "skipped: no GPU is here (nvidia-smi finds none)"
    exit 77
fi
NAME=$(gpu name) CAPABILITY=$(gpu compute_cap)

program() { # where a program lies: beside the module, or as the build left it
    local place=$BUILD_FOLDER/tests/gpu/$1
    [ -x "$place" ] || place=$BUILD_FOLDER/$1
    printf '%s' "$place"
}

# ---- what is known so far, as JSON ----

text() { tail -c "${2:-1500}" "$1" 2>/dev/null | tr -d '\000-\010\013-\037' | sed 's/\\/\\\\/g; s/"/\\"/g; s/\t/ /g' |
    awk '{ printf "%s\\n", $0 }'; }
lines() { # a JSON array of what is whole in a file of JSON lines
    printf '[%s]' "$(grep -h '^{.*}$' "$PARTS/$1" 2>/dev/null | paste -sd,)"
}
value() { grep . "$PARTS/$1" 2>/dev/null || printf null; }

write_out() { # true|false: whether all parts came to their end
    local part logs='' what
    for part in "$PARTS"/*.status; do
        [ -e "$part" ] || continue
        what=$(basename "$part" .status)
        logs+=$(printf ',\n  "%s": {%s, "log": "%s"}' "$what" "$(cat "$part")" \
            "$(grep -q '"status": 0' "$part" || text "$PARTS/$what.log")")
    done
    {
        printf '{"gpu": "%s", "capability": "%s", "driver": "%s", "date": "%s", "mode": "%s", "seconds": %d, ' "$NAME" \
            "$CAPABILITY" "$(gpu driver_version)" "$(date -u +%Y-%m-%d)" "$MODE" "$SECONDS"
        printf '"finished": %s, "holds": %s, "llmc_tokens": %s,\n' "$1" "$([ $failed -eq 0 ] && echo true || echo false)" \
            "$(value llmc)"
        printf '"parts": {%s},\n' "${logs#,}"
        for what in check tiny links rows peers bench operator_peers; do
            printf '"%s": %s%s\n' $what "$(lines $what.jsonl)" "$([ $what = operator_peers ] || printf ,)"
        done
        printf '}\n'
    } >"$OUT.new" && mv "$OUT.new" "$OUT"
}

# part NAME SECONDS COMMAND...: output to NAME.jsonl, the rest to NAME.log; what does not end in time is ended
part() {
    local name=$1 most status begin=$SECONDS
    most=$(least "$2" "$(left)")
    shift 2
    if [ "$most" -lt 5 ]; then
        printf '"status": null, "seconds": 0' >"$PARTS/$name.status" # there was no time
        return 1
    fi
    timeout -k 5 "$most" "$@" >>"$PARTS/${OUTPUT:-$name}.jsonl" 2>>"$PARTS/$name.log"
    status=$?
    printf '"status": %d, "seconds": %d' $status $((SECONDS - begin)) >"$PARTS/$name.status"
    [ $status -eq 0 ] || say "$name: exit status $status: $(tail -2 "$PARTS/$name.log" | tr '\n' ' ' | tail -c 300)"
    write_out false
    return $status
}

# ---- parts ----

has_torch() { [ "$TORCH" = yes ]; }
peer_seconds() { echo $(($(least "$1" "$(left)") - 8)); }

check_operators() {
    say "every operator against the CPU backend"
    part check 170 "${ours[@]}" "$(program gpu_check)" "${TINY:-4}" ${TINY:+layernorm} || failed=1
    grep '"holds": false\|"wrong": "[^"]' "$PARTS/check.jsonl" | cut -c1-300 >&2
}

# Small steps of every row on the GPU and on the CPU: first losses within half a percent.
check_steps() {
    say "small training steps beside the CPU's"
    OUTPUT=tiny part tiny_cpu 60 "${ours[@]}" "$(program gpu_step)" --device cpu --tiny ${ONLY:+--only "$ONLY"} || failed=1
    mv "$PARTS/tiny.jsonl" "$PARTS/tiny_cpu.jsonl" 2>/dev/null
    part tiny 60 "${ours[@]}" "$(program gpu_step)" --device cuda --tiny ${ONLY:+--only "$ONLY"} || failed=1
    sed -n 's/.*"row": "\([^"]*\)".*"first_loss": \([^,}]*\).*/\1 \2/p' "$PARTS/tiny_cpu.jsonl" "$PARTS/tiny.jsonl" |
        awk '!($1 in loss) { loss[$1] = $2; next }
             { ok = $2 - loss[$1] <= 0.005 * loss[$1] && loss[$1] - $2 <= 0.005 * loss[$1]; bad += !ok; n++
               if (!ok) print $1 ": loss " $2 ", on the CPU " loss[$1] }
             END { exit !n || bad }' >&2 || failed=1
}

# One GPU linked with itself, three ranks that share it through the hosts, and, where there are several GPUs, a rank each.
check_links() {
    local gpus
    gpus=$(least "$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')" 8)
    say "links: one rank, three on one GPU, ${gpus:-1} GPUs"
    OUTPUT=links part links 40 "${ours[@]}" "$(program gpu_links)" || failed=1
    OUTPUT=links part links_shared 40 "${ours[@]}" CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}" BIFOCAL_NCCL=off \
        tests/support/tcprun.sh 3 "$(program gpu_links)" || failed=1
    [ "${gpus:-1}" -lt 2 ] ||
        OUTPUT=links part links_gpus 90 "${ours[@]}" tests/support/tcprun.sh "$gpus" "$(program gpu_links)" || failed=1
}

# small shapes, one of each
sanitize() { # TOOL
    command -v compute-sanitizer >/dev/null || return
    say "compute-sanitizer $1"
    BIFOCAL_AUTOTUNE=0 part "$1" 100 "${ours[@]}" compute-sanitizer --tool "$1" --target-processes all --error-exitcode 9 \
        "$(program gpu_check)" --here 1 ''
    case $? in 0 | 124 | 1) ;; *) failed=1; grep -m 8 '=========' "$PARTS/$1.jsonl" >&2 ;; esac
}

bench_operators() {
    local name
    for name in $("${ours[@]}" "$(program gpu_bench)" --list); do
        say "speed: $name"
        OUTPUT=bench part "bench_$name" 60 "${ours[@]}" "$(program gpu_bench)" 0.02 "$name" || failed=1
    done
    if has_torch && [ -z "$TINY" ]; then
        say "PyTorch's kernels"
        part operator_peers 120 "$PYTHON" tests/oracles/gpu_peers.py --check "$PARTS/check.jsonl" --bench "$PARTS/bench.jsonl" \
            --seconds "$(peer_seconds 120)" || failed=1
    fi
}

# Each row in a process of its own: what ends one does not end the others.
bench_rows() {
    local memory name reserve=0
    has_torch && reserve=150 # seconds
    memory=$(gpu memory.free | sed 's/[^0-9]//g') # MiB
    [ -n "${ONLY:-}" ] || OUTPUT=rows part peak 30 "${ours[@]}" "$(program gpu_step)" --peak ${TINY:+--tiny} || failed=1
    for name in ${ONLY:-$("${ours[@]}" "$(program gpu_step)" --list)}; do
        if [ "$(left)" -lt $reserve ]; then
            printf '"status": null, "seconds": 0' >"$PARTS/row_$name.status" # PyTorch has its turn
            continue
        fi
        say "row $name"
        OUTPUT=rows part "row_$name" 60 "${ours[@]}" "$(program gpu_step)" --only "$name" --seconds 3 \
            --memory $(((memory - 2048) / 1024)) ${TINY:+--tiny} || failed=1
    done
}

# GPT-2 124M at the same batch by llm.c: tokens a second of the last step
llmc() {
    [ -x "${LLMC:-}/train_gpt2cu" ] || return
    say "llm.c"
    (cd "$LLMC" && timeout 60 ./train_gpt2cu -e d12 -b 32 -t 1024 -d 32768 -x 20 -v 0 -s 0 -y 0) 2>&1 |
        sed -n 's/.*[^0-9]\([0-9.]*\) tok\/s.*/\1/p' | tail -1 >"$PARTS/llmc"
}

bench_peers() {
    has_torch || return
    say "PyTorch's steps and generation"
    part peers "$(least 300 "$(left)")" "$PYTHON" tests/oracles/gpu_step_peers.py --ours "$PARTS/rows.jsonl" \
        --seconds "$(peer_seconds 300)" ${ONLY:+--only "$ONLY"} ${TINY:+--device cpu --tiny} || failed=1
}

# ---- one after the other ----

LIBRARIES=$(printf '%s:' "$(wheels libcudnn.so.9)" "$(wheels libnccl.so.2)" | sed 's/::*/:/g; s/^://')${LD_LIBRARY_PATH:-}
ours=(env "LD_LIBRARY_PATH=$LIBRARIES")
TORCH=no
{ [ -n "$TINY" ] || "$PYTHON" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; } && TORCH=yes
# PyTorch compiles while ours is built and checked, into its cache on disk; what it takes is no figure.
if [ "$MODE" != check ] && [ -z "$TINY" ] && has_torch; then
    "$PYTHON" tests/oracles/gpu_step_peers.py --warm --seconds 140 ${ONLY:+--only "$ONLY"} >/dev/null 2>"$PARTS/warm.log" &
    warm=$!
fi

if [ -z "${BUILD:-}" ]; then
    say "building on $NAME"
    if ! build "$BUILD_FOLDER" "${CAPABILITY/./}-real" 300; then
        failed=1
        printf '"status": 1, "seconds": %d' "$SECONDS" >"$PARTS/build.status"
        tail -30 "$PARTS/build.log" >&2
        write_out false
        exit 1
    fi
    printf '"status": 0, "seconds": %d' "$SECONDS" >"$PARTS/build.status"
fi
BIFOCAL_CUDA_MODULE=$(readlink -f "$BUILD_FOLDER/libbifocal_cuda.so")
export BIFOCAL_CUDA_MODULE
# where the module was linked elsewhere, and CUDA lies in another place here
"${ours[@]}" ldd "$BIFOCAL_CUDA_MODULE" 2>/dev/null | grep -q 'cublasLt.*not found' &&
    LIBRARIES=$LIBRARIES:$(toolkit)/lib64:$(wheels 'libcublasLt.so.*') && ours=(env "LD_LIBRARY_PATH=$LIBRARIES")

if [ "$MODE" != bench ]; then
    check_operators
    check_steps
    check_links
fi
if [ "$MODE" != check ]; then
    [ -n "$warm" ] && { timeout 60 tail --pid="$warm" -f /dev/null || kill "$warm" 2>/dev/null; }
    bench_rows
    llmc
    bench_peers
fi
if [ "$MODE" != bench ]; then
    [ "$MODE" = all ] || sanitize memcheck
    [ "$MODE" = all ] || sanitize racecheck
    bench_operators
    [ "$MODE" = check ] || sanitize memcheck
    [ "$MODE" = check ] || sanitize racecheck
fi
write_out true
say "$([ $failed -eq 0 ] && echo 'all holds' || echo 'SOMETHING DOES NOT HOLD'), $(grep -o '_met": false' "$OUT" | wc -l) \
goals or floors missed: $OUT"
exit $failed
