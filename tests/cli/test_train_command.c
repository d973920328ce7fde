/* `bifocal train` and what is done with a run: resume, stops and kills, eval, generate, report. */
#include "base/files.h"
#include "tests/cli/command.h"
#include "tests/cli/runs.h"
#include "tests/cli/tiny_project.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static int open_with_run(void **state) {
    int status = open_project(state);
    assert_status(0, project, "train", "config.yaml", "--run", "run");
    return status;
}

static void a_run_folder_holds_what_is_promised(void **state) {
    (void)state;
    static const char *const files[] = {"run/config.yaml",
                                        "run/metrics.jsonl",
                                        "run/log.txt",
                                        "run/checkpoints/step-00000002/model.safetensors",
                                        "run/checkpoints/step-00000004/model.json",
                                        "run/checkpoints/step-00000004/optimizer.safetensors",
                                        "run/checkpoints/step-00000004/state.json",
                                        "run/checkpoints/step-00000004/tokenizer.model"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *path = temporary_path(project, files[i]);
        if (!file_exists(path)) fail_msg("%s is missing", path);
        free(path);
    }
    assert_status(0, project, "config", "run/config.yaml");
    assert_refuses(2, "--resume", project, "train", "config.yaml", "--run", "run");
}

static void a_run_goes_on_where_it_stopped(void **state) {
    (void)state;
    assert_status(0, project, "train", "config.yaml", "train.steps=8", "--run", "whole");
    assert_status(0, project, "train", "config.yaml", "--run", "parts");
    assert_status(0, project, "train", "--run", "parts", "--resume", "train.steps=8");
    assert_same_runs(project, "whole", "parts", 8);
    assert_same_files(project, "whole/checkpoints/step-00000008/model.safetensors",
                      "parts/checkpoints/step-00000008/model.safetensors");
}

#define STEPS 150
#define LONG  "train.steps=150", "checkpoint.every=0"
#define LAST  "/checkpoints/step-00000150/model.safetensors"

static void a_terminated_run_saves_and_resumes_exactly(void **state) {
    (void)state;
    assert_status(0, project, "train", "config.yaml", LONG, "--run", "unstopped");
    pid_t child = command_start(project, WORDS("train", "config.yaml", LONG, "--run", "stopped"));
    run_wait_for_lines(project, "stopped", 3);
    kill(child, SIGTERM);
    assert_int_equal(command_end(child), 128 + SIGTERM);
    assert_true(run_lines(project, "stopped") < STEPS);
    assert_status(0, project, "generate", "stopped", "--prompt", "a", "--max-tokens", "2"); // it was saved
    child = command_start(project, WORDS("train", "--run", "stopped", "--resume"));
    usleep(50000);
    kill(child, SIGINT);
    int status = command_end(child);
    assert_true(status == 128 + SIGINT || status == 0); // 0: it was done by then
    assert_status(0, project, "train", "--run", "stopped", "--resume");
    assert_same_runs(project, "unstopped", "stopped", STEPS);
    assert_same_files(project, "unstopped" LAST, "stopped" LAST);
}

// A step does not wait for its checkpoint: it may become visible some steps later.
static void wait_for_a_checkpoint(const char *run) {
    char name[256];
    char **names = NULL;
    Error ignored = {0};
    snprintf(name, sizeof name, "%s/checkpoints", run);
    char *folder = temporary_path(project, name);
    bool found = false;
    for (int i = 0; i < 30000 && !found; i++) {
        int count = 0;
        if (folder_list(folder, &names, &count, &ignored)) found = count && !strncmp(names[count - 1], "step-", 5);
        names_free(names, count);
        if (!found) usleep(1000);
    }
    assert_true(found);
    free(folder);
}

