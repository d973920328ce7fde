/* See utf8.h. */
#include "data/utf8.h"
#include "base/error.h"

size_t utf8_count(const char *text, size_t size) {
    size_t n = 0;
    for (size_t i = 0; i < size; i++) n += ((uint8_t)text[i] & 0xC0) != 0x80;
    return n;
}

// The next character of a valid text; *at moves behind it.
static uint32_t next_point(const char *text, size_t size, size_t *at) {
    uint32_t point = 0;
    int length = utf8_decode(text + *at, size - *at, &point);
    check(length > 0);
    *at += (size_t)length;
    return point;
}

static bool blank_point(uint32_t c) {
    return c <= 0x20 || (c >= 0x7F && c <= 0xA0) || c == 0x1680 || (c >= 0x2000 && c <= 0x200F) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x2060 || c == 0x3000 || c == 0xFEFF;
}

bool utf8_blank(const char *text, size_t size) {
    for (size_t i = 0; i < size;)
        if (!blank_point(next_point(text, size, &i))) return false;
    return true;
}

typedef enum { LATIN, HAN, KANA, HANGUL, CYRILLIC, ARABIC, DEVANAGARI, GREEK, OTHER, SCRIPTS, NO_LETTER } Script;

static Script script_of(uint32_t c) {
    if (c < 0x80) return (c | 32) >= 'a' && (c | 32) <= 'z' ? LATIN : NO_LETTER;
    if (c < 0xC0) return NO_LETTER;
    if (c < 0x250 || (c >= 0x1E00 && c < 0x1F00)) return c == 0xD7 || c == 0xF7 ? NO_LETTER : LATIN;
    if ((c >= 0x370 && c < 0x400) || (c >= 0x1F00 && c < 0x2000)) return GREEK;
    if (c >= 0x400 && c < 0x530) return CYRILLIC;
    if ((c >= 0x600 && c < 0x780) || (c >= 0xFB50 && c < 0xFE00) || (c >= 0xFE70 && c < 0xFEFF)) return ARABIC;
    if (c >= 0x900 && c < 0x980) return DEVANAGARI;
    if ((c >= 0x1100 && c < 0x1200) || (c >= 0x3130 && c < 0x3190) || (c >= 0xAC00 && c < 0xD7B0)) return HANGUL;
    if ((c >= 0x3040 && c < 0x3100) || (c >= 0x31F0 && c < 0x3200)) return KANA;
    if ((c >= 0x3400 && c < 0xA000) || (c >= 0xF900 && c < 0xFB00) || (c >= 0x20000 && c < 0x32000)) return HAN;
    if ((c >= 0x2000 && c < 0x2C00) || (c >= 0x3000 && c < 0x3040) || (c >= 0xFE00 && c < 0xFE70) || c >= 0x1F000 ||
        (c >= 0xFF00 && c < 0xFFF0))
        return NO_LETTER; // punctuation, symbols, emoji, full-width forms
    return OTHER;
}

const char *utf8_script(const char *text, size_t size) {
    static const char *const names[SCRIPTS] = {"latin",  "zh",         "ja",    "ko",   "cyrillic",
                                               "arabic", "devanagari", "greek", "other"};
    size_t counts[SCRIPTS] = {0};
    for (size_t i = 0; i < size;) {
        Script s = script_of(next_point(text, size, &i));
        if (s != NO_LETTER) counts[s]++;
    }
    if (counts[KANA]) { // Japanese writes Han too, Chinese no kana
        counts[KANA] += counts[HAN];
        counts[HAN] = 0;
    }
    int best = 0;
    for (int i = 1; i < SCRIPTS; i++)
        if (counts[i] > counts[best]) best = i;
    return counts[best] ? names[best] : "none";
}
