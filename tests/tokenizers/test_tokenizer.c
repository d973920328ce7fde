/* Tokenizers: what goes in comes out, the same bytes for the same text, and no damaged model gets through. */
#include "base/files.h"
#include "tokenizers/sentencepiece_shim.h"
#include "tokenizers/tokenizer.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// cmocka.h must come after the four above
#include <cmocka.h>

static const char PLAY[] =
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n"
    "First Citizen:\nYou are all resolved rather to die than to famish?\n\nAll:\nResolved. resolved.\n";
static const char CHINESE[] =
    "一张红色圆形的照片。\n图中有三个蓝色的方块，旁边是一个绿色的三角形。\na photo of 3 blue squares\n";

typedef struct Texts {
    const char *const *texts;
    int count, at;
} Texts;

static const char *next_text(void *context, size_t *size) {
    Texts *t = context;
    if (t->at == t->count) return NULL;
    *size = strlen(t->texts[t->at]);
    return t->texts[t->at++];
}

static void expect_ok(bool ok, const Error *error) {
    if (!ok) fail_msg("%s", error->message);
}

static bool train(TokenizerTraining options, Buffer *model, Error *error) {
    const char *texts[] = {PLAY, CHINESE, PLAY};
    if (options.character_coverage == 0) options.character_coverage = 1;
    return tokenizer_train(&options, next_text, &(Texts){texts, 3, 0}, model, error);
}

static Tokenizer *trained(TokenizerTraining options) {
    Buffer model = {0};
    Error error = {0};
    expect_ok(train(options, &model, &error), &error);
    Tokenizer *t = tokenizer_from_bytes(model.data, model.size, "test", &error);
    expect_ok(t != NULL, &error);
    buffer_free(&model);
    return t;
}

static void expect_round_trip(const Tokenizer *t, const char *text, size_t size) {
    TokenIds ids = {0};
    Buffer back = {0};
    Error error = {0};
    expect_ok(tokenizer_encode(t, text, size, &ids, &error), &error);
    expect_ok(tokenizer_decode(t, ids.ids, ids.count, &back, &error), &error);
    assert_int_equal(back.size, size);
    if (size) assert_memory_equal(back.data, text, size);
    token_ids_free(&ids);
    buffer_free(&back);
}

static const TokenizerType all_types[] = {TOKENIZER_UNIGRAM, TOKENIZER_BPE, TOKENIZER_CHAR};

static void kept_whitespace_comes_back_exactly(void **state) {
    (void)state;
    static const char odd[] = "  two  spaces \t a tab\r\n\n\n \xe2\x96\x81 a mark, <0x0A> <s> </s> <unk> \xe2\x81\x87 "
                              "\xe2\x96\x85 \xef\xbb\xbf end \n";
    for (int i = 0; i < 3; i++) {
        Tokenizer *t = trained((TokenizerTraining){
            .type = all_types[i], .vocabulary = 336, .byte_fallback = true, .keep_whitespace = true});
        expect_round_trip(t, PLAY, strlen(PLAY));
        expect_round_trip(t, CHINESE, strlen(CHINESE));
        expect_round_trip(t, odd, strlen(odd));
        expect_round_trip(t, "", 0);
        expect_round_trip(t, "a\0b", 3);
        expect_round_trip(t, "\n", 1);
        expect_round_trip(t, " ", 1);
        tokenizer_free(t);
    }
}

static void characters_come_back_without_bytes(void **state) {
    (void)state;
    Tokenizer *t = trained((TokenizerTraining){.type = TOKENIZER_CHAR, .vocabulary = 1000, .keep_whitespace = true});
    expect_round_trip(t, PLAY, strlen(PLAY));
    TokenIds ids = {0};
    Error error = {0};
    expect_ok(tokenizer_encode(t, PLAY, strlen(PLAY), &ids, &error), &error);
    assert_int_equal(ids.count, strlen(PLAY));  // one id a character, newlines and spaces too
    assert_true(tokenizer_vocabulary(t) < 120); // the ids that the text needs, not the 1000 allowed
    token_ids_free(&ids);
    tokenizer_free(t);
}

