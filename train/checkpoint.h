/* Checkpoints of a run: RUN/checkpoints/step-00001000/ holds the model (see fusion/model_files.h), the optimizer's
 * moments and state.json. Nothing in it depends on how many ranks there were or what they shared: tensors are whole,
 * under their global names, and any number of ranks reads them.
 *
 * A Saver writes them while training goes on: a thread of each rank copies what it writes, before the next update may
 * change it, writes it into a folder aside and syncs; when all ranks have written theirs, one seals the folder and
 * renames it. What can be seen under its name is complete. */
#pragma once
#include "base/trace.h"
#include "fusion/model_files.h"
#include "train/checkpoint_state.h"
#include "train/mesh.h"
#include "train/optimizer.h"

typedef struct CheckpointOptions { // all borrowed
    const char *run;
    int64_t keep, keep_every; // the newest `keep` stay, and those of steps that keep_every divides; 0: none of these
    Joint *joint;
    const Tokenizer *tokenizer; // may be NULL
    Optimizer *optimizer;
    Backend *backend;
    const Mesh *mesh; // NULL: alone
    Log *log;         // may be NULL
    Trace *trace;     // may be NULL: what the thread copies and writes is drawn there, on track "save"
} CheckpointOptions;

typedef struct Saver Saver;

// Collective. The parameters and the optimizer are complete by then.
Saver *saver_new(const CheckpointOptions *);
// Waits for what this rank is writing; over several ranks, a save that was not finished stays aside.
void saver_free(Saver *); // NULL is allowed

// ---- collective: every rank calls them at the same place, and all return the same ----

// Begins to save, after the end of a save under way. The copy, for which ranks send each other what the other writes,
// is made beside the caller's work: call checkpoint_hold before the next update.
bool checkpoint_start(Saver *, const TrainState *, Error *);
// One step on the way to the end of a save: to be called when checkpoint_written is true on all ranks. False where the
// save failed on any rank: then nothing of it is left, and the checkpoints before it are intact.
bool checkpoint_commit(Saver *, Error *);
// Waits until no save is under way.
bool checkpoint_finish(Saver *, Error *);

// ---- each rank by itself ----

void checkpoint_prepare(Saver *);         // takes memory for the copies, beside the caller's work
void checkpoint_hold(Saver *);            // waits until parameters and moments may change
bool checkpoint_under_way(const Saver *); // the same on every rank
bool checkpoint_written(Saver *);         // a save is under way, and this rank has done its part of it
int64_t checkpoint_saved(const Saver *);  // step of the newest checkpoint that is complete; -1: none by this saver
typedef struct CheckpointTimes {
    double held, written; // seconds: the caller waited; from the start to the end of the last save
    double bytes;         // that this rank wrote in it
} CheckpointTimes;
CheckpointTimes checkpoint_times(const Saver *);

// Reads weights and moments of the checkpoint folder into the model and the optimizer, checksums verified. Collective
// where mesh is not NULL.
bool checkpoint_load(const char *folder, TrainState *, Joint *, Optimizer *, Backend *, const Mesh *mesh, Error *);
// Removes what is neither among the newest `keep` nor of a step that keep_every divides, and folders that an
// interrupted save left aside.
bool checkpoint_prune(const char *run, int64_t keep, int64_t keep_every, Error *);
