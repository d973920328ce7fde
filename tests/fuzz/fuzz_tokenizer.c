/* Fuzzes the reader of tokenizer models, and encoding and decoding with whatever it let through. Input: u16 size of the
 * text (little-endian), the text, the model's bytes. */
#include "tokenizers/tokenizer.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    size_t text_size = (size_t)(data[0] | data[1] << 8);
    if (text_size > size - 2) return 0;
    const char *text = (const char *)data + 2;
    Error error = {0};
    Tokenizer *t = tokenizer_from_bytes(text + text_size, size - 2 - text_size, "fuzz", &error);
    if (!t) return 0;
    TokenIds ids = {0};
    Buffer back = {0};
    if (tokenizer_encode(t, text, text_size, &ids, &error)) tokenizer_decode(t, ids.ids, ids.count, &back, &error);
    token_ids_free(&ids);
    buffer_free(&back);
    tokenizer_free(t);
    return 0;
}
