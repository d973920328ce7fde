/* See utf8.h. */
#include "data/utf8.h"

// Bytes of the character at p, or 0 where it is not valid (Unicode, table 3-7).
static size_t sequence(const uint8_t *p, size_t left) {
    if (p[0] < 0x80) return 1;
    if (p[0] < 0xC2 || p[0] > 0xF4) return 0;
    size_t n = p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
    if (left < n) return 0;
    uint8_t least = p[0] == 0xE0 ? 0xA0 : p[0] == 0xF0 ? 0x90 : 0x80;
    uint8_t most = p[0] == 0xED ? 0x9F : p[0] == 0xF4 ? 0x8F : 0xBF;
    if (p[1] < least || p[1] > most) return 0;
    for (size_t i = 2; i < n; i++)
        if ((p[i] & 0xC0) != 0x80) return 0;
    return n;
}

bool utf8_valid(const char *text, size_t size) {
    const uint8_t *p = (const uint8_t *)text;
    for (size_t i = 0, n; i < size; i += n) {
        n = sequence(p + i, size - i);
        if (!n) return false;
    }
    return true;
}

size_t utf8_count(const char *text, size_t size) {
    size_t n = 0;
    for (size_t i = 0; i < size; i++) n += ((uint8_t)text[i] & 0xC0) != 0x80;
    return n;
}

size_t utf8_next(const char *text, size_t size, uint32_t *point) {
    const uint8_t *p = (const uint8_t *)text;
    size_t n = p[0] < 0x80 ? 1 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
    if (n > size) n = size;
    uint32_t c = n == 1 ? p[0] : p[0] & (0x7FU >> n);
    for (size_t i = 1; i < n; i++) c = c << 6 | (p[i] & 0x3F);
    *point = c;
    return n;
}

static bool blank_point(uint32_t c) {
    return c <= 0x20 || (c >= 0x7F && c <= 0xA0) || c == 0x1680 || (c >= 0x2000 && c <= 0x200F) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x2060 || c == 0x3000 || c == 0xFEFF;
}

bool utf8_blank(const char *text, size_t size) {
    uint32_t c;
    for (size_t i = 0; i < size;) {
        i += utf8_next(text + i, size - i, &c);
        if (!blank_point(c)) return false;
    }
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
    uint32_t c;
    for (size_t i = 0; i < size;) {
        i += utf8_next(text + i, size - i, &c);
        Script s = script_of(c);
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
