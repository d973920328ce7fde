/* bifocal plan estimate: time, memory and price of a large training run by closed formulas. */
#include "cli/commands.h"
#include "cli/options.h"
#include "train/estimate.h"
#include <stddef.h>
#include <stdio.h>

typedef struct Arguments {
    TextSizes text; // layers 0: not given
    double parameters, frozen, tokens, batch, gpus, flops, peak, data, memory, price, watts;
    int recompute; // Recompute
    bool offload, help;
} Arguments;

typedef struct NumberOption {
    const char *name;
    double least;
    size_t offset;
} NumberOption;
#define AT(member) offsetof(Arguments, member)
static const NumberOption numbers[] = {{"layers", 1, AT(text.layers)},
                                       {"width", 1, AT(text.width)},
                                       {"vocabulary", 1, AT(text.vocabulary)},
                                       {"context", 1, AT(text.context)},
                                       {"parameters", 1, AT(parameters)},
                                       {"frozen", 0, AT(frozen)},
                                       {"tokens", 1, AT(tokens)},
                                       {"batch", 1, AT(batch)},
                                       {"gpus", 1, AT(gpus)},
                                       {"flops", 1, AT(flops)},
                                       {"peak", 1, AT(peak)},
                                       {"data", 1, AT(data)},
                                       {"memory", 1, AT(memory)},
                                       {"price", 0, AT(price)},
                                       {"watts", 0, AT(watts)}};
enum { NUMBERS = sizeof numbers / sizeof *numbers };

static void usage(FILE *out) {
    fputs("usage: bifocal plan estimate --layers L --width H [options]\n"
          "       bifocal plan estimate --parameters P [options]\n\n"
          "  --layers L --width H   a text transformer; with\n"
          "  --vocabulary V         (51200) and\n"
          "  --context S            tokens of a row (2048)\n"
          "  --parameters P         trained, where the shape does not matter\n"
          "  --frozen P             parameters that are held and not trained\n"
          "  --tokens T             to train on: time of the training\n"
          "  --batch B              rows of an iteration: its FLOP and time\n"
          "  --gpus N               devices (1)\n"
          "  --flops X              FLOP/s that each sustains, 140e12\n"
          "  --peak X               and could at most: share of the peak\n"
          "  --recompute R          none, selective or full (none)\n"
          "  --data N               data ranks: bytes of a rank at every stage of ZeRO\n"
          "  --offload              masters and moments are kept elsewhere\n"
          "  --memory BYTES         of a device (80e9): how many hold the states alone\n"
          "  --price P              of a device for an hour: what the training costs\n"
          "  --watts W              of a device: energy of the training\n\n"
          "By formulas of shapes alone, for decoders with Adam and 16-bit values. What a config of this program takes\n"
          "is planned by `bifocal plan CONFIG`.\n",
          out);
}

static bool take(Arguments *a, int option, Error *error) {
    if (option == 'h') return a->help = true;
    if (option == 'o') return a->offload = true;
    if (option == 'r') return option_choice(optarg, "none|selective|full", "--recompute", &a->recompute, error);
    if (option < 256) return false;
    const NumberOption *n = &numbers[option - 256];
    char name[32];
    snprintf(name, sizeof name, "--%s", n->name);
    return option_number(optarg, n->least, 1e24, name, (double *)((char *)a + n->offset), error);
}

static bool parse(Arguments *a, int argc, char **argv, Error *error) {
    struct option options[NUMBERS + 4] = {{0}};
    for (int i = 0; i < NUMBERS; i++) options[i] = (struct option){numbers[i].name, required_argument, 0, 256 + i};
    options[NUMBERS] = (struct option){"recompute", required_argument, 0, 'r'};
    options[NUMBERS + 1] = (struct option){"offload", no_argument, 0, 'o'};
    options[NUMBERS + 2] = (struct option){"help", no_argument, 0, 'h'};
    *a = (Arguments){.text = {.vocabulary = 51200, .context = 2048}, .gpus = 1, .memory = 80e9};
    for (int c; !a->help && (c = option_next(argc, argv, options, "plan estimate", error)) != -1;)
        if (!take(a, c, error)) return false;
    if (a->help) return true;
    if (optind < argc) return error_set(error, ERROR_USAGE, "no argument is expected: '%s'", argv[optind]);
    if (a->parameters <= 0 && (a->text.layers <= 0 || a->text.width <= 0))
        return error_set(error, ERROR_USAGE, "give --layers and --width, or --parameters");
    if (a->batch > 0 && a->text.layers <= 0)
        return error_set(error, ERROR_USAGE, "--batch needs the shape: give --layers and --width");
    if ((a->tokens > 0 || a->batch > 0 || a->peak > 0) && a->flops <= 0)
        return error_set(error, ERROR_USAGE, "times need --flops: what a device sustains, 140e12");
    return true;
}

static void print_iteration(const Arguments *a) {
    double hardware = estimate_hardware_flop(&a->text, a->batch, (Recompute)a->recompute);
    double model = estimate_model_flop(&a->text, a->batch);
    printf("%-28s %.4g model, %.4g on the hardware\n", "FLOP of an iteration", model, hardware);
    printf("%-28s %.4g s\n", "time of an iteration", hardware / (a->gpus * a->flops));
    if (a->peak > 0)
        printf("%-28s %.1f %% of the peak for the model (MFU), %.1f %% on the hardware (HFU)\n", "of the peak",
               100 * a->flops / a->peak * model / hardware, 100 * a->flops / a->peak);
}

static void print_training(const Arguments *a, double parameters) {
    double seconds = estimate_seconds(parameters, a->tokens, (Recompute)a->recompute, a->gpus, a->flops);
    double hours = seconds / 3600 * a->gpus;
    printf("%-28s %.1f days, %.4g device hours\n", "time of the training", seconds / 86400, hours);
    if (a->price > 0) printf("%-28s %.4g\n", "price", hours * a->price);
    if (a->watts > 0) printf("%-28s %.4g kWh\n", "energy", hours * a->watts / 1000);
}

static void print_states(const Arguments *a, double parameters) {
    double bytes = estimate_state_bytes(parameters, a->frozen, a->offload);
    double devices = bytes / a->memory, whole = (double)(long long)devices;
    printf("%-28s %.4g GB on devices, %.0f of %.4g GB hold them\n", "weights, gradients, moments", bytes / 1e9,
           whole < devices ? whole + 1 : whole, a->memory / 1e9);
    for (int stage = 0; a->data > 0 && stage < 4; stage++)
        printf("  ZeRO %d over %-16.0f %.4g bytes a parameter, %.4g GB; sends %g x\n", stage, a->data,
               estimate_zero_bytes(stage, a->data), estimate_zero_bytes(stage, a->data) * parameters / 1e9,
               estimate_zero_traffic(stage));
}

int plan_estimate_main(int argc, char **argv) {
    Arguments a;
    Error error = {0};
    if (!parse(&a, argc, argv, &error)) {
        fprintf(stderr, "bifocal plan estimate: %s\n", error.message);
        return (int)error.kind;
    }
    if (a.help) {
        usage(stdout);
        return 0;
    }
    double parameters = a.parameters > 0 ? a.parameters : estimate_parameters(&a.text);
    printf("%-28s %.4g\n", "parameters", parameters);
    if (a.batch > 0) print_iteration(&a);
    if (a.tokens > 0) print_training(&a, parameters);
    print_states(&a, parameters);
    return 0;
}
