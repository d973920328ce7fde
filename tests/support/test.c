/* See test.h. */
#include "tests/support/test.h"
#include "base/files.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char *temporary_new(void) {
    const char *parent = getenv("TMPDIR");
    char *folder = NULL;
    check(asprintf(&folder, "%s/bifocal-test-XXXXXX", parent ? parent : "/tmp") > 0);
    check(mkdtemp(folder));
    return folder;
}

void temporary_free(char *folder) {
    Error error = {0};
    if (folder && !folder_remove(folder, &error)) print_error("%s\n", error.message);
    free(folder);
}

char *temporary_path(const char *folder, const char *name) {
    char *path = NULL;
    check(asprintf(&path, "%s/%s", folder, name) > 0);
    return path;
}

void temporary_write(const char *path, const void *bytes, size_t count) {
    remove(path); // some file systems sync a file that is cut and written again, but not a new one
    FILE *file = fopen(path, "w");
    check(file && fwrite(bytes, 1, count, file) == count);
    check(fclose(file) == 0);
}

void assert_message_has(const Error *error, const char *part) {
    if (!strstr(error->message, part)) fail_msg("message '%s' does not say '%s'", error->message, part);
}
