/* Small datasets for tests of the loader: pictures of one colour each, which says what sample they belong to. */
#pragma once
#include "data/dataset_write.h"
#include "data/loader.h"
#include "tests/support/test.h"

typedef struct TinyOptions {
    const char *folder, *name; // the dataset goes to folder/name
    int samples;
    int images;      // of a sample; 0: none
    int damaged;     // every so many-th sample holds a broken picture; 0: none
    bool text_alone; // longer texts, no json
    int64_t shard_size;
} TinyOptions;

// Sample i: a 20 x 14 PNG (odd i: JPEG of 33 x 47) around colour (i % 251, i / 251, image), the caption
// "caption of picture i", and {"class": "c<i % 5>", "question": "what is i", "answer": "it is i"}. Returns its path,
// which the caller frees.
char *tiny_dataset(const TinyOptions *);
Tokenizer *tiny_tokenizer(void); // of characters
int tiny_colour(int sample);     // the red of its pictures