static void every_code_point_comes_back_through_bytes(void **state) {
    (void)state;
    Tokenizer *t = trained(
        (TokenizerTraining){.type = TOKENIZER_BPE, .vocabulary = 336, .byte_fallback = true, .keep_whitespace = true});
    Buffer text = {0};
    for (unsigned c = 0; c < 0x110000; c += c < 0x3000 ? 1 : 37) {
        if (c >= 0xd800 && c < 0xe000) continue;
        char b[4];
        int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
        for (int k = n - 1; k > 0; k--) b[k] = (char)(0x80 | ((c >> 6 * (n - 1 - k)) & 0x3f));
        b[0] = (char)(n == 1 ? c : (0xf0u << (4 - n) & 0xffu) | c >> 6 * (n - 1));
        buffer_append(&text, b, (size_t)n);
    }
    expect_round_trip(t, text.data, text.size);
    buffer_free(&text);
    tokenizer_free(t);
}

static void damaged_utf8_becomes_the_replacement_character(void **state) {
    (void)state;
    Tokenizer *t = trained((TokenizerTraining){.vocabulary = 336, .byte_fallback = true, .keep_whitespace = true});
    TokenIds ids = {0};
    Buffer back = {0};
    Error error = {0};
    expect_ok(tokenizer_encode(t,
                               "a\xff"
                               "b\xc0\xaf",
                               5, &ids, &error),
              &error);
    expect_ok(tokenizer_decode(t, ids.ids, ids.count, &back, &error), &error);
    assert_string_equal(back.data, "a\xef\xbf\xbd"
                                   "b\xef\xbf\xbd\xef\xbf\xbd");
    token_ids_free(&ids);
    buffer_free(&back);
    tokenizer_free(t);
}

static void captions_lose_only_spaces_around_them(void **state) {
    (void)state;
    Tokenizer *t = trained((TokenizerTraining){.vocabulary = 336, .byte_fallback = true});
    static const char text[] = "  a  photo of 3 blue squares，红色 ";
    TokenIds ids = {0};
    Buffer back = {0};
    Error error = {0};
    expect_ok(tokenizer_encode(t, text, strlen(text), &ids, &error), &error);
    expect_ok(tokenizer_decode(t, ids.ids, ids.count, &back, &error), &error);
    assert_string_equal(back.data, "a photo of 3 blue squares，红色");
    token_ids_free(&ids);
    buffer_free(&back);
    tokenizer_free(t);
}

static void special_ids_come_first(void **state) {
    (void)state;
    for (int i = 0; i < 3; i++) {
        Tokenizer *t = trained((TokenizerTraining){
            .type = all_types[i], .vocabulary = 336, .byte_fallback = true, .keep_whitespace = i > 0});
        assert_int_equal(tokenizer_pad(t), 0);
        assert_int_equal(tokenizer_unknown(t), 1);
        assert_int_equal(tokenizer_begin(t), 2);
        assert_int_equal(tokenizer_end(t), 3);
        int32_t control[] = {2, 3, 0};
        Buffer back = {0};
        Error error = {0};
        expect_ok(tokenizer_decode(t, control, 3, &back, &error), &error);
        assert_int_equal(back.size, 0);
        buffer_free(&back);
        tokenizer_free(t);
    }
}

static void training_twice_gives_the_same_bytes(void **state) {
    (void)state;
    for (int i = 0; i < 3; i++) {
        TokenizerTraining options = {
            .type = all_types[i], .vocabulary = 336, .byte_fallback = true, .keep_whitespace = true, .seed = 7};
        Buffer a = {0}, b = {0};
        Error error = {0};
        expect_ok(train(options, &a, &error), &error);
        expect_ok(train(options, &b, &error), &error);
        assert_int_equal(a.size, b.size);
        assert_memory_equal(a.data, b.data, a.size);
        buffer_free(&a);
        buffer_free(&b);
    }
}

static void impossible_vocabularies_are_named(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        Buffer model = {0};
        Error error = {0};
        assert_false(train((TokenizerTraining){.type = all_types[i], .vocabulary = 100000, .byte_fallback = true},
                           &model, &error));
        assert_int_equal(error.kind, ERROR_USAGE);
        assert_non_null(strstr(error.message, "the largest possible is "));
        int most = atoi(strstr(error.message, "possible is ") + 12);
        expect_ok(
            train((TokenizerTraining){.type = all_types[i], .vocabulary = most, .byte_fallback = true}, &model, &error),
            &error);
        assert_false(train((TokenizerTraining){.type = all_types[i], .vocabulary = 20}, &model, &error));
        assert_int_equal(error.kind, ERROR_USAGE);
        assert_non_null(strstr(error.message, "too small"));
        buffer_free(&model);
    }
}

static void no_text_is_an_error(void **state) {
    (void)state;
    Buffer model = {0};
    Error error = {0};
    TokenizerTraining options = {.vocabulary = 300, .character_coverage = 1, .byte_fallback = true};
    assert_false(tokenizer_train(&options, next_text, &(Texts){NULL, 0, 0}, &model, &error));
    assert_non_null(strstr(error.message, "no text"));
    buffer_free(&model);
}

