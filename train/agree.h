/* Ranks that do the same thing or none: after each stage of opening a run they agree whether all of them could, and one
 * vote a step says whether somebody was asked to stop, has failed, or skipped too many samples. */
#pragma once
#include "base/error.h"
#include "fusion/joint.h"

// Whether `ok` holds on every rank. Where not, every rank's error becomes that of the lowest rank that failed, which is
// named unless all failed alike. Collective.
bool agree(Comm *, bool ok, Error *);

// The same of what rank 0 alone did for all of them: no rank is named.
bool agree_with_first(Comm *, bool ok, Error *);

typedef struct Vote {   // of a rank before a step; agree_on adds them up
    int64_t failed;     // ranks that could not get ready
    int64_t stop;       // the signal that asks to stop, the largest; 0: none
    int64_t written;    // ranks that have done their part of a checkpoint
    int64_t bad, draws; // samples that could not be used, of those tried
    int64_t tokens, images;
    JointFlop flop, by_count; // of the step's batch, by two conventions
    double data_wait;         // seconds that it was waited for
} Vote;
// Sums over all ranks but for stop and data_wait, the largest. Of ranks that share the samples of one data place only
// the first counts where samples are counted: `counts` says whether this one is it.
Vote agree_on(Comm *, const Vote *, bool counts);
