/* A task: what to ask of a model and how to score the answers; a YAML file, read through one table of keys. */
#pragma once
#include "base/arena.h"
#include "base/config.h"

typedef enum TaskType { TASK_ZERO_SHOT, TASK_RETRIEVAL, TASK_CAPTION, TASK_VQA, TASK_PERPLEXITY } TaskType;

// Of each picture, whose features are averaged: its centre; that and its mirror image; or the centre and the four
// corners at 7/8 of the shorter side, each with its mirror image (Krizhevsky et al. 2012).
typedef enum TaskViews { VIEWS_ONE, VIEWS_MIRRORED, VIEWS_TEN } TaskViews;

typedef struct Task {
    const char *name; // of the file, without .yaml
    int type;         // TaskType
    int64_t version;  // of the task's definition: scores of different versions do not compare
    const char *description;
    const char *data; // .jsonl or .txt file, or dataset folder; --data overrides it
    const char *text; // template of a caption or document
    const char *class_field, *classes;
    StringList templates;
    int views;                            // TaskViews
    const char *question, *answer;        // templates
    const char *image_field, *background; // of a .jsonl; "#rrggbb" under transparent pixels
    int64_t window;                       // tokens of a window, 0: the model's context
    int64_t max_tokens;                   // of a generated answer
} Task;

extern const ConfigSchema task_schema;

// word: the name of a shipped task, or the path of a YAML file. Strings live in the arena.
bool task_read(Task *, const char *word, Arena *, Error *);
// The names of the shipped tasks, in the arena.
StringList task_list(Arena *);