static void ids_outside_the_vocabulary_are_refused(void **state) {
    (void)state;
    Tokenizer *t = trained((TokenizerTraining){.vocabulary = 336, .byte_fallback = true});
    Buffer back = {0};
    Error error = {0};
    assert_false(tokenizer_decode(t, (int32_t[]){5, 336}, 2, &back, &error));
    assert_non_null(strstr(error.message, "336"));
    assert_false(tokenizer_decode(t, (int32_t[]){-1}, 1, &back, &error));
    buffer_free(&back);
    tokenizer_free(t);
}

static void damaged_models_are_refused(void **state) {
    (void)state;
    Buffer model = {0};
    Error error = {0};
    expect_ok(train((TokenizerTraining){.vocabulary = 336, .byte_fallback = true}, &model, &error), &error);
    static const char html[] = "<!DOCTYPE html><html></html>";
    assert_null(tokenizer_from_bytes(html, sizeof html, "page.model", &error));
    assert_non_null(strstr(error.message, "page.model"));
    assert_null(tokenizer_from_bytes("", 0, "empty.model", &error));
    for (size_t cut = 1; cut < model.size;
         cut += 97) { // a cut may fall between two fields: then it must still be usable
        Tokenizer *t = tokenizer_from_bytes(model.data, cut, "cut.model", &error);
        if (t) expect_round_trip(t, "a", 1);
        tokenizer_free(t);
    }
    buffer_free(&model);
    assert_null(tokenizer_load("/nowhere/at.model", &error));
    assert_non_null(strstr(error.message, "/nowhere/at.model"));
}

static void a_flipped_bit_never_crashes(void **state) {
    (void)state;
    Buffer model = {0};
    Error error = {0};
    expect_ok(
        train((TokenizerTraining){.type = TOKENIZER_BPE, .vocabulary = 336, .byte_fallback = true}, &model, &error),
        &error);
    for (size_t bit = 0; bit < 8 * model.size; bit += 11) {
        model.data[bit / 8] ^= (char)(1 << bit % 8);
        Tokenizer *t = tokenizer_from_bytes(model.data, model.size, "flipped", &error);
        TokenIds ids = {0};
        Buffer back = {0};
        if (t && tokenizer_encode(t, CHINESE, strlen(CHINESE), &ids, &error))
            tokenizer_decode(t, ids.ids, ids.count, &back, &error);
        token_ids_free(&ids);
        buffer_free(&back);
        tokenizer_free(t);
        model.data[bit / 8] ^= (char)(1 << bit % 8);
    }
    buffer_free(&model);
}

static void append_bytes(void *context, const char *bytes, size_t size) { buffer_append(context, bytes, size); }

// As models from elsewhere have one: SentencePiece's own default, NFKC.
static void train_with_table(Buffer *model) {
    const char *texts[] = {PLAY, CHINESE};
    const char *const options[][2] = {{"vocab_size", "336"},
                                      {"byte_fallback", "true"},
                                      {"normalization_rule_name", "nmt_nfkc"},
                                      {"minloglevel", "3"}};
    char message[SP_MESSAGE] = "";
    if (!sp_train(options, 4, 1, next_text, &(Texts){texts, 2, 0}, append_bytes, model, message))
        fail_msg("%s", message);
}

static void a_normalisation_table_works_and_its_damage_is_refused(void **state) {
    (void)state;
    Buffer model = {0};
    Error error = {0};
    train_with_table(&model);
    Tokenizer *t = tokenizer_from_bytes(model.data, model.size, "nfkc", &error);
    expect_ok(t != NULL, &error);
    TokenIds wide = {0}, plain = {0};
    static const char full[] = "Ｂｅｆｏｒｅ ｗｅ"; // full-width letters
    expect_ok(tokenizer_encode(t, full, strlen(full), &wide, &error), &error);
    expect_ok(tokenizer_encode(t, "Before we", 9, &plain, &error), &error);
    assert_int_equal(wide.count, plain.count);
    assert_memory_equal(wide.ids, plain.ids, sizeof(int32_t) * (size_t)plain.count);
    token_ids_free(&wide);
    token_ids_free(&plain);
    tokenizer_free(t);
    int refused = 0;
    for (size_t byte = 0; byte < model.size; byte += 211) { // mostly inside the table
        char was = model.data[byte];
        model.data[byte] = (char)(was ^ 0x5a);
        t = tokenizer_from_bytes(model.data, model.size, "damaged", &error);
        refused += t == NULL;
        TokenIds ids = {0};
        if (t) tokenizer_encode(t, CHINESE, strlen(CHINESE), &ids, &error);
        token_ids_free(&ids);
        tokenizer_free(t);
        model.data[byte] = was;
    }
    assert_true(refused > 10);
    buffer_free(&model);
}

