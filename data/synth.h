/* bifocal data synth: scenes as JPEG and PNG files with captions.jsonl, split into train and test, and plain text. The
 * same seed gives the same bytes, whatever the number of threads. */
#pragma once
#include "base/log.h"
#include <stdint.h>

typedef struct SynthOptions { // zero-initialise it
    const char *out;          // DIR/train, DIR/test: captions.jsonl and images/; DIR/text.txt
    int64_t samples;          // for training; a tenth more, at least 100, is held out
    uint64_t seed;
    int threads; // 0: one a core
    bool force;  // replace what an earlier run left
} SynthOptions;
enum { SYNTH_SAMPLES = 20000 };

typedef struct SynthResult {
    int64_t train, test, text_lines;
    int classes; // colours x shapes
} SynthResult;

bool synth_write(const SynthOptions *, Log *, SynthResult *, Error *);
