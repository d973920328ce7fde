/* The samples of a task, one by one, from a .jsonl with images beside it, a dataset folder, or a text file (one
 * sample).
 */
#pragma once
#include "base/buffer.h"
#include "base/json.h"

typedef struct Example { // zero-initialise; reused from call to call; example_free
    json_t *fields;      // an object, owned; {} where the source has none
    Buffer text;         // the .txt member, or a text file; empty where there is none
    Buffer image;        // encoded bytes of the first image; empty where there is none
    char name[320];      // "val.jsonl:12", "shard-000000.tar/000000012": for messages
} Example;

typedef struct Examples Examples;

// limit: samples, 0: all. image_field: of a .jsonl; NULL: images are not read.
Examples *examples_open(const char *path, int64_t limit, const char *image_field, Error *);
void examples_close(Examples *);          // NULL is allowed
int64_t examples_count(const Examples *); // with the limit
int64_t examples_original(const Examples *);
const char *examples_root(const Examples *);                       // Merkle root of a dataset, NULL for files
bool examples_read(Examples *, int64_t index, Example *, Error *); // an error names the sample
void example_free(Example *);