// As models from elsewhere may be: T5's have no <s>.
static void a_model_without_marks_encodes_but_is_refused_where_rows_need_them(void **state) {
    (void)state;
    static const char *const ids[][2] = {{"-1", "1"}, {"1", "-1"}, {"-1", "-1"}, {"1", "2"}}; // <s>, </s>
    static const char *const missing[] = {"no <s>,", "no </s>,", "no <s> and no </s>", NULL};
    for (int i = 0; i < 4; i++) {
        const char *texts[] = {PLAY};
        const char *const options[][2] = {{"vocab_size", "300"}, {"byte_fallback", "true"}, {"bos_id", ids[i][0]},
                                          {"eos_id", ids[i][1]}, {"unk_id", "0"},           {"minloglevel", "3"}};
        char message[SP_MESSAGE] = "";
        Buffer model = {0};
        Error error = {0};
        TokenIds plain = {0};
        if (!sp_train(options, 6, 1, next_text, &(Texts){texts, 1, 0}, append_bytes, &model, message))
            fail_msg("%s", message);
        Tokenizer *t = tokenizer_from_bytes(model.data, model.size, "foreign", &error);
        expect_ok(t != NULL, &error);
        expect_ok(tokenizer_encode(t, "Before we", 9, &plain, &error), &error);
        assert_true(plain.count > 0);
        assert_int_equal(tokenizer_check_marks(t, &error), missing[i] == NULL);
        if (missing[i]) assert_non_null(strstr(error.message, missing[i]));
        token_ids_free(&plain);
        tokenizer_free(t);
        buffer_free(&model);
    }
}

static void *encode_often(void *tokenizer) {
    for (int i = 0; i < 200; i++) {
        expect_round_trip(tokenizer, PLAY, strlen(PLAY));
        expect_round_trip(tokenizer, CHINESE, strlen(CHINESE));
    }
    return NULL;
}

static void threads_share_a_tokenizer(void **state) {
    (void)state;
    Tokenizer *t = trained((TokenizerTraining){.vocabulary = 336, .byte_fallback = true, .keep_whitespace = true});
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, encode_often, t), 0);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    tokenizer_free(t);
}

static void long_lines_are_learned_from(void **state) {
    (void)state;
    Buffer text = {0};
    for (int i = 0; i < 4000; i++) buffer_text(&text, i % 2 ? "blue square " : "红色圆形，");
    const char *one = text.data;
    TokenizerTraining options = {
        .type = TOKENIZER_BPE, .vocabulary = 290, .character_coverage = 1, .byte_fallback = true};
    Buffer model = {0};
    Error error = {0};
    expect_ok(tokenizer_train(&options, next_text, &(Texts){&one, 1, 0}, &model, &error), &error);
    Tokenizer *t = tokenizer_from_bytes(model.data, model.size, "test", &error);
    TokenIds ids = {0};
    expect_ok(tokenizer_encode(t, "blue square", 11, &ids, &error), &error);
    assert_true(ids.count <= 4);
    token_ids_free(&ids);
    tokenizer_free(t);
    buffer_free(&model);
    buffer_free(&text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kept_whitespace_comes_back_exactly),
        cmocka_unit_test(characters_come_back_without_bytes),
        cmocka_unit_test(every_code_point_comes_back_through_bytes),
        cmocka_unit_test(damaged_utf8_becomes_the_replacement_character),
        cmocka_unit_test(captions_lose_only_spaces_around_them),
        cmocka_unit_test(special_ids_come_first),
        cmocka_unit_test(training_twice_gives_the_same_bytes),
        cmocka_unit_test(impossible_vocabularies_are_named),
        cmocka_unit_test(no_text_is_an_error),
        cmocka_unit_test(ids_outside_the_vocabulary_are_refused),
        cmocka_unit_test(damaged_models_are_refused),
        cmocka_unit_test(a_flipped_bit_never_crashes),
        cmocka_unit_test(a_normalisation_table_works_and_its_damage_is_refused),
        cmocka_unit_test(a_model_without_marks_encodes_but_is_refused_where_rows_need_them),
        cmocka_unit_test(threads_share_a_tokenizer),
        cmocka_unit_test(long_lines_are_learned_from),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
