/* Writing a dataset: shards of about one size, their sidecars, the ledger of what was left out, and last of all
 * dataset.json, so that a folder without it is no dataset and one with it is whole. No date and no path of this machine
 * enters: the same samples give the same bytes. */
#pragma once
#include "data/shard_write.h"

typedef struct DatasetOptions {
    const char *path;                    // the folder; made where it is absent
    const char *name, *license, *source; // "" where not known
    int64_t shard_size;                  // bytes of a tar after which the next begins
    bool force;                          // replace a dataset that is there
    bool dali_index;
    const char *const *options; // "name=value" of whatever shaped the samples, for the record
    int option_count;
} DatasetOptions;

typedef struct DatasetSummary {
    int64_t samples, bytes, dropped; // bytes: of the tars
    int shards;
    char root[SHA256_HEX + 1], uuid[37];
} DatasetSummary;

typedef struct DatasetWriter DatasetWriter;
// Refuses a folder that holds anything but an older dataset, and that too without `force`.
DatasetWriter *dataset_create(const DatasetOptions *, Error *);
bool dataset_add(DatasetWriter *, const NewSample *, Error *); // the key is made here: `key` is ignored
int64_t dataset_written(const DatasetWriter *);                // samples so far
// A source file, for the record: its last name, bytes and SHA-256.
void dataset_add_source(DatasetWriter *, const char *name, int64_t bytes, const uint8_t sha256[SHA256_SIZE]);
// A sample left out: counted by cause and written to the ledger. Returns how often this cause came.
int64_t dataset_drop(DatasetWriter *, const char *cause, const char *place, const char *detail);
int64_t dataset_dropped(const DatasetWriter *,
                        Buffer *causes); // causes: "3 caption_blank, 1 image_missing" is appended
// Frees the writer, also where it fails. A dataset without samples is an error.
bool dataset_finish(DatasetWriter *, DatasetSummary *, Error *);
// A new folder keeps finished shards but no dataset.json; a dataset that was to be replaced stays. NULL is allowed.
void dataset_abandon(DatasetWriter *);