static void a_killed_run_leaves_a_checkpoint_that_loads(void **state) {
    (void)state;
    assert_status(0, project, "train", "config.yaml", "train.steps=10", "checkpoint.every=1", "--run", "unharmed");
    for (int i = 0; i < 3; i++) {
        pid_t child = command_start(project, WORDS("train", "config.yaml", "train.steps=10", "checkpoint.every=1",
                                                   "--resume", "--run", "killed"));
        int before = run_lines(project, "killed");
        for (int k = 0; k < 5000 && run_lines(project, "killed") < before + 2; k++) usleep(1000);
        wait_for_a_checkpoint("killed");
        usleep(1700u * (unsigned)i); // at different places of a step
        kill(child, SIGKILL);
        command_end(child);
        assert_status(0, project, "generate", "killed", "--prompt", "a", "--max-tokens", "1");
    }
    assert_status(0, project, "train", "--run", "killed", "--resume");
    assert_same_runs(project, "unharmed", "killed", 10);
    assert_same_files(project, "unharmed/checkpoints/step-00000010/model.safetensors",
                      "killed/checkpoints/step-00000010/model.safetensors");
}

// A full disk, as a limit on the size of files: the error names the file, and the checkpoints before it stay.
static void a_checkpoint_that_cannot_be_written_leaves_the_last_one(void **state) {
    (void)state;
    assert_status(0, project, "train", "config.yaml", "--run", "full");
    struct rlimit before, limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = 50000; // bytes: less than the weights
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    Answer a = command_run(project, NULL, WORDS("train", "--run", "full", "--resume", "train.steps=8"));
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(a.status, 1);
    assert_non_null(strstr(a.err.data, "model.safetensors.tmp: cannot write at byte"));
    assert_non_null(strstr(a.err.data, "free some space"));
    answer_free(&a);
    assert_status(0, project, "train", "--run", "full", "--resume", "train.steps=8");
    assert_same_files(project, "whole/checkpoints/step-00000008/model.safetensors",
                      "full/checkpoints/step-00000008/model.safetensors");
}

static void a_run_is_evaluated(void **state) {
    (void)state;
    json_t *results = command_json(
        0, project,
        WORDS("eval", "run", "--task", "retrieval,vqa", "--data", "raw/test/captions.jsonl", "--limit", "6", "--json"));
    char *kept = temporary_path(project, "run/eval/results.json");
    assert_true(file_exists(kept));
    assert_prints("retrieval", project, "eval", "run", "--task", "retrieval", "--data", "data", "--limit", "4");
    assert_refuses(2, "scene_caption", project, "eval", "run", "--task", "scene_capton");
    assert_refuses(2, "nowhere.jsonl", project, "eval", "run", "--task", "retrieval", "--data", "nowhere.jsonl");
    assert_refuses(1, "raw: neither", project, "eval", "raw", "--task", "retrieval", "--data", "data");
    json_decref(results);
    free(kept);
}

static void results_before_a_failure_are_kept(void **state) {
    (void)state;
    Error error = {0};
    char *task = temporary_path(project, "kind.yaml"), *kept = run_path(project, "run", "eval/results.json");
    static const char other[] = "type: zero_shot\nclass_field: kind\n"; // no sample has it
    temporary_write(task, other, sizeof other - 1);
    unlink(kept);
    Answer a = command_run(project, NULL,
                           WORDS("eval", "run", "--task", "retrieval,kind.yaml", "--data", "data", "--limit", "4"));
    assert_true(a.status == 1 || a.status == 2);
    assert_non_null(strstr(a.err.data, "task kind"));
    assert_non_null(strstr(a.out.data, "retrieval"));
    json_t *results = json_read_file(kept, &error);
    assert_done(results != NULL, &error);
    assert_int_equal(json_object_size(json_object_get(results, "results")), 1);
    json_decref(results);
    answer_free(&a);
    free(task);
    free(kept);
}

static void a_timeline_is_written_where_asked(void **state) {
    (void)state;
    Error error = {0};
    char *path = temporary_path(project, "trace.json");
    assert_status(0, project, "train", "config.yaml", "train.recompute=full", "--run", "traced", "--trace",
                  "trace.json");
    json_t *trace = json_read_file(path, &error);
    assert_done(trace != NULL, &error);
    assert_true(json_array_size(json_object_get(trace, "traceEvents")) > 20);
    json_decref(trace);
    assert_refuses(1, "nowhere/trace.json", project, "train", "config.yaml", "--run", "untraced", "--trace",
                   "nowhere/trace.json");
    assert_same_runs(project, "run", "traced", 4); // recomputation changed nothing
    free(path);
}

