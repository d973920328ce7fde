/* The sidecar: it comes back as it was written, and no bit of it changes unnoticed. Checksums against known answers. */
#include "data/dataset.h"
#include "data/digest.h"
#include "data/sidecar.h"
#include "base/philox.h"
#include "tests/support/test.h"
#include <string.h>

static const char names[] = "a.jpg\0a.txt\0b-1.txt";

static SidecarMember members[3] = {
    {512, 100, 1, 0, MEMBER_IMAGE, 0, 0}, {1536, 20, 2, 6, MEMBER_TEXT, 0, 0}, {2560, 7, 3, 12, MEMBER_TEXT, 0, 1}};
static SidecarSample samples[2] = {{0, 0, 0, 77, 64, 48, 0, 2, 0, 0}, {0, 0, 2, 78, 0, 0, 0, 1, 0, 0}};

static Sidecar example(void) {
    samples[0].key_hash = hash_u64("a", 1);
    samples[1].key_hash = hash_u64("b-1", 3);
    return (Sidecar){.tar_size = 4096,
                     .tar_hash = {123, 456},
                     .sample_count = 2,
                     .member_count = 3,
                     .names_size = sizeof names,
                     .samples = samples,
                     .members = members,
                     .names = names};
}

static bool decodes(const Buffer *bytes, Error *error) {
    Sidecar s;
    Buffer copy = {0};
    *error = (Error){0};
    buffer_append(&copy, bytes->data, bytes->size);
    bool ok = sidecar_decode(&s, &copy, "t.bfx", error);
    assert_null(copy.data);
    if (ok) sidecar_free(&s);
    return ok;
}

static void it_comes_back_as_it_was_written(void **state) {
    (void)state;
    Sidecar in = example(), out;
    Buffer bytes = {0};
    Error error = {0};
    sidecar_encode(&in, &bytes);
    assert_int_equal(bytes.size % 64, 8); // sections at multiples of 64, then the end magic
    assert_done(sidecar_decode(&out, &bytes, "t.bfx", &error), &error);
    assert_int_equal(out.tar_size, 4096);
    assert_int_equal(out.tar_hash.high, 456);
    assert_int_equal(out.sample_count, 2);
    assert_memory_equal(out.members, members, sizeof members);
    assert_memory_equal(out.samples, samples, sizeof samples);
    assert_string_equal(sidecar_name(&out, 2), "b-1.txt");
    sidecar_free(&out);
}

static void every_flipped_bit_is_found(void **state) {
    (void)state;
    Sidecar in = example();
    Buffer bytes = {0};
    Error error;
    sidecar_encode(&in, &bytes);
    for (size_t bit = 0; bit < bytes.size * 8; bit++) {
        bytes.data[bit / 8] ^= (char)(1 << bit % 8);
        if (decodes(&bytes, &error)) fail_msg("bit %zu passed", bit);
        assert_message_has(&error, "t.bfx");
        bytes.data[bit / 8] ^= (char)(1 << bit % 8);
    }
    assert_true(decodes(&bytes, &error));
    buffer_free(&bytes);
}

static void every_cut_and_any_tail_is_found(void **state) {
    (void)state;
    Sidecar in = example();
    Buffer bytes = {0};
    Error error;
    sidecar_encode(&in, &bytes);
    size_t whole = bytes.size;
    for (bytes.size = 0; bytes.size < whole; bytes.size++)
        if (decodes(&bytes, &error)) fail_msg("cut at %zu passed", bytes.size);
    buffer_append(&bytes, "\0", 1);
    assert_false(decodes(&bytes, &error));
    buffer_free(&bytes);
}

