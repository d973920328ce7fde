/* See describe.h. */
#include "fusion/describe.h"
#include "fusion/generate.h"
#include <stdlib.h>
#include <string.h>

void joint_view(const JointConfig *config, const Image *image, uint8_t *out) {
    int side = (int)config->vision.image_size;
    image_resize(image, crop_center(image->width, image->height), out, side, side, false);
}

bool describe_image(Tape *tape, Joint *joint, const Tokenizer *tokenizer, const Image *image, const char *question,
                    Buffer *text, Error *error) {
    const JointConfig *config = joint_config(joint);
    if (!joint_has(joint, OBJECTIVE_CAPTION))
        return error_set(error, ERROR_USAGE, "the model was not trained to speak of images (its caption weight is 0)");
    size_t side = (size_t)config->vision.image_size;
    uint8_t *pixels = malloc(3 * side * side);
    check(pixels);
    joint_view(config, image, pixels);
    TokenIds asked = {0}, said = {0};
    bool ok = !question || tokenizer_encode(tokenizer, question, strlen(question), &asked, error);
    Segment segments[] = {segment_image(0), segment_text(&asked)};
    Prompt prompt = {.segments = segments, .count = question ? 2 : 1, .pixels = pixels, .images = 1};
    GenerateOptions options = {.sampling = {.top_p = 1}, .max_tokens = DESCRIBE_TOKENS, .batch = 1};
    buffer_clear(text);
    ok = ok && generate(tape, joint, tokenizer, &prompt, 1, &options, &said, error) &&
         tokenizer_decode(tokenizer, said.ids, said.count, text, error);
    token_ids_free(&asked);
    token_ids_free(&said);
    free(pixels);
    return ok;
}
