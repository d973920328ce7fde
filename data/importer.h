/* What stands between a kind of source and the dataset. An importer reads one kind and hands over rows, pictures with
 * captions or documents; the builder judges, splits, writes, counts and tells.
 *
 * To add a kind: an import_NAME.c with one Importer, and its line in build.c's table. */
#pragma once
#include "base/progress.h"
#include "data/build.h"

typedef struct Builder {
    const BuildOptions *options;
    RowRules rules;
    Template *image_template; // NULL: none
    Log *log;
    DatasetWriter *train, *validation; // validation: NULL where nothing is held out
    Progress *progress;
    int64_t rows;              // seen so far, kept or not
    Row row;                   // scratch
    Buffer images[ROW_FIELDS]; // bytes of the row's pictures
    Buffer path, place;
} Builder;

typedef struct Importer {
    const char *name; // "jsonl"
    bool (*takes)(const char *path, const BuildOptions *);
    bool (*count)(const Builder *, const char *path, int64_t *rows, Error *); // about how many, for the time left
    bool (*run)(Builder *, const char *path, Error *);                        // false only where the build must stop
} Importer;

extern const Importer import_jsonl, import_array, import_folder, import_text;

bool builder_full(const Builder *); // --limit is reached: read no more
// A row that builder->row holds (why: row_read's answer): `json` is kept as the sample's .json. folder: what relative
// paths of pictures count from; NULL: a picture of a folder, its path whole and its name
// in builder->place.
bool builder_row(Builder *, const char *why, const char *folder, const char *json, size_t size, Error *);
// A picture with a caption; the caption is in builder->row.texts[0].
bool builder_picture(Builder *, const char *path, Error *);
bool builder_document(Builder *, const Buffer *text, bool held_out, Error *); // as it is, nothing judged
bool builder_held_out(const Builder *, const void *bytes, size_t size);       // keyed by the sample, not by its place
bool rules_given(const RowRules *);
bool rules_missing(const char *path, const json_t *row, Error *);    // an error that names the fields there are
void source_folder(const char *path, Buffer *out);                   // "a/b.jsonl": "a"; "b.jsonl": "."
void source_name(const char *path, Buffer *out);                     // the last name; a slash at the end does not count
void builder_drop(Builder *, const char *cause, const char *detail); // builder->place says where
void builder_place(Builder *, const char *source, int64_t line);     // "train.jsonl:12"
