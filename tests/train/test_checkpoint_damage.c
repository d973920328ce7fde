/* What must not harm a run: kills while a checkpoint is written, disks that are full or fail, and files that are
 * damaged, missing or of another checkpoint. Numbers are those of the list of bad inputs. */
#include "base/files.h"
#include "base/json.h"
#include "tests/support/ranks.h"
#include "tests/train/spread.h"
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREE "checkpoints/step-00000003"
#define SIX   "checkpoints/step-00000006"

// ---- a disk that fails ----

// Calls on files whose names hold `name` fail: writes with `write_error` behind the first `room` bytes of each call,
// syncs with `sync_error`. 0: they do not.
static struct {
    const char *name;
    int write_error, sync_error;
    size_t room;
} disk;

static bool fails(int descriptor) {
    char link[64], path[4096];
    if (!disk.name) return false;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t n = readlink(link, path, sizeof path - 1);
    path[n > 0 ? n : 0] = 0;
    return strstr(path, disk.name) != NULL;
}

// These stand in for the C library's in the whole program.
ssize_t pwrite(int descriptor, const void *bytes, size_t count, off_t offset) {
    if (fails(descriptor) && (disk.write_error || disk.room)) {
        if (offset >= (off_t)disk.room && disk.write_error) return errno = disk.write_error, -1;
        if (disk.room && count > disk.room) count = disk.room;
    }
    return syscall(SYS_pwrite64, descriptor, bytes, count, offset);
}

int fsync(int descriptor) {
    if (fails(descriptor) && disk.sync_error) return errno = disk.sync_error, -1;
    return (int)syscall(SYS_fsync, descriptor);
}

// ---- saving and loading ----

typedef struct Case {
    const char *run;
    Spread how;
    int64_t step;
    const char *why; // NULL: it must be done; else it must fail, for this
} Case;

static void assert_outcome(bool ok, const Error *error, const char *why) {
    if (!why && !ok) fail_msg("%s", error->message);
    if (!why) return;
    assert_false(ok);
    assert_int_equal(error->kind, ERROR_FAILED);
    assert_message_has(error, why);
}

// The step is the salt of what is saved.
static void save(int rank, Comm *world, void *argument) {
    (void)rank;
    const Case *c = argument;
    SpreadModel m;
    Error error = {0};
    spread_open(&m, world, c->how, F32);
    spread_fill(&m, (uint64_t)c->step);
    assert_outcome(spread_save(&m, c->run, c->step, &error), &error, c->why);
    if (c->why) assert_message_has(&error, "earlier ones are intact");
    spread_close(&m);
}

static void load(int rank, Comm *world, void *argument) {
    (void)rank;
    const Case *c = argument;
    SpreadModel m;
    Error error = {0};
    TrainState state = {0};
    char name[64];
    snprintf(name, sizeof name, "checkpoints/step-%08lld", (long long)c->step);
    char *folder = temporary_path(c->run, name);
    spread_open(&m, world, c->how, F32);
    assert_outcome(spread_load(&m, folder, &state, &error), &error, c->why);
    if (!c->why) assert_spread_holds(&m, (uint64_t)c->step);
    spread_close(&m);
    free(folder);
}

static const Spread alone = {1, 1, 0, 0, false}, pair = {2, 1, 3, 0, false};

static void run_case(RankFunction function, Case c) { ranks_run(c.how.data * c.how.tensor, function, &c); }

// ---- 57 ----

static void save_for_ever(const char *run, int64_t step) {
    SpreadModel m;
    Error error = {0};
    spread_open(&m, NULL, alone, F32);
    Saver *saver = spread_saver(&m, run, 2, 0);
    for (;; step++) {
        TrainState state = {.step = step};
        spread_fill(&m, (uint64_t)step);
        if (!checkpoint_start(saver, &state, &error)) _exit(1);
        checkpoint_hold(saver);
    }
}

// Loads the newest checkpoint; returns its step.
static int64_t load_newest(const char *run) {
    char folder[1024];
    SpreadModel m;
    TrainState state;
    Error error = {0};
    assert_done(model_find_checkpoint(run, folder, NULL, &error), &error);
    spread_open(&m, NULL, alone, F32);
    assert_done(spread_load(&m, folder, &state, &error), &error);
    assert_spread_holds(&m, (uint64_t)state.step);
    spread_close(&m);
    return state.step;
}