// What a hostile writer with good checksums could claim.
static void records_that_contradict_each_other_are_refused(void **state) {
    (void)state;
    Buffer bytes = {0};
    Error error;
    SidecarMember kept_members[3];
    SidecarSample kept_samples[2];
    (void)example();
    memcpy(kept_members, members, sizeof members);
    memcpy(kept_samples, samples, sizeof samples);
    for (int wrong = 0; wrong < 11; wrong++) {
        Sidecar in = example();
        switch (wrong) {
        case 0:
            members[2].offset = 4096;
            break; // behind the end
        case 1:
            members[2].length = UINT64_MAX - 100;
            break; // overflows
        case 2:
            members[1].offset = 512;
            break; // overlaps
        case 3:
            members[1].sample = 1;
            break;
        case 4:
            members[1].name = sizeof names;
            break;
        case 5:
            members[0].kind = 9;
            break;
        case 6:
            samples[1].first_member = 1;
            break;
        case 7:
            samples[0].members = 3;
            break;
        case 8:
            samples[0].members = 0;
            break;
        case 9:
            samples[0].key_hash++;
            break;
        case 10:
            members[1].name = 12;
            break; // of another key
        }
        sidecar_encode(&in, &bytes);
        if (decodes(&bytes, &error)) fail_msg("contradiction %d passed", wrong);
        memcpy(members, kept_members, sizeof members);
        memcpy(samples, kept_samples, sizeof samples);
    }
    buffer_free(&bytes);
}

static void keys_are_letters_digits_underscores_and_hyphens(void **state) {
    (void)state;
    char longest[210];
    assert_int_equal(key_length("000123.jpg"), 6);
    assert_int_equal(key_length("A_b-9.1.txt"), 5);
    assert_int_equal(key_length("a/b.jpg"), 0);
    assert_int_equal(key_length(".jpg"), 0);
    assert_int_equal(key_length("a"), 0);
    assert_int_equal(key_length("a."), 0);
    memset(longest, 'k', sizeof longest);
    memcpy(longest + 200, ".j", 3);
    assert_int_equal(key_length(longest), 200);
    memcpy(longest + 200, "k.j", 4);
    assert_int_equal(key_length(longest), 0);
}

static void checksums_give_the_known_answers(void **state) {
    (void)state;
    uint8_t zeros[32] = {0}, rising[32], hash[SHA256_SIZE];
    char hex[SHA256_HEX + 1];
    for (int i = 0; i < 32; i++) rising[i] = (uint8_t)i;
    assert_int_equal(crc32c(0, "123456789", 9), 0xE3069283); // RFC 3720, B.4
    assert_int_equal(crc32c(0, zeros, 32), 0x8A9136AA);
    assert_int_equal(crc32c(0, rising, 32), 0x46DD794E);
    assert_int_equal(crc32c_portable(0, rising, 32), 0x46DD794E);
    assert_int_equal(crc32c(crc32c(0, rising, 13), rising + 13, 19), 0x46DD794E);
    sha256("abc", 3, hash);
    hex_encode(hash, SHA256_SIZE, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_true(hex_decode(hex, zeros, SHA256_SIZE));
    assert_memory_equal(zeros, hash, SHA256_SIZE);
    assert_false(hex_decode("zz", zeros, 1));
}

static void the_merkle_root_depends_on_order_and_on_every_leaf(void **state) {
    (void)state;
    uint8_t leaves[5][SHA256_SIZE] = {{1}, {2}, {3}, {4}, {5}}, a[SHA256_SIZE], b[SHA256_SIZE];
    for (size_t n = 1; n <= 5; n++) {
        merkle_root((const uint8_t(*)[SHA256_SIZE])leaves, n, a);
        for (size_t i = 0; i < n; i++) {
            leaves[i][31] ^= 1;
            merkle_root((const uint8_t(*)[SHA256_SIZE])leaves, n, b);
            leaves[i][31] ^= 1;
            assert_memory_not_equal(a, b, SHA256_SIZE);
        }
    }
    leaves[0][0] = 2;
    leaves[1][0] = 1;
    merkle_root((const uint8_t(*)[SHA256_SIZE])leaves, 5, b);
    assert_memory_not_equal(a, b, SHA256_SIZE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_comes_back_as_it_was_written),
        cmocka_unit_test(every_flipped_bit_is_found),
        cmocka_unit_test(every_cut_and_any_tail_is_found),
        cmocka_unit_test(records_that_contradict_each_other_are_refused),
        cmocka_unit_test(keys_are_letters_digits_underscores_and_hyphens),
        cmocka_unit_test(checksums_give_the_known_answers),
        cmocka_unit_test(the_merkle_root_depends_on_order_and_on_every_leaf),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
