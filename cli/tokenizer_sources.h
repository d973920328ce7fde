/* The texts to train a tokenizer on, one after another: text files, fields of .jsonl files, samples of datasets. */
#pragma once
#include "base/error.h"
#include <stddef.h>
#include <stdint.h>

typedef struct TextSources TextSources;

// sources: files or dataset folders. fields: of .jsonl lines and of the .json members of samples; a field may hold a
// string or a list of strings. The arrays are borrowed.
TextSources *text_sources_open(const char *const *sources, int count, const char *const *fields, int field_count,
                               Error *);
// For tokenizer_train: the next text, NULL at the end and after an error (see text_sources_close).
const char *text_sources_next(void *sources, size_t *size);
int64_t text_sources_count(const TextSources *); // texts so far
// False, with the message, where reading stopped early. NULL is allowed.
bool text_sources_close(TextSources *, Error *);
