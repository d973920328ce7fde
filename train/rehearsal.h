/* Some units of a model run alone, forward and backward, as a stage of a pipeline runs them (pipeline.c): what would
 * come from other units is made up. On a backend that computes nothing this tells what units hold and cost, on a real
 * one what they take. */
#pragma once
#include "fusion/joint_units.h"
#include "train/train_config.h"

typedef struct Rehearsal {
    Joint *joint;       // borrowed; it holds the units that will run
    TapeMemory *memory; // of the tapes of all runs
    int units;          // of the model
    Arena *arena;
    const void *arriving;  // stands for whatever comes from other units
    const float *features; // zeros: gradients of features
} Rehearsal;

// The groups that a rank of this run's tensor axis would have, dry: those of its last one, which has the most rows
// where they do not divide.
Parallel rehearsal_parallel(const TrainConfig *);
void rehearsal_parallel_free(Parallel *);
// A model for a backend that computes nothing, whose parameters have no memory, not even addresses of their own. The
// groups of Parallel are dry ones (comm_dry_new), borrowed. NULL where the config is wrong.
Joint *rehearsal_model(Backend *dry, const JointConfig *, const Parallel *, Dtype compute, Error *);
// batches: (count), the largest streams of which are made room for.
void rehearsal_open(Rehearsal *, Backend *, Joint *, const Batch *batches, int count);
void rehearsal_close(Rehearsal *);
void rehearsal_renew(Rehearsal *,
                     Backend *); // its memory is new again, with a peak of its own; its tapes are gone before

typedef struct UnitRun { // a microbatch in units [first, end)
    Tape *tape;          // its owner's; reset before the run and when it is over
    int first, end;
    const Batch *batch;
    bool features_only; // as in JointPass; then the tape should not record
    unsigned wanted;    // of the streams that come in, bits of those whose gradients are; others are ignored
    // Results:
    JointStreams in, out;
    double arrival;   // bytes of the streams that came in
    Tensor *total;    // of the losses formed there; NULL: none
    unsigned leaving; // streams whose gradients come back
} UnitRun;

// In this order; what moves streams and gradients is apart from what computes. Backward in two halves, or in one.
void rehearse_arrive(Rehearsal *, UnitRun *);
void rehearse_forward(Rehearsal *, UnitRun *);
void rehearse_seed(Rehearsal *, UnitRun *);
void rehearse_backward(UnitRun *, Halves);
void rehearse_leave(UnitRun *); // after the gradients of activations
