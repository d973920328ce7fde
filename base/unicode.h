/* UTF-8: one character at a time, strictly (no overlong forms, no surrogates, nothing beyond U+10FFFF). */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// The character `text` starts with: its length in bytes and *code. 0 where these bytes begin none, or at the end.
int  utf8_decode(const char *text, size_t size, uint32_t *code);
bool utf8_valid(const char *text, size_t size);