static void a_run_speaks_with_and_without_pictures(void **state) {
    (void)state;
    static const char lines[] = "{\"prompt\": \"a red\"}\n{\"image\": \"raw/train/images/000000.jpg\"}\n";
    char *prompts = temporary_path(project, "prompts.jsonl");
    temporary_write(prompts, lines, sizeof lines - 1);
    assert_status(0, project, "generate", "run", "--prompt", "a red", "--max-tokens", "4");
    assert_status(0, project, "generate", "run", "--prompts", "prompts.jsonl", "--max-tokens", "4");
    json_t *said = command_json(0, project,
                                WORDS("generate", "run", "--image", "raw/train/images/000000.jpg", "--prompt",
                                      "what is it?", "--max-tokens", "4", "--json"));
    assert_true(json_get_int(said, "tokens", -1) >= 0);
    json_decref(said);
    assert_refuses(1, "none.jpg", project, "generate", "run", "--image", "none.jpg");
    assert_refuses(1, "config.yaml", project, "generate", "run", "--image", "config.yaml");
    free(prompts);
}

static void a_run_is_reported(void **state) {
    (void)state;
    assert_prints("run/report.html", project, "report", "run", "--samples", "2");
    char *page = temporary_path(project, "run/report.html");
    assert_true(file_size(page) > 1000);
    free(page);
    assert_refuses(2, "config.yaml", project, "report", "nowhere");
}

// What a run has before its first checkpoint: curves.
static void a_young_run_is_reported_without_pictures(void **state) {
    (void)state;
    Error error = {0};
    static const char *const files[] = {"config.yaml", "metrics.jsonl"};
    char *young = temporary_path(project, "young"), *run = temporary_path(project, "run");
    assert_done(folder_create(young, &error), &error);
    for (int i = 0; i < 2; i++) {
        Buffer text = {0};
        char *from = temporary_path(run, files[i]), *to = temporary_path(young, files[i]);
        assert_done(file_read(from, &text, &error), &error);
        temporary_write(to, text.data, text.size);
        buffer_free(&text);
        free(from);
        free(to);
    }
    assert_prints("young/report.html", project, "report", "young");
    free(young);
    free(run);
}

static void a_run_that_cannot_work_is_not_begun(void **state) {
    (void)state;
    assert_refuses(2, "heads", project, "train", "config.yaml", "model.text.heads=3", "--run", "refused");
    assert_refuses(2, "patch", project, "train", "config.yaml", "model.vision.patch=7", "--run", "refused");
    assert_refuses(2, "data.0.path", project, "train", "config.yaml", "data.0.path=nowhere", "--run", "refused");
    assert_refuses(2, "GiB", project, "train", "config.yaml", "model.text.width=1048576", "--run", "refused");
    assert_refuses(2, "no.model", project, "train", "config.yaml", "tokenizer=no.model", "--run", "refused");
    assert_refuses(2, "model.weight.mae", project, "train", "config.yaml", "model.weight.mae=0", "--run", "refused");
    assert_refuses(2, "refused/config.yaml", project, "train", "--run", "refused", "--resume");
    char *run = temporary_path(project, "refused");
    assert_false(folder_exists(run));
    free(run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_run_folder_holds_what_is_promised),
        cmocka_unit_test(a_run_goes_on_where_it_stopped),
        cmocka_unit_test(a_terminated_run_saves_and_resumes_exactly),
        cmocka_unit_test(a_killed_run_leaves_a_checkpoint_that_loads),
        cmocka_unit_test(a_checkpoint_that_cannot_be_written_leaves_the_last_one),
        cmocka_unit_test(a_run_is_evaluated),
        cmocka_unit_test(results_before_a_failure_are_kept),
        cmocka_unit_test(a_timeline_is_written_where_asked),
        cmocka_unit_test(a_run_speaks_with_and_without_pictures),
        cmocka_unit_test(a_run_is_reported),
        cmocka_unit_test(a_young_run_is_reported_without_pictures),
        cmocka_unit_test(a_run_that_cannot_work_is_not_begun),
    };
    return cmocka_run_group_tests(tests, open_with_run, close_project);
}
