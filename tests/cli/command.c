/* See command.h. */
#include "tests/cli/command.h"
#include "base/files.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_WORDS = 64 };

// streams: stdin, stdout and stderr of the child.
static pid_t start(const char *folder, const char *const *words, const int streams[3]) {
    const char *line[MOST_WORDS + 2] = {BIFOCAL_PROGRAM};
    for (int i = 0; words[i]; i++) {
        check(i < MOST_WORDS);
        line[i + 1] = words[i];
    }
    pid_t child = fork();
    check(child >= 0);
    if (child) return child;
    for (int i = 0; i < 3; i++)
        if (dup2(streams[i], i) < 0) _exit(126);
    if (chdir(folder) == 0) execv(BIFOCAL_PROGRAM, (char *const *)(uintptr_t)line);
    _exit(127);
}

int command_end(pid_t child) {
    int status = 0;
    check(waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

pid_t command_start(const char *folder, const char *const *words) {
    int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    check(nothing >= 0);
    pid_t child = start(folder, words, (const int[]){nothing, nothing, nothing});
    close(nothing);
    return child;
}

static int memory_file(const char *text) {
    int descriptor = memfd_create("stream", MFD_CLOEXEC);
    size_t size = text ? strlen(text) : 0;
    check(descriptor >= 0 && (!size || write(descriptor, text, size) == (ssize_t)size));
    check(lseek(descriptor, 0, SEEK_SET) == 0);
    return descriptor;
}

static void take_file(int descriptor, Buffer *out) {
    char piece[4096];
    ssize_t n;
    check(lseek(descriptor, 0, SEEK_SET) == 0);
    buffer_text(out, "");
    while ((n = read(descriptor, piece, sizeof piece)) > 0) buffer_append(out, piece, (size_t)n);
    check(n == 0);
}

Answer command_run(const char *folder, const char *input, const char *const *words) {
    Answer answer = {0};
    int streams[3] = {memory_file(input), memory_file(NULL), memory_file(NULL)};
    answer.status = command_end(start(folder, words, streams));
    take_file(streams[1], &answer.out);
    take_file(streams[2], &answer.err);
    for (int i = 0; i < 3; i++) close(streams[i]);
    return answer;
}

void answer_free(Answer *answer) {
    buffer_free(&answer->out);
    buffer_free(&answer->err);
}

static void fail_with(const Answer *a, const char *what, const char *const *words, const char *file, int line) {
    Buffer text = {0};
    for (int i = 0; words[i]; i++) buffer_printf(&text, " %s", words[i]);
    print_error("bifocal%s: %s\nexit status %d\nstdout: %.2000s\nstderr: %.4000s\n", text.data ? text.data : "", what,
                a->status, a->out.data, a->err.data);
    _fail(file, line);
}

void assert_status_at(int expected, const char *folder, const char *input, const char *out_part, const char *err_part,
                      const char *const *words, const char *file, int line) {
    Answer a = command_run(folder, input, words);
    if (a.status != expected) fail_with(&a, "another exit status was expected", words, file, line);
    if (out_part && !strstr(a.out.data, out_part)) fail_with(&a, out_part, words, file, line);
    if (err_part && !strstr(a.err.data, err_part)) fail_with(&a, err_part, words, file, line);
    if (expected == 2 && a.out.size) fail_with(&a, "something is on stdout", words, file, line);
    if (expected && !a.err.size) fail_with(&a, "nothing is on stderr", words, file, line);
    answer_free(&a);
}

json_t *command_json(int expected, const char *folder, const char *const *words) {
    Error error = {0};
    Answer a = command_run(folder, NULL, words);
    if (a.status != expected) fail_with(&a, "another exit status was expected", words, __FILE__, __LINE__);
    json_t *value = json_parse(a.out.data, a.out.size, "stdout", &error);
    if (!value) fail_with(&a, error.message, words, __FILE__, __LINE__);
    answer_free(&a);
    return value;
}

bool command_can_launch(void) {
#ifdef BIFOCAL_MPI
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
    return system("mpirun --version >/dev/null 2>&1") == 0;
#else
    return false;
#endif
}