static void a_kill_at_any_moment_leaves_a_checkpoint_57(void **state) {
    (void)state;
    char *run = temporary_new();
    int64_t newest = 1;
    run_case(save, (Case){run, alone, newest, NULL});
    for (unsigned i = 0; i < 12; i++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (!child) save_for_ever(run, newest + 1);
        usleep(3000 + 7919u * i % 40000);
        kill(child, SIGKILL);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        int64_t step = load_newest(run);
        assert_true(step >= newest);
        newest = step;
    }
    temporary_free(run);
}

// ---- 58 ----

static void assert_not_saved(const char *run, Spread how, const char *why) {
    run_case(save, (Case){run, how, 6, why});
    disk.name = NULL;
    char *folder = temporary_path(run, SIX), *aside = temporary_path(run, "checkpoints/.step-00000006.tmp");
    assert_false(folder_exists(folder));
    assert_false(folder_exists(aside));
    run_case(load, (Case){run, how, 3, NULL});
    free(folder);
    free(aside);
}

// On whichever rank and in whatever file: all ranks fail alike, and what was there stays.
static void a_disk_that_fails_leaves_the_last_checkpoint_58(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int write_error, sync_error;
        const char *why;
    } cases[] = {{"model-00002-of-00002", ENOSPC, 0, "rank 1: "},
                 {"optimizer-00002-of-00002", EDQUOT, 0, "free some space"},
                 {"optimizer-00001-of-00002", ENOSPC, 0, "optimizer-00001-of-00002.safetensors.tmp: cannot write"},
                 {"model-00001-of-00002", 0, EIO, "model-00001-of-00002.safetensors.tmp: cannot sync"},
                 {"model-00002-of-00002", 0, EIO, "rank 1: "},
                 {"model.safetensors.index.json", ENOSPC, 0, "index.json.tmp: cannot write"},
                 {"model.json", ENOSPC, 0, "model.json.tmp: cannot write"},
                 {"state.json", ENOSPC, 0, "state.json.tmp: cannot write"},
                 {"state.json", 0, EIO, "state.json.tmp: cannot sync"},
                 {".step-00000006.tmp", 0, EIO, "cannot sync"}};
    char *run = temporary_new();
    run_case(save, (Case){run, pair, 3, NULL});
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        disk.write_error = cases[i].write_error;
        disk.sync_error = cases[i].sync_error;
        disk.room = 0;
        disk.name = cases[i].name;
        assert_not_saved(run, pair, cases[i].why);
    }
    temporary_free(run);
}

static void writes_that_are_cut_short_go_on_58(void **state) {
    (void)state;
    char *run = temporary_new();
    disk.write_error = disk.sync_error = 0;
    disk.room = 1000;
    disk.name = ".safetensors";
    run_case(save, (Case){run, pair, 3, NULL});
    disk.name = NULL;
    run_case(load, (Case){run, pair, 3, NULL});
    temporary_free(run);
}

static void a_limit_on_the_size_of_files_leaves_the_last_checkpoint_58(void **state) {
    (void)state;
    char *run = temporary_new();
    run_case(save, (Case){run, alone, 3, NULL});
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit before, limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = 5000; // bytes
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    run_case(save, (Case){run, alone, 6, "model.safetensors.tmp: cannot write at byte"});
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    run_case(load, (Case){run, alone, 3, NULL});
    temporary_free(run);
}

// A file system of its own with room for one checkpoint and a half, which is gone with the child.
static int in_a_small_file_system(char *run) {
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", run, "tmpfs", 0, "size=576k") != 0)
        return 77;
    run_case(save, (Case){run, pair, 3, NULL});
    run_case(save, (Case){run, pair, 6, "No space left on device"});
    run_case(load, (Case){run, pair, 3, NULL});
    return 0;
}

static void a_full_file_system_leaves_the_last_checkpoint_58(void **state) {
    (void)state;
    char *run = temporary_new();
    int status = 0;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) _exit(in_a_small_file_system(run));
    assert_int_equal(waitpid(child, &status, 0), child);
    temporary_free(run);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) skip(); // no right to mount one here
    assert_int_equal(status, 0);
}

