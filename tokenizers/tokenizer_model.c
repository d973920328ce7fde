/* The model is a protocol buffer: ModelProto {1: pieces {1: text, 2: score, 3: type}, 2: trainer, 3: normalizer {2: the
 * normalisation table}, 5: denormalizer}. Only what SentencePiece would follow without looking is checked; the rest is
 * left to SentencePiece's own checks. */
#include "tokenizers/tokenizer_model.h"
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct Wire {
    const uint8_t *at, *end;
} Wire;
typedef struct Field {
    uint32_t number, type;
    uint64_t value;
    Wire bytes;
} Field; // value: types 0, 1, 5; bytes: type 2

static bool wire_varint(Wire *w, uint64_t *value) {
    *value = 0;
    for (int shift = 0; shift < 64 && w->at < w->end; shift += 7) {
        uint8_t byte = *w->at++;
        *value |= (uint64_t)(byte & 127) << shift;
        if (!(byte & 128)) return true;
    }
    return false;
}

static bool wire_fixed(Wire *w, size_t size, uint64_t *value) {
    if ((size_t)(w->end - w->at) < size) return false;
    *value = 0;
    memcpy(value, w->at, size); // little-endian, as this machine
    w->at += size;
    return true;
}

// The next field of a message; false where the bytes are broken.
static bool wire_field(Wire *w, Field *f) {
    uint64_t key = 0, size = 0;
    if (!wire_varint(w, &key) || key >> 3 == 0 || key >> 32) return false;
    *f = (Field){.number = (uint32_t)(key >> 3), .type = (uint32_t)(key & 7)};
    switch (f->type) {
    case 0:
        return wire_varint(w, &f->value);
    case 1:
        return wire_fixed(w, 8, &f->value);
    case 5:
        return wire_fixed(w, 4, &f->value);
    case 2:
        if (!wire_varint(w, &size) || size > (uint64_t)(w->end - w->at)) return false;
        f->bytes = (Wire){w->at, w->at + size};
        w->at += size;
        return true;
    default:
        return false;
    }
}

static bool broken(Error *error, const char *what) {
    return error_set(error, ERROR_FAILED, "damaged SentencePiece model (%s); train or copy it again", what);
}

static bool check_piece(Wire w, Error *error) {
    bool has_text = false;
    Field f;
    while (w.at < w.end) {
        if (!wire_field(&w, &f)) return broken(error, "a piece is cut or garbled");
        if (f.number == 1 && f.type == 2) {
            has_text = f.bytes.at < f.bytes.end;
            if (memchr(f.bytes.at, 0, (size_t)(f.bytes.end - f.bytes.at)))
                return broken(error, "a piece holds a zero byte");
        }
        if (f.number == 2 && f.type == 5) {
            uint32_t bits = (uint32_t)f.value;
            float score;
            memcpy(&score, &bits, sizeof score);
            if (!isfinite(score) || fabsf(score) > 1e9f) return broken(error, "a piece's score is not a number");
        }
    }
    return has_text || broken(error, "a piece has no text");
}

enum { UNIT = 4, BLOCK_UNITS = 256 };

// u32 size of a double-array trie (darts-clone: 256-unit blocks; a unit links to (index ^ offset ^ label)), the trie,
// then zero-terminated replacement texts that its leaves point into.
static bool check_table(Wire w, Error *error) {
    size_t size = (size_t)(w.end - w.at);
    if (!size) return true;
    uint32_t trie = 0;
    if (size < 4) return broken(error, "the normalisation table is cut");
    memcpy(&trie, w.at, 4);
    if (trie > size - 4 || trie == 0 || trie % (UNIT * BLOCK_UNITS))
        return broken(error, "the normalisation table has a wrong size");
    size_t texts = size - 4 - trie;
    if (!texts || w.end[-1] != 0) return broken(error, "the normalisation table's texts are cut");
    uint32_t units = trie / UNIT;
    for (uint32_t i = 0; i < units; i++) {
        uint32_t unit;
        memcpy(&unit, w.at + 4 + (size_t)i * UNIT, UNIT);
        if (unit >> 31) { // a leaf: where its text begins
            if ((unit & 0x7fffffffu) >= texts) return broken(error, "a normalisation rule leads outside its texts");
        } else if (unit) {
            uint32_t offset = (unit >> 10) << ((unit & (1u << 9)) >> 6);
            if ((i ^ offset) >= units) return broken(error, "a normalisation rule leads outside its table");
        }
    }
    return true;
}

static bool check_normalizer(Wire w, Error *error) {
    Field f;
    while (w.at < w.end) {
        if (!wire_field(&w, &f)) return broken(error, "the normalizer is cut or garbled");
        if (f.number == 2 && f.type == 2 && !check_table(f.bytes, error)) return false;
    }
    return true;
}

bool tokenizer_model_check(const void *bytes, size_t size, Error *error) {
    if (!size) return error_set(error, ERROR_FAILED, "the file is empty, not a SentencePiece model");
    Wire w = {bytes, (const uint8_t *)bytes + size};
    Field f;
    int pieces = 0;
    while (w.at < w.end) {
        if (!wire_field(&w, &f)) return broken(error, "its framing ends in the middle or is garbled");
        if (f.number == 1 && f.type == 2) {
            if (!check_piece(f.bytes, error)) return false;
            pieces++;
        }
        if ((f.number == 3 || f.number == 5) && f.type == 2 && !check_normalizer(f.bytes, error)) return false;
    }
    return pieces > 0 || error_set(error, ERROR_FAILED, "not a SentencePiece model: it has no pieces");
}
