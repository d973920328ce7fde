/* The texts of a sample: its .txt members, or what a template makes of its .json. */
#pragma once
#include "data/loader_cache.h"
#include "data/template.h"

// The members of a sample as they were read, which must outlive it; pictures are left out.
Prepared sample_texts(const Sample *);
// How many texts the sample can give (template NULL: its .txt members), and one of them appended to `out`, false where
// it cannot be made or is blank.
int sample_text_count(const Template *, const Prepared *);
bool sample_text(const Template *, const Prepared *, int variant, Buffer *out, Error *);
// One of them, drawn; without white space at either end.
bool sample_text_draw(const Template *, const Prepared *, uint64_t draw, Buffer *out, Error *);
