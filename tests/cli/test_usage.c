/* How the program answers --help, and words, options and keys that it does not know. */
#include "tests/cli/command.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void every_command_has_help(void **state) {
    (void)state;
    const char *const *const commands[] = {
        WORDS("--help"),
        WORDS("data", "--help"),
        WORDS("data", "synth", "--help"),
        WORDS("data", "build", "--help"),
        WORDS("data", "ls", "--help"),
        WORDS("data", "verify", "--help"),
        WORDS("tokenizer", "--help"),
        WORDS("tokenizer", "train", "--help"),
        WORDS("train", "--help"),
        WORDS("plan", "--help"),
        WORDS("plan", "schedule", "--help"),
        WORDS("eval", "--help"),
        WORDS("generate", "--help"),
        WORDS("export", "--help"),
        WORDS("report", "--help"),
        WORDS("config", "--help"),
        WORDS("bench", "--help"),
        WORDS("bench", "ops", "--help"),
        WORDS("bench", "train", "--help"),
        WORDS("bench", "loader", "--help"),
        WORDS("bench", "contrastive", "--help"),
        WORDS("bench", "comm", "--help"),
        WORDS("bench", "checkpoint", "--help"),
        WORDS("doctor", "--help"),
        WORDS("data", "-h"),
        WORDS("train", "-h"),
        WORDS("generate", "-h"),
        WORDS("report", "-h"),
    };
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        Answer a = command_run("/", NULL, commands[i]);
        if (a.status || !strstr(a.out.data, "usage: bifocal") || a.err.size)
            fail_msg("%s %s: status %d, stdout '%s', stderr '%s'", commands[i][0], commands[i][1] ? commands[i][1] : "",
                     a.status, a.out.data, a.err.data);
        answer_free(&a);
    }
}

static void every_key_of_a_config_is_listed(void **state) {
    (void)state;
    assert_prints("optimizer.learning_rate", "/", "config");
    assert_prints("model.vision.patch", "/", "config");
    assert_prints("bifocal ", "/", "--version");
}

static void unknown_words_get_a_suggestion(void **state) {
    (void)state;
    assert_status(2, "/", "", "x");
    assert_refuses(2, "did you mean 'train'?", "/", "trian");
    assert_refuses(2, "did you mean 'build'?", "/", "data", "bild");
    assert_refuses(2, "did you mean 'encode'?", "/", "tokenizer", "encoed");
    assert_refuses(2, "did you mean 'loader'?", "/", "bench", "laoder");
    assert_refuses(2, "did you mean 'scene_caption'?", "/", "eval", "/nowhere", "--task", "scene_capton");
}

static void a_gpu_that_cannot_be_used_is_refused_with_the_reason(void **state) {
    (void)state;
    setenv("BIFOCAL_CUDA_MODULE", "/nowhere/libbifocal_cuda.so", 1);
    static const char *const reason = "device: cuda: cannot open the CUDA module: /nowhere";
    assert_refuses(2, reason, "/", "generate", "/nowhere", "--prompt", "a", "--device", "cuda");
    assert_refuses(2, reason, "/", "eval", "/nowhere", "--task", "scene_caption", "--device", "cuda");
    assert_refuses(2, reason, "/", "bench", "train", "--device", "cuda");
    assert_refuses(2, reason, "/", "bench", "ops", "--device", "cuda");
    assert_refuses(2, "--device", "/", "bench", "ops", "--device", "gpu");
    unsetenv("BIFOCAL_CUDA_MODULE");
}

static void unknown_options_get_a_suggestion(void **state) {
    (void)state;
    assert_refuses(2, "did you mean '--samples'?", "/", "data", "synth", "--smaples", "3");
    assert_refuses(2, "did you mean '--text-field'?", "/", "data", "build", "--tesxt-field=x");
    assert_refuses(2, "did you mean '--json'?", "/", "data", "ls", "--jsn", "x");
    assert_refuses(2, "did you mean '--vocab-size'?", "/", "tokenizer", "train", "--vocabsize", "9");
    assert_refuses(2, "did you mean '--resume'?", "/", "train", "--resum_", "--run", "x");
    assert_refuses(2, "did you mean '--stages'?", "/", "plan", "schedule", "--satges", "4");
    assert_refuses(2, "did you mean '--limit'?", "/", "eval", "--limti", "3");
    assert_refuses(2, "did you mean '--prompt'?", "/", "generate", "--promt", "x");
    assert_refuses(2, "did you mean '--out'?", "/", "export", "--ot", "x");
    assert_refuses(2, "did you mean '--samples'?", "/", "report", "--sampels", "x");
    assert_refuses(2, "did you mean '--preset'?", "/", "bench", "train", "--perset", "x");
    assert_refuses(2, "did you mean '--seconds'?", "/", "bench", "ops", "--secnods", "x");
    assert_refuses(2, "did you mean '--cache'?", "/", "bench", "loader", "--cahce", "x");
    assert_refuses(2, "did you mean '--bytes'?", "/", "bench", "comm", "--byets", "8");
    assert_refuses(2, "no option '-x'", "/", "train", "-x");
    assert_refuses(2, "--json takes no value", "/", "data", "verify", "--json=yes", "x");
    assert_refuses(2, "--image wants a value", "/", "generate", "x", "--image");
    assert_refuses(2, "start of several options", "/", "eval", "--t", "x");
}

