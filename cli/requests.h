/* Requests for text: prompts with images, from the command line or from the lines of a .jsonl file. */
#pragma once
#include "fusion/generate.h"
#include "fusion/model_files.h"

enum { REQUEST_IMAGES = 64 }; // of one prompt, at the most

typedef struct Request { // one prompt; owned
    char *text;
    char *images[REQUEST_IMAGES];
    int image_count;
    TokenIds pieces[REQUEST_IMAGES + 1]; // of the text between images
    Segment segments[2 * REQUEST_IMAGES + 1];
    uint8_t *pixels;
    Prompt prompt;
} Request;

typedef struct Requests {
    Request *items;
    int count;
} Requests; // zero-initialise; requests_free

// text may be NULL where there are images.
bool requests_add(Requests *, const char *text, const char *const *images, int image_count, Error *);
// A line each: {"prompt": TEXT, "image": FILE or a list of them}; files count from the folder of the .jsonl.
bool requests_read(Requests *, const char *path, Error *);
// Reads the images and lays the prompt out: images stand at each "<image>" of the text, those without one in front.
bool request_prepare(Request *, uint64_t number, const LoadedModel *, Error *);
void requests_free(Requests *);
