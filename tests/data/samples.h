/* Small datasets and pictures for the tests of data/. */
#pragma once
#include "base/buffer.h"
#include "data/dataset_write.h"

void put_file(const char *folder, const char *name, const char *text); // makes folders on the way
void put_bytes(const char *folder, const char *name, const void *bytes, size_t size);
void put_picture(const char *folder, const char *name, int side, int shade); // a PNG or, by its name, a JPEG
char *get_file(const char *folder, const char *name, size_t *size);          // whole; free it
// A dataset of `count` samples: picture, caption "caption N" and json {"n": N}.
void put_dataset(const char *path, int count, int64_t shard_size, DatasetSummary *);
