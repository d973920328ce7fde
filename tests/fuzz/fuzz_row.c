/* Fuzzes what a builder does with a line of a .jsonl, and with a caption file. */
#include "data/row.h"
#include "data/utf8.h"
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const RowRules rules[] = {
        {.image_fields = {"image", "b"}, .image_count = 2, .text_fields = {"caption", "zh"}, .text_count = 2},
        {.question_field = "q", .answer_field = "a"},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        Row row = {0};
        const char *why = row_parse(&rules[i], (const char *)data, size, &row);
        for (int k = 0; !why && k < row.text_count; k++)
            check(utf8_valid(row.texts[k].data, row.texts[k].size) &&
                  !utf8_blank(row.texts[k].data, row.texts[k].size));
        row_free(&row);
    }
    Buffer text = {0}, detail = {0};
    buffer_append(&text, data, size);
    if (!text_judge(&text, &detail)) check(text.size && !memchr(text.data, 0, text.size));
    buffer_free(&text);
    buffer_free(&detail);
    return 0;
}
