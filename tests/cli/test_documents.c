/* What README and docs/ tell to type is understood, the keys they set exist, and what they point to is there. Every
 * command is given as it stands with --help behind it: its options are read, and nothing is done. */
#include "base/files.h"
#include "tests/cli/command.h"
#include <ctype.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_WORDS = 48, MOST_TEXT = 1024 };

static int faults, commands, links;
static char *keys; // of a config: what `bifocal config` prints

static char *file_text(const char *path) {
    Buffer text = {0};
    Error error = {0};
    assert_done(file_read(path, &text, &error), &error);
    buffer_append(&text, "", 1);
    return text.data;
}

// ---- one command ----

// Cuts a line of shell into words, in place, up to a comment, a pipe or the next command: *rest.
static int split(char *line, char *words[MOST_WORDS], char **rest) {
    int count = 0;
    char *from = line, *to = line;
    for (;;) {
        while (*from == ' ' || *from == '\n') from++;
        *rest = from;
        if (!*from || strchr("#;|>&", *from)) break;
        char *word = to;
        for (char quote = 0; *from && (quote || (*from != ' ' && *from != '\n')); from++) {
            if (quote ? *from == quote : *from == '"' || *from == '\'')
                quote = quote ? 0 : *from;
            else
                *to++ = *from;
        }
        *rest = from + (*from != '\0');
        from = *rest;
        *to++ = '\0';
        check(count < MOST_WORDS - 2);
        words[count++] = word;
    }
    return count;
}

// Places for the user's own words become something: `[--measure]` is taken, N is a number, and "..." nothing.
static int plain(char *words[], int count) {
    int kept = 0;
    for (int i = 0; i < count; i++) {
        char *word = words[i];
        while (*word == '[') word++;
        word[strcspn(word, "]")] = '\0';
        if (!strcmp(word, "...")) continue;
        if (isupper((unsigned char)word[0]) && !word[1]) word[0] = '2';
        words[kept++] = word;
    }
    words[kept] = NULL;
    return kept;
}

// data.0.path=x: as `bifocal config` lists it, "data.N.path"
static void check_key(const char *place, const char *setting) {
    char key[MOST_TEXT] = "  ";
    size_t length = 2;
    for (const char *at = setting; *at != '=' && length + 2 < sizeof key; at++)
        key[length++] = isdigit((unsigned char)*at) && at > setting && at[-1] == '.' ? 'N' : *at;
    key[length] = '\0';
    for (const char *at = keys; (at = strstr(at, key)); at += length)
        if ((at == keys || at[-1] == '\n') && strchr("= \n", at[length])) return;
    print_error("%s: no key of a config: %s\n", place, setting);
    faults++;
}

static void check_help(const char *place, const char *const *words) {
    Answer a = command_run("/", NULL, words);
    if (a.status || !strstr(a.out.data, "usage: bifocal")) {
        print_error("%s: bifocal", place);
        for (int i = 0; words[i]; i++) print_error(" %s", words[i]);
        print_error(": status %d: %.*s\n", a.status, (int)a.err.size, a.err.data);
        faults++;
    }
    answer_free(&a);
}

// words (count + 2): what stands behind "bifocal".
static void check_command(const char *place, char *words[], int count) {
    count = plain(words, count);
    if (!count || isupper((unsigned char)words[0][0])) return; // `bifocal COMMAND`
    if (!strcmp(words[0], "launch")) {                         // its own options, then the command that it starts
        int own = 1;
        while (own < count && words[own][0] == '-') own += 2;
        if (own < count) check_command(place, words + own, count - own);
        count = own < count ? own : count;
    }
    if (!strcmp(words[0], "train") || !strcmp(words[0], "plan") || !strcmp(words[0], "config"))
        for (int i = 1; i < count; i++)
            if (strchr(words[i], '=') && words[i][0] != '-') check_key(place, words[i]);
    if (words[0][0] == '-') return; // --help, --version
    words[count] = "--help", words[count + 1] = NULL;
    check_help(place, (const char *const *)words);
    commands++;
}

static bool is_program(const char *word) {
    return !strcmp(word, "bifocal") || !strcmp(word, "$b") || !strcmp(word, "build/bifocal");
}

// Every `bifocal ...`, `$b ...` or `build/bifocal ...` of a line of shell, also behind mpirun and srun.
static void check_line(const char *place, const char *text) {
    char copy[MOST_TEXT], *words[MOST_WORDS], *rest = copy;
    check(snprintf(copy, sizeof copy, "%s", text) < (int)sizeof copy);
    while (*rest && *rest != '#') {
        char *line = rest + strspn(rest, ";|>& \n");
        int count = split(line, words, &rest), first = 0;
        if (count && (!strcmp(words[0], "mpirun") || !strcmp(words[0], "srun")))
            while (first < count && !is_program(words[first])) first++;
        if (first < count && is_program(words[first])) check_command(place, words + first + 1, count - first - 1);
        if (rest == line) break;
    }
}

