/* bifocal generate: text from prompts and pictures. */
#include "base/json.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/requests.h"
#include "kernels/device.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Arguments {
    const char *model, *prompt, *prompts;
    const char *images[REQUEST_IMAGES];
    int image_count, threads, precision, device; // precision: 0 f32, 1 bf16; device: Device
    GenerateOptions options;
    bool json;
} Arguments;

static void usage(FILE *out) {
    fputs("usage: bifocal generate MODEL --prompt TEXT [--image FILE]... [OPTION]...\n"
          "       bifocal generate MODEL --prompts FILE.jsonl [OPTION]...\n\n"
          "  MODEL             a run (its newest checkpoint) or a checkpoint folder\n"
          "  --prompt TEXT     <image> in it marks the places of images; without, they stand in front\n"
          "  --image FILE      JPEG or PNG; may be given several times; without --prompt: a caption\n"
          "  --prompts FILE    one object a line: {\"prompt\": TEXT, \"image\": FILE or a list of them}, files beside "
          "it\n"
          "  --max-tokens N    at the most (128)\n"
          "  --temperature T   0 (the default): the likeliest token; above: by lot\n"
          "  --top-k K         among the K likeliest tokens; 0, the default: all\n"
          "  --top-p P         among the likeliest that hold this probability; 1, the default: all\n"
          "  --seed S          of the lot (0)\n"
          "  --batch N         prompts at a time (32); changes nothing that is generated\n"
          "  --precision P     f32 (the default) or bf16\n"
          "  --device D        cpu (the default), cuda, or auto: a GPU where there is one\n"
          "  --threads N       0, the default: one per core\n"
          "  --json            one JSON object a prompt\n",
          out);
}

static bool take_number(Arguments *a, int c, const char *value, Error *error) {
    double number = 0;
    bool ok = true;
    if (c == 'm' && (ok = option_number(value, 1, 1e9, "--max-tokens", &number, error)))
        a->options.max_tokens = (int64_t)number;
    else if (c == 'k' && (ok = option_number(value, 0, 1e9, "--top-k", &number, error)))
        a->options.sampling.top_k = (int64_t)number;
    else if (c == 's' && (ok = option_number(value, 0, 9e15, "--seed", &number, error)))
        a->options.sampling.seed = (uint64_t)number;
    else if (c == 'b' && (ok = option_number(value, 1, 65536, "--batch", &number, error)))
        a->options.batch = (int64_t)number;
    else if (c == 'n' && (ok = option_number(value, 0, 4096, "--threads", &number, error)))
        a->threads = (int)number;
    return ok;
}

static bool take_option(Arguments *a, int c, const char *value, Error *error) {
    switch (c) {
    case 'p':
        a->prompt = value;
        return true;
    case 'f':
        a->prompts = value;
        return true;
    case 'j':
        a->json = true;
        return true;
    case 'i':
        if (a->image_count == REQUEST_IMAGES)
            return error_set(error, ERROR_USAGE, "more than %d images", REQUEST_IMAGES);
        a->images[a->image_count++] = value;
        return true;
    case 't':
        return option_number(value, 0, 100, "--temperature", &a->options.sampling.temperature, error);
    case 'o':
        return option_number(value, 0, 1, "--top-p", &a->options.sampling.top_p, error);
    case 'r':
        return option_choice(value, "f32|bf16", "--precision", &a->precision, error);
    case 'v':
        return option_choice(value, DEVICE_CHOICES, "--device", &a->device, error);
    default:
        return take_number(a, c, value, error);
    }
}

