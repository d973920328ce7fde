/* A look at the bytes of a SentencePiece model before SentencePiece, which trusts parts of them, sees them. */
#pragma once
#include "base/error.h"
#include <stddef.h>

// Refuses what is not a whole, plausible model: broken framing, no pieces, scores that are not finite, a normalisation
// table whose links lead outside it. The message does not name the file.
bool tokenizer_model_check(const void *bytes, size_t size, Error *);