// ---- one document ----

// A heading's anchor, as it is shown on the web: lower case, blanks as "-", without punctuation.
static bool has_anchor(const char *text, const char *anchor) {
    for (const char *at = text; at; at = strstr(at, "\n#"), at += at != NULL) {
        if (*at != '#') continue;
        char name[MOST_TEXT];
        size_t length = 0;
        for (const char *c = at + strspn(at, "# "); *c && *c != '\n' && length + 1 < sizeof name; c++)
            if (isalnum((unsigned char)*c) || strchr("-_", *c) || *c == ' ')
                name[length++] = *c == ' ' ? '-' : (char)tolower((unsigned char)*c);
        name[length] = '\0';
        if (!strcmp(name, anchor)) return true;
    }
    return false;
}

// [words](path#anchor), beside the document
static void check_link(const char *document, const char *text, char *target) {
    if (strstr(target, "://")) return;
    char path[MOST_TEXT], *anchor = strchr(target, '#');
    if (anchor) *anchor++ = '\0';
    int folder = (int)(strrchr(document, '/') - document) + 1;
    check(snprintf(path, sizeof path, "%.*s%s", folder, document, target) < (int)sizeof path);
    links++;
    bool found = file_exists(*target ? path : document);
    if (found && anchor) {
        char *other = *target ? file_text(path) : NULL;
        found = has_anchor(other ? other : text, anchor);
        free(other);
    }
    if (found) return;
    print_error("%s: a link that leads nowhere: %s%s%s\n", document, target, anchor ? "#" : "", anchor ? anchor : "");
    faults++;
}

// A name with a folder of the tree in front, and an ending: a file that is there.
static void check_file_name(const char *document, const char *name) {
    static const char *const folders[] = {"base/",       "cli/",    "configs/", "data/",  "docs/",
                                          "eval/",       "fusion/", "kernels/", "tests/", "text/",
                                          "tokenizers/", "tools/",  "train/",   "vision/"};
    static const char *const endings[] = {".c", ".h", ".cu", ".cpp", ".sh", ".py", ".yaml", ".md"};
    bool ours = false, file = false;
    const char *ending = strrchr(name, '.');
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        if (!strncmp(name, folders[i], strlen(folders[i]))) ours = true;
    for (size_t i = 0; ending && i < sizeof endings / sizeof *endings; i++)
        if (!strcmp(ending, endings[i])) file = true;
    if (!ours || !file || name[strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_-./")]) return;
    char *path = temporary_path(SOURCE_FOLDER, name);
    links++;
    if (!file_exists(path)) {
        print_error("%s: names a file that is not there: %s\n", document, name);
        faults++;
    }
    free(path);
}

static void check_span(const char *document, char *span) {
    check_line(document, span);
    check_file_name(document, span);
}

// A block of lines between ``` and ```: a \ at a line's end joins it with the next.
static void check_block(const char *document, char *block) {
    for (char *line = block; line && *line;) {
        char *end = line;
        while ((end = strchr(end, '\n')) && end > line && end[-1] == '\\') end[-1] = ' ', *end = ' ';
        if (end) *end = '\0';
        check_line(document, line);
        line = end ? end + 1 : NULL;
    }
}

static void check_document(const char *document) {
    char *text = file_text(document), *copy = strdup(text), *at = copy;
    check(copy);
    while ((at = strpbrk(at, "`]"))) {
        char *end;
        if (!strncmp(at, "```", 3)) {
            char *block = at + 3 + strcspn(at + 3, "\n");
            end = strstr(block, "\n```");
            if (!end) break;
            *end = '\0';
            check_block(document, block);
            at = end + 4;
        } else if (*at == '`') {
            if (!(end = strchr(at + 1, '`'))) break;
            *end = '\0';
            check_span(document, at + 1);
            at = end + 1;
        } else if (at[1] == '(' && (end = strchr(at, ')'))) {
            *end = '\0';
            check_link(document, text, at + 2);
            at = end + 1;
        } else {
            at++;
        }
    }
    free(copy);
    free(text);
}

static void what_documents_show_is_so(void **state) {
    (void)state;
    Answer listed = command_run("/", NULL, WORDS("config"));
    buffer_append(&listed.out, "", 1);
    keys = listed.out.data;
    glob_t found;
    assert_int_equal(glob(SOURCE_FOLDER "/docs/*.md", 0, NULL, &found), 0);
    assert_int_equal(glob(SOURCE_FOLDER "/*.md", GLOB_APPEND, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++) check_document(found.gl_pathv[i]);
    globfree(&found);
    answer_free(&listed);
    print_message("%d commands, %d links and files\n", commands, links);
    assert_int_equal(faults, 0);
    assert_true(commands > 40 && links > 60); // they were found at all
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_documents_show_is_so)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
