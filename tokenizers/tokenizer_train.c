/* Training a SentencePiece model: texts are cut into lines short enough for its trainer, options are set so that what
 * goes in comes out (no Unicode folding), and its messages become ours. */
#include "tokenizers/sentencepiece_shim.h"
#include "tokenizers/tokenizer.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LONGEST_LINE = 4096,  // bytes; the trainer leaves longer ones out
    TRAINER_THREADS = 8,  // fixed: the trainer's sums are split by this number, so it is part of the result
    MOST_LINES = 4000000, // sampled beyond that: unigram training holds all of them in memory
};

typedef struct Lines { // cuts the caller's texts
    const char *(*next_text)(void *context, size_t *size);
    void *context;
    bool keep_whitespace;
    const char *at, *end;
    Buffer line; // a changed copy, where one is needed
    int64_t count;
} Lines;

// How many of `size` bytes to take so that no character is cut, and a word only where it is longer than a line.
static size_t cut_line(const char *text, size_t size) {
    if (size <= LONGEST_LINE) return size;
    for (size_t n = LONGEST_LINE; n > LONGEST_LINE / 2; n--)
        if (text[n] == ' ') return n;
    size_t n = LONGEST_LINE;
    while (n > LONGEST_LINE - 4 && ((unsigned char)text[n] & 0xc0) == 0x80) n--;
    return n;
}

// The trainer marks its own boundaries with tabs: it must not see the text's.
static const char *without_tabs(Lines *l, const char *text, size_t size) {
    if (!memchr(text, '\t', size)) return text;
    buffer_clear(&l->line);
    buffer_append(&l->line, text, size);
    for (size_t i = 0; i < size; i++)
        if (l->line.data[i] == '\t') l->line.data[i] = ' ';
    return l->line.data;
}

static const char *next_line(void *context, size_t *size) {
    Lines *l = context;
    for (;;) {
        while (l->at >= l->end) {
            size_t text_size = 0;
            l->at = l->next_text(l->context, &text_size);
            if (!l->at) return NULL;
            l->end = l->at + text_size;
        }
        const char *newline = memchr(l->at, '\n', (size_t)(l->end - l->at));
        const char *stop = newline ? newline + l->keep_whitespace : l->end;
        const char *line = l->at;
        *size = cut_line(line, (size_t)(stop - line));
        l->at = line + *size;
        if (!l->keep_whitespace && l->at == newline) l->at++;
        if (!*size) continue;
        l->count++;
        return without_tabs(l, line, *size);
    }
}

// Its messages come as "file.cc(123) [condition] text": the last part is for people.
static bool training_error(const TokenizerTraining *t, const char *message, Error *error) {
    const char *high = strstr(message, "value <= ");
    if (high)
        return error_set(error, ERROR_USAGE,
                         "a vocabulary of %d is too large for this text: the largest possible is %d", t->vocabulary,
                         atoi(high + strlen("value <= ")));
    const char *low = strstr(message, "smaller than required_chars. ");
    int given = 0, needed = 0;
    if (low && sscanf(low, "smaller than required_chars. %d vs %d", &given, &needed) == 2)
        return error_set(error, ERROR_USAGE,
                         "a vocabulary of %d is too small: this text needs at least %d pieces for its characters "
                         "(or a smaller character coverage)",
                         t->vocabulary, needed);
    if (t->byte_fallback && t->vocabulary < 512 && strstr(message, "vocab_size"))
        return error_set(error, ERROR_USAGE,
                         "a vocabulary of %d is too small: byte fallback takes 256 pieces, characters and words come on "
                         "top; give more, or leave it out (--no-byte-fallback)",
                         t->vocabulary);
    const char *text = strrchr(message, ']');
    return error_set(error, ERROR_FAILED, "training the tokenizer failed: %s", text && text[1] && text[2] ? text + 2 : message);
}

static void append_model(void *context, const char *bytes, size_t size) { buffer_append(context, bytes, size); }

bool tokenizer_train(const TokenizerTraining *t, const char *(*next_text)(void *, size_t *), void *context,
                     Buffer *model, Error *error) {
    static const char *const types[] = {"unigram", "bpe", "char"};
    char vocabulary[16], coverage[32], threads[16], lines_most[16], longest[16];
    snprintf(vocabulary, sizeof vocabulary, "%d", t->vocabulary);
    snprintf(coverage, sizeof coverage, "%.6f", t->character_coverage);
    snprintf(threads, sizeof threads, "%d", TRAINER_THREADS);
    snprintf(lines_most, sizeof lines_most, "%d", MOST_LINES);
    snprintf(longest, sizeof longest, "%d", LONGEST_LINE + 8);
    const char *keep = t->keep_whitespace ? "true" : "false", *drop = t->keep_whitespace ? "false" : "true";
    const char *const options[][2] = {
        {"model_type", types[t->type]},
        {"vocab_size", vocabulary},
        {"character_coverage", coverage},
        {"byte_fallback", t->byte_fallback ? "true" : "false"},
        {"normalization_rule_name", "identity"},
        {"add_dummy_prefix", drop},
        {"remove_extra_whitespaces", drop},
        {"allow_whitespace_only_pieces", keep},
        {"split_digits", "true"},
        {"pad_id", "0"},
        {"unk_id", "1"},
        {"bos_id", "2"},
        {"eos_id", "3"},
        {"num_threads", threads},
        {"input_sentence_size", lines_most},
        {"shuffle_input_sentence", "true"},
        {"max_sentence_length", longest},
        {"minloglevel", "3"},
        {"user_defined_symbols", t->keep_whitespace ? "\t" : ""}, // see without_tabs
    };
    if (t->vocabulary < 5)
        return error_set(error, ERROR_USAGE, "a vocabulary of %d is too small: 4 ids are taken", t->vocabulary);
    Lines lines = {.next_text = next_text, .context = context, .keep_whitespace = t->keep_whitespace};
    char message[SP_MESSAGE] = "";
    buffer_clear(model);
    bool done = sp_train(options, (int)(sizeof options / sizeof *options), (uint32_t)(t->seed ^ t->seed >> 32),
                         next_line, &lines, append_model, model, message);
    buffer_free(&lines.line);
    if (!lines.count) return error_set(error, ERROR_FAILED, "there is no text to train a tokenizer on");
    return done || training_error(t, message, error);
}
