/* Tokenizers over SentencePiece: loading, encoding, decoding. Training is in tokenizer_train.c, the check of foreign
 * model bytes in tokenizer_model.c, the C++ behind sentencepiece_shim.h. */
#include "tokenizers/tokenizer.h"
#include "base/files.h"
#include "base/philox.h"
#include "tokenizers/sentencepiece_shim.h"
#include "tokenizers/tokenizer_model.h"
#include <stdlib.h>
#include <string.h>

struct Tokenizer {
    SpModel *model;
    Buffer bytes;
    uint64_t hash;
    bool exact;            // spaces are kept and bytes can be written: decode(encode(x)) == x for all valid UTF-8
    int32_t mark_bytes[3]; // ids of the bytes of U+2581
};

enum { MOST_MODEL_BYTES = 256 << 20 };
static const char SPACE_MARK[] = "\xe2\x96\x81"; // U+2581: how SentencePiece writes a space inside its pieces

static void count_id(void *context, int32_t id) {
    (void)id;
    ++*(int *)context;
}

// A text's own U+2581 would come back as a space. Where the model keeps spaces and knows bytes, it is written as bytes.
static void find_exactness(Tokenizer *t) {
    char message[SP_MESSAGE];
    int count = 0;
    t->exact = !sp_adds_prefix(t->model) && sp_encode(t->model, " ", 1, count_id, &count, message) && count > 0;
    for (int i = 0; i < 3; i++) {
        t->mark_bytes[i] = sp_byte(t->model, (unsigned char)SPACE_MARK[i]);
        t->exact = t->exact && t->mark_bytes[i] >= 0;
    }
}

Tokenizer *tokenizer_from_bytes(const void *model, size_t size, const char *name, Error *error) {
    if (!tokenizer_model_check(model, size, error)) goto refused;
    char message[SP_MESSAGE] = "";
    SpModel *loaded = sp_load(model, size, message);
    if (!loaded) {
        error_set(error, ERROR_FAILED, "not a SentencePiece model (%s)", message);
        goto refused;
    }
    Tokenizer *t = calloc(1, sizeof *t);
    check(t);
    t->model = loaded;
    buffer_append(&t->bytes, model, size);
    t->hash = hash_u64(model, size);
    find_exactness(t);
    return t;
refused:
    error_prefix(error, "%s", name);
    return NULL;
}

Tokenizer *tokenizer_load(const char *path, Error *error) {
    Buffer bytes = {0};
    Tokenizer *t = NULL;
    if (file_read_limited(path, MOST_MODEL_BYTES, &bytes, error))
        t = tokenizer_from_bytes(bytes.data, bytes.size, path, error);
    buffer_free(&bytes);
    return t;
}

void tokenizer_free(Tokenizer *t) {
    if (!t) return;
    sp_free(t->model);
    buffer_free(&t->bytes);
    free(t);
}

int tokenizer_vocabulary(const Tokenizer *t) { return sp_vocabulary(t->model); }
int32_t tokenizer_pad(const Tokenizer *t) { return sp_pad(t->model); }
int32_t tokenizer_unknown(const Tokenizer *t) { return sp_unknown(t->model); }
int32_t tokenizer_begin(const Tokenizer *t) { return sp_begin(t->model); }
int32_t tokenizer_end(const Tokenizer *t) { return sp_end(t->model); }

bool tokenizer_check_marks(const Tokenizer *t, Error *error) {
    bool begin = tokenizer_begin(t) >= 0, end = tokenizer_end(t) >= 0;
    if (begin && end) return true;
    return error_set(error, ERROR_FAILED,
                     "the tokenizer has no %s, which mark%s where a text begins and ends; make one with `bifocal "
                     "tokenizer train`, or with --bos_id and --eos_id of spm_train",
                     begin ? "</s>" : end ? "<s>" : "<s> and no </s>", begin || end ? "s" : "");
}

const void *tokenizer_bytes(const Tokenizer *t, size_t *size) {
    *size = t->bytes.size;
    return t->bytes.data;
}

uint64_t tokenizer_hash(const Tokenizer *t) { return t->hash; }

void token_ids_free(TokenIds *ids) {
    free(ids->ids);
    *ids = (TokenIds){0};
}

void token_ids_push(TokenIds *ids, int32_t id) {
    if (ids->count == ids->capacity) {
        ids->capacity = ids->capacity ? 2 * ids->capacity : 64;
        ids->ids = realloc(ids->ids, sizeof *ids->ids * (size_t)ids->capacity);
        check(ids->ids);
    }
    ids->ids[ids->count++] = id;
}

static void push_id(void *context, int32_t id) { token_ids_push(context, id); }

static bool encode_part(const Tokenizer *t, const char *text, size_t size, TokenIds *ids, Error *error) {
    char message[SP_MESSAGE] = "";
    if (!size || sp_encode(t->model, text, size, push_id, ids, message)) return true;
    return error_set(error, ERROR_FAILED, "a text of %zu bytes could not be tokenized (%s)", size, message);
}

bool tokenizer_encode(const Tokenizer *t, const char *text, size_t size, TokenIds *ids, Error *error) {
    while (t->exact && size) {
        const char *mark = memmem(text, size, SPACE_MARK, 3);
        if (!mark) break;
        if (!encode_part(t, text, (size_t)(mark - text), ids, error)) return false;
        for (int i = 0; i < 3; i++) token_ids_push(ids, t->mark_bytes[i]);
        size -= (size_t)(mark + 3 - text);
        text = mark + 3;
    }
    return encode_part(t, text, size, ids, error);
}

static void append_text(void *context, const char *bytes, size_t size) { buffer_append(context, bytes, size); }

bool tokenizer_decode(const Tokenizer *t, const int32_t *ids, int count, Buffer *out, Error *error) {
    int vocabulary = tokenizer_vocabulary(t);
    for (int i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= vocabulary)
            return error_set(error, ERROR_FAILED, "token id %d (number %d) is outside the vocabulary of %d", ids[i],
                             i + 1, vocabulary);
    char message[SP_MESSAGE] = "";
    if (!count || sp_decode(t->model, ids, count, append_text, out, message)) return true;
    return error_set(error, ERROR_FAILED, "%d token ids could not be turned into text (%s)", count, message);
}
