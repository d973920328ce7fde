/* The keys of a task file, and where task files lie. */
#include "eval/task.h"
#include "base/files.h"
#include "data/image.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define AT(field) offsetof(Task, field)

static const ConfigKey keys[] = {
    {"type", CONFIG_CHOICE, AT(type), NULL, 0, 0, "zero_shot|retrieval|caption|vqa|perplexity", NULL, "",
     "what is asked of the model"},
    {"version", CONFIG_INT, AT(version), "1", 1, 1e6, NULL, NULL, "", "raised when the definition changes"},
    {"description", CONFIG_STRING, AT(description), "", 0, 0, NULL, NULL, "", "for people"},
    {"data", CONFIG_STRING, AT(data), "", 0, 0, NULL, NULL, "",
     "a .jsonl file with images beside it, a .txt file or a dataset folder; --data goes before it"},
    {"text", CONFIG_STRING, AT(text), "", 0, 0, NULL, NULL, "",
     "retrieval, caption, perplexity: the text of a sample, \"{caption}\"; empty: its .txt, or its 'caption' or "
     "'text'"},
    {"class_field", CONFIG_STRING, AT(class_field), "class", 0, 0, NULL, NULL, "",
     "zero_shot: the field that names the class"},
    {"classes", CONFIG_STRING, AT(classes), "", 0, 0, NULL, NULL, "",
     "zero_shot: a file with a class name on each line; empty: those that occur in the data"},
    {"templates", CONFIG_STRINGS, AT(templates), "a photo of {class}", 0, 0, NULL, NULL, "",
     "zero_shot: how a class becomes a text; several are averaged"},
    {"views", CONFIG_CHOICE, AT(views), "one", 0, 0, "one|mirrored|ten", NULL, "",
     "zero_shot, retrieval: views of each picture whose features are averaged: its centre, with its mirror image, or "
     "centre and corners with theirs"},
    {"question", CONFIG_STRING, AT(question), "{question}", 0, 0, NULL, NULL, "", "vqa: what is asked"},
    {"answer", CONFIG_STRING, AT(answer), "{answer}", 0, 0, NULL, NULL, "", "vqa: what should be answered"},
    {"image_field", CONFIG_STRING, AT(image_field), "image", 0, 0, NULL, NULL, "",
     "the field of a .jsonl that names the image file"},
    {"background", CONFIG_STRING, AT(background), "#ffffff", 0, 0, NULL, NULL, "",
     "colour under transparent pixels, #rrggbb"},
    {"window", CONFIG_INT, AT(window), "0", 0, 1 << 24, NULL, NULL, "tokens",
     "perplexity: length of a window; 0: the model's context"},
    {"max_tokens", CONFIG_INT, AT(max_tokens), "32", 1, 4096, NULL, NULL, "tokens", "caption, vqa: the longest answer"},
};

const ConfigSchema task_schema = {keys, (int)(sizeof keys / sizeof *keys), sizeof(Task)};

// Beside the program when it is installed, else in the sources it was built from.
static const char *task_folder(Arena *memory) {
    const char *given = getenv("BIFOCAL_TASKS");
    if (given && *given) return arena_string(memory, given);
    char program[PATH_MAX];
    ssize_t size = readlink("/proc/self/exe", program, sizeof program - 1);
    if (size > 0) {
        program[size] = 0;
        char *slash = strrchr(program, '/');
        if (slash) *slash = 0;
        const char *installed = arena_printf(memory, "%s/../share/bifocal/tasks", program);
        if (folder_exists(installed)) return installed;
    }
    return BIFOCAL_TASK_FOLDER;
}

static const char *without_extension(const char *path, Arena *memory) {
    char *name = arena_string(memory, path_base(path));
    char *dot = strrchr(name, '.');
    if (dot) *dot = 0;
    return name;
}

StringList task_list(Arena *memory) {
    StringList list = {0};
    char **names = NULL;
    int count = 0;
    Error ignored = {0}; // an absent folder has no tasks
    if (!folder_list(task_folder(memory), &names, &count, &ignored)) return list;
    list.items = arena_array(memory, const char *, count + 1);
    for (int i = 0; i < count; i++)
        if (!strcmp(path_extension(names[i]), "yaml")) list.items[list.count++] = without_extension(names[i], memory);
    names_free(names, count);
    return list;
}

static bool unknown_task(const char *word, Arena *memory, Error *error) {
    StringList known = task_list(memory);
    const char *near = nearest_word(word, known.items, known.count);
    Buffer names = {0};
    for (int i = 0; i < known.count; i++) buffer_printf(&names, "%s%s", i ? ", " : "", known.items[i]);
    error_set(error, ERROR_USAGE, "no task '%s'%s%s%s; tasks are %s, or the path of a YAML file", word,
              near ? ", did you mean '" : "", near ? near : "", near ? "'?" : "", names.size ? names.data : "(none)");
    buffer_free(&names);
    return false;
}

bool task_read(Task *task, const char *word, Arena *memory, Error *error) {
    const char *path = word;
    if (strcmp(path_extension(word), "yaml") != 0 && strcmp(path_extension(word), "yml") != 0) {
        path = arena_printf(memory, "%s/%s.yaml", task_folder(memory), word);
        if (strchr(word, '/') || !file_exists(path)) return unknown_task(word, memory, error);
    }
    if (!config_read(&task_schema, path, NULL, 0, task, memory, error)) return false;
    task->name = without_extension(path, memory);
    if (!image_colour(task->background, (uint8_t[3]){0}))
        return error_set(error, ERROR_USAGE, "%s: background is '%s'; write a colour as #rrggbb", path,
                         task->background);
    return true;
}
