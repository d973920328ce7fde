/* A pipeline's timeline as a picture: a lane for each stage, a box for each row with its microbatch's number. */
#pragma once
#include "base/buffer.h"
#include "train/schedule_check.h"
#include "train/schedule_time.h"

typedef struct TimelinePanel {
    const char *title;
    const Timeline *line;
    const StagePeak *peaks; // (stages): what each holds; NULL: not shown
} TimelinePanel;

// Appends a whole SVG document, colours included: panels below one another, each from its own first row, on one
// scale of time, so that a simulation and a run can be compared. Refuses what would have too many boxes to be looked
// at.
bool timeline_svg(Buffer *, const TimelinePanel *, int count, Error *);
