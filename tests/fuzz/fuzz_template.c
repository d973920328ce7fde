/* Any text is a template or is refused; what it makes of fields is a text or nothing. */
#include "base/json.h"
#include "data/template.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    static const char fields[] = "{\"a\": \"x\", \"b\": [1, 2.5, \"\"], \"c\": null, \"d\": {}, \"e\": []}";
    char *text = malloc(size + 1);
    Buffer out = {0};
    Error error;
    check(text);
    memcpy(text, bytes, size);
    text[size] = 0;
    Template *template = template_parse(text, &error);
    json_t *object = json_parse(fields, sizeof fields - 1, "fields", &error);
    for (int v = 0; template && v < template_variants(template) && v < 8; v++)
        if (!template_expand(template, v, object, size, &out, &error)) check(error.kind == ERROR_FAILED);
    if (template) template_draw(template, object, size, &out, &error);
    json_decref(object);
    template_free(template);
    buffer_free(&out);
    free(text);
    return 0;
}
