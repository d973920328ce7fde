/* Work written down as bytes, and which lists of it are remembered: what comes again, byte by byte, is the same work. A
 * few dozen lists are kept, each with what its owner made of it (a CUDA graph); the one not used for longest goes. No
 * CUDA here. */
#pragma once
#include "kernels/cuda/kernels.h"

typedef enum CommandKind { COMMAND_CALL, COMMAND_MARK, COMMAND_WAIT } CommandKind;

typedef struct Command { // 32 bytes, none of them padding; arguments follow, 16-byte aligned
    CudaStart *start;    // of a call
    uint64_t mark;       // number of the mark that is set or waited for
    uint64_t bytes;      // of arguments
    int32_t kind, lane;
} Command;

typedef struct CommandList {
    char *bytes;
    size_t used, size;
    int64_t count; // of commands
} CommandList;

// arguments may be NULL where bytes is 0.
void command_list_add(CommandList *, Command, const void *arguments);
// The command at byte *at, which becomes that of the next one; NULL behind the last.
const Command *command_list_next(const CommandList *, size_t *at);
const void *command_arguments(const Command *);
void command_list_clear(CommandList *); // keeps the memory
void command_list_free(CommandList *);  // the memory of a list, not the struct

typedef struct KnownList { // one that came before
    CommandList list;
    void *graph;        // the owner's; NULL: none
    bool without_graph; // none can be made
    uint64_t last_use;
} KnownList;

typedef struct KnownLists KnownLists;

// drop: what becomes of a graph that is forgotten.
KnownLists *known_lists_new(int most, void (*drop)(void *graph));
void known_lists_free(KnownLists *); // drops all; NULL is allowed
// The remembered list with these bytes; one that is not known is copied and remembered. *found tells. Valid until the
// next call.
KnownList *known_lists_find(KnownLists *, const CommandList *, bool *found);
void known_lists_drop_graphs(KnownLists *); // the lists stay
int known_lists_count(const KnownLists *);
