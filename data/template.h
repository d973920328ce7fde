/* Texts made from a sample's fields: "a photo of {class}", several variants apart by "||". {{ and }} stand for braces.
 * A field is a string, a number, or a list of these, of which one is drawn. */
#pragma once
#include "base/buffer.h"
#include "base/error.h"
#include <jansson.h>
#include <stdint.h>

typedef struct Template Template;

Template *template_parse(const char *text, Error *); // refuses a brace without its partner, an empty field or variant
void template_free(Template *);                      // NULL is allowed
int template_variants(const Template *);             // at least 1
// Appends variant `variant` over the fields of `object`; `draw` chooses from lists (any number: it is taken modulo
// their length). False where a field is absent, null, empty or of another type, or the text is blank; `out` is then as
// before.
bool template_expand(const Template *, int variant, const json_t *object, uint64_t draw, Buffer *out, Error *);
// The variant that `draw` picks, or the next that can be made from this object; false where none can.
bool template_draw(const Template *, const json_t *object, uint64_t draw, Buffer *out, Error *);
