#!/usr/bin/env bash
# The main job from raw files to a report, on made-up scenes: ./quickstart demo calls this with the program's path.
# Everything it makes lies in demo/ (override with BIFOCAL_DEMO); what is there already from an earlier demo is replaced.
set -euo pipefail
program=${1:-build/bifocal}
root=$(cd "$(dirname "$0")/.." && pwd)
out=${BIFOCAL_DEMO:-$root/demo}
cd "$root"
began=$SECONDS

stage() { printf '\n== %s (%d s so far)\n' "$1" $((SECONDS - began)); }
run() {
    printf '$ bifocal %s\n' "$*"
    "$program" "$@"
}

case $out in '' | /) echo "demo: BIFOCAL_DEMO must be a folder of its own" >&2; exit 2 ;; esac
[ ! -e "$out" ] || [ -e "$out/.bifocal-demo" ] || { echo "demo: $out exists and is not an earlier demo; set BIFOCAL_DEMO to another folder" >&2; exit 2; }
rm -rf "$out"
mkdir -p "$out"
touch "$out/.bifocal-demo"

stage 'Scenes: pictures, captions in English and Chinese, questions, text'
run data synth --out "$out/raw" --samples 8000 --seed 1

stage 'Shards'
run data build "$out/raw/train/captions.jsonl" --image-field image --text-field caption --out "$out/train"
run data build "$out/raw/test/captions.jsonl" --image-field image --text-field caption --out "$out/test"
run data build "$out/raw/text.txt" --documents lines --out "$out/text" --validation-fraction 0.05 --validation-out "$out/text-test"
run data ls "$out/train"

stage 'A tokenizer for both languages'
run tokenizer train "$out/train" "$out/text" --text-field caption --text-field caption_zh --text-field question --text-field answer \
    --vocab-size 600 --out "$out/words.model"

stage 'One model, four objectives'
run train configs/demo.yaml "data.0.path=$out/train" "data.0.validation=$out/test" "data.1.path=$out/train" "data.1.validation=$out/test" \
    "data.2.path=$out/text" "data.2.validation=$out/text-test" "tokenizer=$out/words.model" --run "$out/run"

stage 'Evaluation on scenes it has not seen'
run eval "$out/run" --task scene_zero_shot,scene_zero_shot_zh,scene_qa,scene_retrieval,scene_caption --data "$out/raw/test/captions.jsonl"

stage 'What it says of pictures it has not seen'
head -n 3 "$out/raw/test/captions.jsonl" | while IFS= read -r line; do
    picture=$(printf '%s' "$line" | sed -E 's/.*"image": *"([^"]*)".*/\1/')
    question=$(printf '%s' "$line" | sed -E 's/.*"question": *"([^"]*)".*/\1/')
    printf '%s\n  %s -> ' "$picture" "$question"
    "$program" generate "$out/run" --image "$out/raw/test/$picture" --prompt "$question" --max-tokens 16
    printf '  caption -> '
    "$program" generate "$out/run" --image "$out/raw/test/$picture" --prompt "" --max-tokens 32
done

stage 'The report'
run report "$out/run"
printf '\nDone in %d s. Open %s/run/report.html\n' $((SECONDS - began)) "$out"