static bool parse(Arguments *a, int argc, char **argv, Error *error) {
    static const struct option options[] = {{"prompt", required_argument, 0, 'p'},
                                            {"prompts", required_argument, 0, 'f'},
                                            {"image", required_argument, 0, 'i'},
                                            {"max-tokens", required_argument, 0, 'm'},
                                            {"temperature", required_argument, 0, 't'},
                                            {"top-k", required_argument, 0, 'k'},
                                            {"top-p", required_argument, 0, 'o'},
                                            {"seed", required_argument, 0, 's'},
                                            {"batch", required_argument, 0, 'b'},
                                            {"device", required_argument, 0, 'v'},
                                            {"threads", required_argument, 0, 'n'},
                                            {"precision", required_argument, 0, 'r'},
                                            {"json", no_argument, 0, 'j'},
                                            {0}};
    *a = (Arguments){.options = {.sampling = {.top_p = 1}, .max_tokens = 128, .batch = 32}};
    for (int c; (c = option_next(argc, argv, options, "generate", error)) != -1;)
        if (c == '?' || !take_option(a, c, optarg, error)) return false;
    if (optind + 1 != argc)
        return error_set(error, ERROR_USAGE, optind < argc ? "one MODEL at a time" : "MODEL is missing");
    a->model = argv[optind];
    if (a->prompts && (a->prompt || a->image_count))
        return error_set(error, ERROR_USAGE, "--prompts goes alone, without --prompt and --image");
    if (!a->prompts && !a->prompt && !a->image_count)
        return error_set(error, ERROR_USAGE, "--prompt TEXT, --image FILE or --prompts FILE.jsonl is missing");
    return true;
}

static bool print_answer(const Arguments *a, const Request *r, const LoadedModel *model, const TokenIds *said,
                         Error *error) {
    Buffer text = {0};
    bool ok = tokenizer_decode(model->tokenizer, said->ids, said->count, &text, error);
    const char *answer = text.data ? text.data : "";
    if (ok && a->json) {
        json_t *images = json_array();
        for (int i = 0; i < r->image_count; i++) json_array_append_new(images, json_string(r->images[i]));
        json_t *line = json_pack("{s:s, s:o, s:o, s:i}", "prompt", r->text, "images", images, "text",
                                 json_stringn(answer, text.size), "tokens", said->count);
        json_dumpf(line, stdout, 0);
        json_decref(line);
    } else if (ok) {
        fwrite(answer, 1, text.size, stdout);
    }
    if (ok) putchar('\n');
    buffer_free(&text);
    return ok;
}

static bool answer_all(const Arguments *a, LoadedModel *model, Backend *backend, Requests *requests, Error *error) {
    int count = requests->count;
    Prompt *prompts = calloc((size_t)count + 1, sizeof *prompts);
    TokenIds *said = calloc((size_t)count + 1, sizeof *said);
    check(prompts && said);
    Tape *tape = tape_new(backend, false);
    bool ok = true;
    for (int i = 0; ok && i < count; i++) {
        ok = request_prepare(&requests->items[i], (uint64_t)i, model, error);
        prompts[i] = requests->items[i].prompt;
    }
    ok = ok && generate(tape, model->joint, model->tokenizer, prompts, count, &a->options, said, error);
    for (int i = 0; ok && i < count; i++) ok = print_answer(a, &requests->items[i], model, &said[i], error);
    for (int i = 0; i < count; i++) token_ids_free(&said[i]);
    tape_free(tape);
    free(said);
    free(prompts);
    return ok;
}

static bool run(const Arguments *a, Log *log, Error *error) {
    Requests requests = {0};
    LoadedModel model = {0};
    Backend *backend = NULL;
    bool ok = a->prompts ? requests_read(&requests, a->prompts, error)
                         : requests_add(&requests, a->prompt, a->images, a->image_count, error);
    if (!ok) goto done;
    DeviceOptions device = {.device = (Device)a->device, .threads = a->threads};
    backend = device_backend_new(&device, log, error);
    ok = backend && model_load(&model, backend, a->model, a->precision ? BF16 : F32, log, error);
    if (ok && !model.tokenizer)
        ok = error_set(error, ERROR_FAILED, "%s: there is no tokenizer.model in it", model.path);
    if (ok && !tokenizer_check_marks(model.tokenizer, error)) ok = error_prefix(error, "%s", model.path);
    ok = ok && answer_all(a, &model, backend, &requests, error);
done:
    requests_free(&requests);
    model_unload(&model);
    backend_free(backend);
    return ok;
}

int generate_main(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return usage(stdout), 0;
    Arguments a;
    Error error = {0};
    Log *log = log_new(LOG_WARNING, stderr);
    bool ok = parse(&a, argc, argv, &error) && run(&a, log, &error);
    if (!ok) log_error(log, "%s", error.message);
    log_free(log);
    return ok ? 0 : (int)error.kind;
}
