/* See checkpoint.h: reading. Every rank maps all files and takes the runs of elements that it holds from them, whoever
 * wrote them; the checksums of each file are verified by one rank. */
#include "train/agree.h"
#include "train/checkpoint.h"
#include "train/checkpoint_layout.h"
#include <string.h>

enum { PATH_BYTES = 4096 };

// The tensors of a part must be those of the model: all of them, of their global shapes, and no others.
static bool same_tensors(const CheckpointLayout *l, CheckpointPart part, const SafeTensorsSet *files, Error *error) {
    const char *path = safetensors_set_path(files);
    for (int i = l->first[part]; i < l->first[part + 1]; i++) {
        const SafeTensor *own = &l->tensors[i], *t = safetensors_find(&files->all, own->name);
        if (!t)
            return error_set(error, ERROR_FAILED,
                             "%s: no tensor %s; the run was saved with another model or other frozen parts", path,
                             own->name);
        if (strcmp(t->dtype, own->dtype) != 0 || t->rank != own->rank ||
            memcmp(t->shape, own->shape, (size_t)own->rank * sizeof *own->shape) != 0)
            return error_set(error, ERROR_FAILED, "%s: %s has another shape or type than the model's", path, own->name);
    }
    if (files->all.count == l->first[part + 1] - l->first[part]) return true;
    return error_set(error, ERROR_FAILED,
                     "%s: has %d tensors, the model %d; the run was saved with another model or other frozen parts",
                     path, files->all.count, l->first[part + 1] - l->first[part]);
}

static void take(const StateRange *r, const SafeTensor *tensor, Parameters *parameters, Backend *b) {
    const Parameter *p = parameters_at(parameters, r->parameter);
    for (int64_t done = 0, global, run; done < r->count; done += run) {
        parameter_run(p, parameters_parallel(parameters), r->first + done, &global, &run);
        if (run > r->count - done) run = r->count - done;
        b->upload(b, r->data + done, (const char *)tensor->data + global * (int64_t)sizeof(float),
                  (size_t)run * sizeof(float));
    }
}

// Checksums of every file are verified by one of the ranks.
static bool open_part(const char *folder, CheckpointPart part, const CheckpointLayout *l, Comm *world,
                      SafeTensorsSet *files, Error *error) {
    char description[PATH_BYTES];
    snprintf(description, sizeof description, "%s/%s", folder, MODEL_DESCRIPTION);
    return safetensors_set_open(files, folder, checkpoint_part_names[part], error) &&
           safetensors_set_verify(files, comm_rank(world), comm_size(world), error) &&
           safetensors_set_check_file(files, description, error) && same_tensors(l, part, files, error);
}

static void take_all(const CheckpointLayout *l, const SafeTensorsSet files[CHECKPOINT_PARTS], Parameters *parameters,
                     const Optimizer *optimizer, Backend *backend, Arena *memory) {
    StateRange *ranges;
    int count = optimizer_ranges(optimizer, memory, &ranges);
    for (int i = 0; i < count; i++) {
        const SafeTensor *own = &l->tensors[l->number[ranges[i].kind][ranges[i].parameter]];
        const SafeTensorsSet *set = &files[ranges[i].kind == STATE_MASTER ? PART_MODEL : PART_OPTIMIZER];
        take(&ranges[i], safetensors_find(&set->all, own->name), parameters, backend);
    }
    parameters_refresh(parameters);
}

bool checkpoint_load(const char *folder, TrainState *s, Joint *joint, Optimizer *optimizer, Backend *backend,
                     const Mesh *mesh, Error *error) {
    Comm *world = mesh ? mesh->world : NULL;
    SafeTensorsSet files[CHECKPOINT_PARTS] = {0};
    Arena *memory = arena_new(1 << 16);
    const CheckpointLayout *l = checkpoint_layout_new(joint_parameters(joint), 1, memory);
    bool ok = comm_rank(world) != 0 || checkpoint_state_read(folder, s, error);
    for (int part = 0; part < CHECKPOINT_PARTS && ok; part++)
        ok = open_part(folder, (CheckpointPart)part, l, world, &files[part], error);
    ok = agree(world, ok, error);
    if (ok) {
        comm_broadcast(world, s, sizeof *s, 0, "checkpoint");
        take_all(l, files, joint_parameters(joint), optimizer, backend, memory);
    }
    for (int part = 0; part < CHECKPOINT_PARTS; part++) safetensors_set_close(&files[part]);
    arena_free(memory);
    return ok;
}
