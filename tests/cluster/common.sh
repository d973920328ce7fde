# What the scripts of this folder share. Each is run as `NAME.sh BIFOCAL` (the program), as root; exit status 77: skipped,
# with the reason on stderr. ctest runs them as `NAME.sh BIFOCAL --when-asked`: only with BIFOCAL_CLUSTER=1.

skip() {
    echo "skipped: $*" >&2
    exit 77
}

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

[ "${2:-}" != --when-asked ] || [ -n "${BIFOCAL_CLUSTER:-}" ] ||
    skip "it starts daemons or changes the network of this machine for a while; set BIFOCAL_CLUSTER=1 to run it"

# make_project BIFOCAL: data, tokenizer and config.yaml of a joint model that trains some hundred steps a second, here
make_project() {
    cat >config.yaml <<'YAML'
tokenizer: words.model
data:
  - {path: data, objectives: [caption, contrastive, mae], batch: 4}
  - {path: text, objectives: [lm], batch: 4}
sequence: {lm: 24, caption: 64, contrastive: 40}
model:
  weight: {lm: 0.5, caption: 1, contrastive: 1, mae: 0.5}
  embedding: 16
  vision: {enabled: true, image_size: 32, patch: 8, width: 16, layers: 1, heads: 2}
  text: {context: 64, width: 16, layers: 1, heads: 2}
  mae: {decoder_width: 16, decoder_layers: 1, decoder_heads: 2}
optimizer: {warmup_steps: 2, learning_rate: 0.001, schedule: constant}
threads: 1
YAML
    {
        "$1" data synth --out raw --samples 60 --threads 1
        "$1" data build raw/train/captions.jsonl --image-field image --text-field caption --out data
        "$1" data build raw/text.txt --documents lines --out text
        "$1" tokenizer train data text --vocab-size 350 --type bpe --text-field caption --out words.model
    } >make.log 2>&1 || fail "the project could not be made: $(tail -n 3 make.log)"
}

# wait_for SECONDS COMMAND...: until it succeeds
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.1
    done
}

has_steps() { [ "$(wc -l 2>/dev/null <"$1/metrics.jsonl" || echo 0)" -ge "$2" ]; } # RUN STEPS
losses() { grep -oE '"(step|loss|loss/[a-z]+|gradient_norm)": ?[^,}]+' "$1/metrics.jsonl"; } # RUN
# same_losses RUN RUN STEPS: and gradient norms, to the last digit
same_losses() {
    [ "$(losses "$1" | grep -c '"step"')" = "$3" ] && [ "$(losses "$1" | sha256sum)" = "$(losses "$2" | sha256sum)" ]
}
