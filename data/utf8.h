/* UTF-8, as far as data needs it: is it valid, how many characters, which script. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

bool utf8_valid(const char *text, size_t size);   // no overlong forms, no surrogates, nothing above U+10FFFF
size_t utf8_count(const char *text, size_t size); // characters of a valid text
bool utf8_blank(const char *text, size_t size);   // only white space (Unicode's), controls and byte order marks
// Decodes the character at `text` (valid, size > 0) into *point; returns its bytes.
size_t utf8_next(const char *text, size_t size, uint32_t *point);
// The script most of the letters are in: "latin", "zh" (Han), "ja" (kana among them), "ko", "cyrillic", "arabic",
// "devanagari", "greek", "other", or "none" where there are no letters.
const char *utf8_script(const char *text, size_t size);
