/* Tensors in one safetensors file, NAME.safetensors, or shared out over several that an index names after Hugging
 * Face's convention: NAME-00001-of-00004.safetensors, ... and NAME.safetensors.index.json. Read, both are one list. */
#pragma once
#include "base/safetensors.h"

typedef struct SafeTensorsSet {
    SafeTensors all; // the tensors of all files, sorted by name; it owns no file, and its metadata is the first one's
    SafeTensors *files; // (count)
    char **paths;       // (count)
    char *index;        // path; NULL: a single file
    int count;
} SafeTensorsSet;

bool safetensors_set_exists(const char *folder, const char *name);
// Refuses files that are missing, hold other tensors than the index says, or were written at different steps
// (SAFETENSORS_STEP in their metadata).
bool safetensors_set_open(SafeTensorsSet *, const char *folder, const char *name, Error *);
// Checksums of every `parts`-th file from `part` on; of the index in all of them.
bool safetensors_set_verify(const SafeTensorsSet *, int part, int parts, Error *);
// Every file says that it belongs to the file `path`; see safetensors_check_file.
bool safetensors_set_check_file(const SafeTensorsSet *, const char *path, Error *);
// What messages call it: the index, or the single file.
const char *safetensors_set_path(const SafeTensorsSet *);
void safetensors_set_close(SafeTensorsSet *); // zeroed structs are allowed

#define SAFETENSORS_STEP "step" // metadata: the step at which a file was written

enum { SAFETENSORS_FILE_NAME = 64 };
// "NAME-00002-of-00004.safetensors" for file 1 of 4, "NAME.safetensors" for the only one.
void safetensors_file_name(char out[SAFETENSORS_FILE_NAME], const char *name, int file, int files);
// The index's text: tensor i lies in file[i] of `files`. The same on whatever rank it is made.
void safetensors_index(Buffer *out, const char *name, const SafeTensor *tensors, const int *file, int count, int files);