// ---- 59 ----

static char *damage(const char *run, const char *name, Buffer *bytes) {
    Error error = {0};
    char *folder = temporary_path(run, THREE), *path = temporary_path(folder, name);
    assert_done(file_read(path, bytes, &error), &error);
    free(folder);
    return path;
}

// Every bit of the files that say what belongs together; the tensors' files are in base's tests.
static void every_flipped_bit_is_noticed_59(void **state) {
    (void)state;
    static const char *const names[] = {"state.json", "model.safetensors.index.json",
                                        "optimizer.safetensors.index.json"};
    char *run = temporary_new(), *folder = temporary_path(run, THREE);
    run_case(save, (Case){run, pair, 3, NULL});
    for (int i = 0; i < 3; i++) {
        Buffer bytes = {0};
        TrainState read;
        Error error = {0};
        char *path = damage(run, names[i], &bytes);
        assert_done(checkpoint_state_read(folder, &read, &error), &error);
        for (size_t bit = 0; bit < 8 * bytes.size; bit += i ? 9 : 1) { // of an index, one of every byte
            bytes.data[bit / 8] = (char)(bytes.data[bit / 8] ^ 1 << bit % 8);
            temporary_write(path, bytes.data, bytes.size);
            if (checkpoint_state_read(folder, &read, &error))
                fail_msg("%s: bit %zu of byte %zu flips unnoticed", names[i], bit % 8, bit / 8);
            assert_message_has(&error, names[i]);
            bytes.data[bit / 8] = (char)(bytes.data[bit / 8] ^ 1 << bit % 8);
        }
        temporary_write(path, bytes.data, bytes.size);
        buffer_free(&bytes);
        free(path);
    }
    free(folder);
    temporary_free(run);
}

// In the tensors, by whichever rank verifies the file: all ranks refuse.
static void damaged_tensors_are_refused_by_all_ranks_59(void **state) {
    (void)state;
    static const char *const names[] = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                                        "optimizer-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors"};
    char *run = temporary_new();
    run_case(save, (Case){run, pair, 3, NULL});
    for (int i = 0; i < 4; i++) {
        Buffer bytes = {0};
        char *path = damage(run, names[i], &bytes);
        for (size_t place = 1; place <= bytes.size; place += bytes.size / 3) { // from the end
            bytes.data[bytes.size - place] ^= 16;
            temporary_write(path, bytes.data, bytes.size);
            run_case(load, (Case){run, pair, 3, names[i]});
            run_case(load, (Case){run, alone, 3, names[i]});
            bytes.data[bytes.size - place] ^= 16;
        }
        temporary_write(path, bytes.data, bytes.size);
        buffer_free(&bytes);
        free(path);
    }
    run_case(load, (Case){run, pair, 3, NULL});
    temporary_free(run);
}

// ---- 65 ----

static void a_missing_file_is_named_65(void **state) {
    (void)state;
    static const char *const names[] = {"model-00002-of-00002.safetensors", "optimizer-00001-of-00002.safetensors",
                                        "optimizer.safetensors.index.json", "model.json", "state.json"};
    char *run = temporary_new();
    for (int i = 0; i < 5; i++) {
        run_case(save, (Case){run, pair, 3, NULL});
        Buffer bytes = {0};
        char *path = damage(run, names[i], &bytes);
        assert_int_equal(unlink(path), 0);
        run_case(load, (Case){run, pair, 3, names[i]});
        buffer_free(&bytes);
        free(path);
    }
    temporary_free(run);
}

static void copy_file(const char *run, const char *from, const char *to) {
    Buffer bytes = {0};
    Error error = {0};
    char *source = temporary_path(run, from), *target = temporary_path(run, to);
    assert_done(file_read(source, &bytes, &error), &error);
    temporary_write(target, bytes.data, bytes.size);
    buffer_free(&bytes);
    free(source);
    free(target);
}

