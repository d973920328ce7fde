/* A pass over a joint model in parts, as a pipeline runs it: each range of units on a tape of its own, streams and
 * their gradients handed over through host memory. Asserts on the way that what crosses a boundary is what was
 * declared. */
#pragma once
#include "fusion/joint_units.h"
#include "tests/fusion/tiny_joint.h"

typedef struct CutMessage { // streams, or their gradients, between two parts
    bool wanted[JOINT_STREAMS];
    StreamShape shape[JOINT_STREAMS];
    void *data[JOINT_STREAMS]; // NULL: absent; malloc'd
} CutMessage;
void cut_message_free(CutMessage *); // what it holds

typedef struct CutPart {
    Joint *joint;
    const Batch *batch;
    const JointPass *pass;
    int first, end; // units
    Tape *tape;     // borrowed
    JointStreams in, out;
    JointLoss loss;
} CutPart;

// What comes in (NULL: nothing) is taken from `in`; what goes out is written to `out`.
void cut_forward(CutPart *, const CutMessage *in, CutMessage *out);
// Gradients of what went out (NULL: nothing did) are taken; those of what came in are written to `in`. Between its two
// halves the gradients that came are kept on the tape: give them in the first.
void cut_backward(CutPart *, const CutMessage *out, CutMessage *in, Halves);

typedef enum { CUT_WHOLE, CUT_HALVES, CUT_FORWARD } CutMode; // CUT_HALVES: all weight gradients behind all others

// Part p has units [first[p], first[p + 1]). Gradients stay in the parameters, of parts that wrote none: zeros. The
// means of the objectives go to mean, 0 where absent.
void cut_run(Joint *, Backend *, const Batch *, const JointPass *, int parts, const int *first, CutMode,
             float mean[OBJECTIVES]);
