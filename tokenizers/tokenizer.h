/* Text to token ids and back, over SentencePiece (Kudo and Richardson 2018). Of models trained here
 * ids 0..3 are <pad>, <unk>, <s> (begin) and </s> (end). A tokenizer may be used from several threads at once. */
#pragma once
#include "base/buffer.h"
#include "base/error.h"
#include <stdint.h>

typedef struct Tokenizer Tokenizer;
typedef enum { TOKENIZER_UNIGRAM, TOKENIZER_BPE, TOKENIZER_CHAR } TokenizerType;

Tokenizer *tokenizer_load(const char *path, Error *);
Tokenizer *tokenizer_from_bytes(const void *model, size_t size, const char *name, Error *);
void tokenizer_free(Tokenizer *); // NULL is allowed
int tokenizer_vocabulary(const Tokenizer *);
int32_t tokenizer_pad(const Tokenizer *);
int32_t tokenizer_unknown(const Tokenizer *);
int32_t tokenizer_begin(const Tokenizer *);
int32_t tokenizer_end(const Tokenizer *);
// Of a foreign model any of these may be -1: it has none. False, with what to do, where it has no <s> or no </s>.
bool tokenizer_check_marks(const Tokenizer *, Error *);
const void *tokenizer_bytes(const Tokenizer *, size_t *size); // the serialised model, to keep in a checkpoint
uint64_t tokenizer_hash(const Tokenizer *);                   // XXH3-64 of it

typedef struct TokenIds {
    int32_t *ids;
    int count, capacity;
} TokenIds; // owned; zero-initialise; token_ids_free
void token_ids_free(TokenIds *);
void token_ids_push(TokenIds *, int32_t id);
// Appends the ids of `text` (UTF-8, `size` bytes; damaged bytes become U+FFFD); no begin or end added.
bool tokenizer_encode(const Tokenizer *, const char *text, size_t size, TokenIds *, Error *);
// Appends the text of ids to `out`; an id outside the vocabulary is an error. Control ids give nothing.
bool tokenizer_decode(const Tokenizer *, const int32_t *ids, int count, Buffer *out, Error *);

typedef struct TokenizerTraining {
    TokenizerType type;
    int vocabulary;
    double character_coverage; // 0.9995 for English and Chinese together
    bool byte_fallback;        // unknown characters become bytes
    bool keep_whitespace;      // newlines and runs of spaces are kept as they are (language modelling of raw text)
    uint64_t seed;
} TokenizerTraining;
// next_text gives one text a call (valid until the next call), NULL at the end. The model is returned as bytes.
bool tokenizer_train(const TokenizerTraining *, const char *(*next_text)(void *context, size_t *size), void *context,
                     Buffer *model, Error *);