static void wrong_values_are_refused_by_name(void **state) {
    (void)state;
    assert_refuses(2, "--samples '-3'", "/", "data", "synth", "--samples", "-3", "--out", "x");
    assert_refuses(2, "--shard-size '3Q'", "/", "data", "build", "--shard-size", "3Q");
    assert_refuses(2, "--limit 'nan'", "/", "eval", "--limit", "nan");
    assert_refuses(2, "--top-p '1.5'", "/", "generate", "x", "--top-p", "1.5");
    assert_refuses(2, "--precision 'f8'", "/", "generate", "x", "--precision", "f8");
    assert_refuses(2, "--pairs '0'", "/", "bench", "contrastive", "--pairs", "0");
    assert_refuses(2, "--saves '0'", "/", "bench", "checkpoint", "--saves", "0");
    assert_refuses(2, "--out DIR", "/", "bench", "checkpoint");
    assert_refuses(2, "--iterations '0'", "/", "bench", "train", "--iterations", "0");
    assert_refuses(2, "no preset 'large'", "/", "bench", "train", "--preset", "large");
    assert_refuses(2, "--run DIR is missing", "/", "train", "x.yaml");
    assert_refuses(2, "MODEL is missing", "/", "eval", "--task", "caption");
    assert_refuses(2, "MODEL is missing", "/", "generate", "--prompt", "x");
    assert_refuses(2, "usage", "/", "data");
    assert_refuses(2, "usage", "/", "bench");
}

static void keys_of_a_config_are_checked_with_their_place(void **state) {
    (void)state;
    char *folder = temporary_new(), *path = temporary_path(folder, "c.yaml");
    static const char text[] = "tokenizer: words.model\ndata:\n  - {path: d, objectives: [lm]}\nmodel:\n"
                               "  weight: {lm: 1}\n  text:\n    widht: 64\n";
    temporary_write(path, text, sizeof text - 1);
    assert_refuses(2, "c.yaml:7", folder, "config", "c.yaml");
    assert_refuses(2, "did you mean 'model.text.width'?", folder, "config", "c.yaml");
    static const char wrong[] = "tokenizer: words.model\ndata:\n  - {path: d, objectives: [lm]}\ntrain:\n"
                                "  steps: soon\n";
    temporary_write(path, wrong, sizeof wrong - 1);
    assert_refuses(2, "c.yaml:5", folder, "train", "c.yaml", "--run", "run");
    assert_refuses(2, "train.steps", folder, "train", "c.yaml", "--run", "run");
    temporary_write(path, wrong, sizeof wrong - 1 - strlen("train:\n  steps: soon\n"));
    assert_prints("steps: 7", folder, "config", "c.yaml", "train.steps=7");
    assert_refuses(2, "train.steps=0", folder, "config", "c.yaml", "train.steps=0");
    assert_refuses(2, "no.yaml", folder, "train", "no.yaml", "--run", "run");
    char *run = temporary_path(folder, "run");
    assert_int_equal(access(run, F_OK), -1); // nothing was begun
    free(run);
    free(path);
    temporary_free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_command_has_help),
        cmocka_unit_test(every_key_of_a_config_is_listed),
        cmocka_unit_test(unknown_words_get_a_suggestion),
        cmocka_unit_test(a_gpu_that_cannot_be_used_is_refused_with_the_reason),
        cmocka_unit_test(unknown_options_get_a_suggestion),
        cmocka_unit_test(wrong_values_are_refused_by_name),
        cmocka_unit_test(keys_of_a_config_are_checked_with_their_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
