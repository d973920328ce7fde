/* The order of the folders, read from the #include lines of the tree: arrows point down only, paths are written from
 * the root, and a library that is kept behind one file is included there alone. */
#include "base/files.h"
#include "tests/support/test.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// What a folder may include beside itself.
static const struct {
    const char *folder, *allowed;
} order[] = {
    {"base", ""},
    {"tokenizers", "base"},
    {"data", "base tokenizers"},
    {"kernels", "base"},
    {"vision", "base kernels"},
    {"text", "base kernels"},
    {"fusion", "base kernels vision text data tokenizers"},
    {"train", "base kernels vision text fusion data tokenizers"},
    {"eval", "base kernels vision text fusion data tokenizers"},
    {"cli", "base kernels vision text fusion data tokenizers train eval"},
};
enum { FOLDERS = sizeof order / sizeof *order };

// Foreign headers with a single home.
static const struct {
    const char *header, *home;
} homes[] = {
    {"libfyaml.h", "base/config_yaml.c"},
    {"sentencepiece_processor.h", "tokenizers/"},
    {"jpeglib.h", "data/"},
    {"png.h", "data/"},
    {"oneapi/dnnl/dnnl.h", "kernels/cpu/"},
};

static int faults, files_read;

static void fault(const char *file, int line, const char *what, const char *header) {
    print_error("%s:%d: %s: %s\n", file, line, what, header);
    faults++;
}

static bool has_word(const char *words, const char *word, size_t length) {
    for (const char *at = words; *at;) {
        size_t n = strcspn(at, " ");
        if (n == length && !strncmp(at, word, n)) return true;
        at += n + (at[n] == ' ');
    }
    return false;
}

static void check_own(const char *file, int line, int folder, const char *header, const char *root) {
    char *path = temporary_path(root, header);
    size_t length = strcspn(header, "/");
    bool inside = header[length] == '/' && length == strlen(order[folder].folder) &&
                  !strncmp(header, order[folder].folder, length);
    // A header beside the file may be named without its folder, where no such path exists from the root.
    bool beside = header[length] != '/';
    if (!beside && !inside && !has_word(order[folder].allowed, header, length))
        fault(file, line, "an arrow that points up or aside", header);
    if (!beside && !file_exists(path)) fault(file, line, "not a path from the root", header);
    free(path);
}

static void check_foreign(const char *file, int line, const char *header) {
    for (size_t i = 0; i < sizeof homes / sizeof *homes; i++)
        if (!strcmp(homes[i].header, header) && strncmp(file, homes[i].home, strlen(homes[i].home)) != 0)
            fault(file, line, "is included outside its home", header);
}

static void check_file(const char *root, const char *file, int folder) {
    Buffer text = {0};
    Error error = {0};
    char *path = temporary_path(root, file), header[256];
    int line = 0;
    assert_done(file_read(path, &text, &error), &error);
    files_read++;
    for (char *rest = text.data, *at; rest && (at = strsep(&rest, "\n"));) {
        line++;
        while (isspace((unsigned char)*at)) at++;
        if (sscanf(at, "#%*[ \t]include \"%255[^\"]\"", header) == 1 ||
            sscanf(at, "#include \"%255[^\"]\"", header) == 1)
            check_own(file, line, folder, header, root);
        else if (sscanf(at, "#include <%255[^>]>", header) == 1)
            check_foreign(file, line, header);
    }
    buffer_free(&text);
    free(path);
}

static bool is_source(const char *name) {
    const char *extension = path_extension(name);
    return has_word("c h cc cu cuh", extension, strlen(extension));
}

static void check_folder(const char *root, const char *name, int folder) {
    Error error = {0};
    char *path = temporary_path(root, name), **names;
    int count;
    assert_done(folder_list(path, &names, &count, &error), &error);
    for (int i = 0; i < count; i++) {
        char *child = temporary_path(name, names[i]), *full = temporary_path(root, child);
        if (folder_exists(full))
            check_folder(root, child, folder);
        else if (is_source(names[i]))
            check_file(root, child, folder);
        free(child);
        free(full);
    }
    names_free(names, count);
    free(path);
}

static void arrows_between_folders_point_down(void **state) {
    (void)state;
    for (int i = 0; i < FOLDERS; i++) {
        char *path = temporary_path(SOURCE_FOLDER, order[i].folder);
        if (folder_exists(path)) check_folder(SOURCE_FOLDER, order[i].folder, i);
        free(path);
    }
    assert_true(files_read > 20);
    assert_int_equal(faults, 0);
}

// A tree made for the purpose: the test itself must see what it is for.
static void a_wrong_arrow_is_seen(void **state) {
    (void)state;
    Error error = {0};
    char *root = temporary_new();
    static const struct {
        const char *file, *text;
        int folder, faults;
    } cases[] = {
        {"vision/a.c", "#include \"text/a.h\"\n", 4, 1},
        {"text/a.h", "#include <math.h>\n #include \"kernels/a.h\"\n", 5, 0},
        {"kernels/a.h", "#  include \"fusion/a.h\"\n", 3, 2}, // and not there
        {"eval/a.c", "#include \"train/a.h\"\n", 8, 2},
        {"data/a.c", "#include <libfyaml.h>\n#include <jpeglib.h>\n", 2, 1},
        {"train/a.c", "#include \"text/a.h\"\n#include \"beside.h\"\n", 7, 0},
    };
    enum { CASES = sizeof cases / sizeof *cases };
    for (int i = 0; i < CASES; i++) {
        char *folder = temporary_path(root, order[cases[i].folder].folder), *path = temporary_path(root, cases[i].file);
        assert_done(folder_create(folder, &error), &error);
        assert_done(file_write(path, cases[i].text, strlen(cases[i].text), &error), &error);
        free(folder);
        free(path);
    }
    for (int i = 0; i < CASES; i++) {
        int before = faults;
        check_file(root, cases[i].file, cases[i].folder);
        assert_int_equal(faults - before, cases[i].faults);
    }
    faults = 0;
    temporary_free(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_wrong_arrow_is_seen),
        cmocka_unit_test(arrows_between_folders_point_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
