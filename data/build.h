/* bifocal data build: raw pictures and texts become a dataset. Sources are read in the order given, rows in theirs.
 * A row that cannot be a sample is left out, counted by cause and written to the ledger; it never stops the build. */
#pragma once
#include "base/log.h"
#include "data/dataset_write.h"
#include "data/row.h"

typedef enum { DOCUMENTS_NONE, DOCUMENTS_WHOLE, DOCUMENTS_LINES, DOCUMENTS_BLANK } Documents;

typedef struct BuildOptions {   // zero-initialise it; NULL strings are not given
    const char *const *sources; // .jsonl, .json, a folder of pictures, or text
    int source_count;
    const char *out;
    const char *validation_out; // where samples held out go
    double validation_fraction; // of them, in (0, 1); 0: none
    RowRules rules;             // .jsonl and .json; its image_template is made of the next
    const char *image_template; // "images/{image}.png", in place of image fields
    const char *columns;        // .json of arrays: "question,answer,image"
    Documents documents;        // how a text file is cut into samples; NONE: whole
    int64_t shard_size;         // bytes; 0: BUILD_SHARD_SIZE
    int64_t limit;              // stop after as many samples; 0: all
    uint64_t seed;              // of the split
    const char *name, *license, *source_name;
    bool force, dali_index;
} BuildOptions;
enum { BUILD_SHARD_SIZE = 256 << 20 };

typedef struct BuildResult {
    DatasetSummary train, validation; // validation.samples 0: none was asked for
} BuildResult;

bool build_dataset(const BuildOptions *, Log *, BuildResult *, Error *);
