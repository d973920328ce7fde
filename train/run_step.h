/* The steps of a run, and what validation shares with them. */
#pragma once
#include "train/run_state.h"

// The next step, or where somebody asked the run to stop (*stop) nothing. With Run.gate the step before is told of, and
// this one when the next is on its way. Collective over the world, like all here.
bool run_step(Run *, int *stop, Error *);
// Until all steps are done and told of: before anything else looks at what they changed.
bool run_settle(Run *, Error *);
void run_record(Run *, json_t *what);             // to metrics.jsonl; takes `what`
StepSetup run_setup(const Run *, Tape *);         // judged by the host
bool run_all_done(const Run *, bool ok, Error *); // whether every rank could do its part