static void assert_model_refused(const char *run, const char *name, const char *why) {
    LoadedModel loaded;
    Error error = {0};
    SpreadModel m;
    char *folder = temporary_path(run, name);
    spread_open(&m, NULL, alone, F32);
    assert_false(model_load(&loaded, m.backend, folder, F32, NULL, &error));
    assert_message_has(&error, why);
    spread_close(&m);
    free(folder);
}

static void a_file_of_another_step_is_refused_65(void **state) {
    (void)state;
    static const char file[] = "model-00002-of-00002.safetensors";
    char *run = temporary_new();
    run_case(save, (Case){run, pair, 3, NULL});
    run_case(save, (Case){run, pair, 6, NULL});
    copy_file(run, THREE "/model-00002-of-00002.safetensors", SIX "/model-00002-of-00002.safetensors");
    run_case(load, (Case){run, pair, 6, file});
    run_case(load, (Case){run, alone, 6, "not of the checkpoint of step 6"});
    assert_model_refused(run, SIX, "of step 3");
    run_case(load, (Case){run, alone, 3, NULL});
    temporary_free(run);
}

// A rank's file in another one's place: whoever reads the model alone finds it too.
static void a_file_of_another_rank_is_refused_65(void **state) {
    (void)state;
    char *run = temporary_new();
    run_case(save, (Case){run, pair, 3, NULL});
    copy_file(run, THREE "/model-00002-of-00002.safetensors", THREE "/model-00001-of-00002.safetensors");
    run_case(load, (Case){run, pair, 3, "model-00001-of-00002.safetensors"});
    assert_model_refused(run, THREE, "model-00001-of-00002.safetensors: holds '");
    temporary_free(run);
}

static void an_index_that_names_other_files_is_refused_65(void **state) {
    (void)state;
    static const struct {
        const char *text, *why;
    } cases[] = {{"{}", "weight_map"},
                 {"{\"weight_map\": {\"a\": \"../model.safetensors\"}}", "beside it"},
                 {"{\"weight_map\": {\"a\": \"/etc/passwd\"}}", "beside it"},
                 {"{\"weight_map\": {\"a\": 3}}", "beside it"},
                 {"{\"weight_map\": {\"a\": \"none.safetensors\"}}", "none.safetensors"},
                 {"{\"weight_map\": {\"a\": \"model-00001-of-00002.safetensors\"}}", "no file"}};
    char *run = temporary_new(), *path = temporary_path(run, THREE "/model.safetensors.index.json");
    run_case(save, (Case){run, pair, 3, NULL});
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        temporary_write(path, cases[i].text, strlen(cases[i].text));
        assert_model_refused(run, THREE, cases[i].why);
    }
    free(path);
    temporary_free(run);
}

// ---- 66 ----

static void a_mapped_checkpoint_may_be_saved_again_66(void **state) {
    (void)state;
    char *run = temporary_new(), *folder = temporary_path(run, THREE);
    SafeTensorsSet mapped;
    Error error = {0};
    run_case(save, (Case){run, pair, 3, NULL});
    assert_done(safetensors_set_open(&mapped, folder, "model", &error), &error);
    run_case(save, (Case){run, pair, 3, NULL});
    assert_done(safetensors_set_verify(&mapped, 0, 1, &error), &error);
    safetensors_set_close(&mapped);
    run_case(load, (Case){run, alone, 3, NULL});
    free(folder);
    temporary_free(run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_kill_at_any_moment_leaves_a_checkpoint_57),
        cmocka_unit_test(a_disk_that_fails_leaves_the_last_checkpoint_58),
        cmocka_unit_test(writes_that_are_cut_short_go_on_58),
        cmocka_unit_test(a_limit_on_the_size_of_files_leaves_the_last_checkpoint_58),
        cmocka_unit_test(a_full_file_system_leaves_the_last_checkpoint_58),
        cmocka_unit_test(every_flipped_bit_is_noticed_59),
        cmocka_unit_test(damaged_tensors_are_refused_by_all_ranks_59),
        cmocka_unit_test(a_missing_file_is_named_65),
        cmocka_unit_test(a_file_of_another_step_is_refused_65),
        cmocka_unit_test(a_file_of_another_rank_is_refused_65),
        cmocka_unit_test(an_index_that_names_other_files_is_refused_65),
        cmocka_unit_test(a_mapped_checkpoint_may_be_saved_again_66),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
