/* What data asks of a text beyond being valid UTF-8 (base/unicode.h): how many characters, which script. */
#pragma once
#include "base/unicode.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

size_t utf8_count(const char *text, size_t size); // characters of a valid text
bool utf8_blank(const char *text, size_t size);   // only white space (Unicode's), controls and byte order marks
// The script most of the letters are in: "latin", "zh" (Han), "ja" (kana among them), "ko", "cyrillic", "arabic",
// "devanagari", "greek", "other", or "none" where there are no letters.
const char *utf8_script(const char *text, size_t size);
