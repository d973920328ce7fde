/* Streams, events and graphs of the stand-in for CUDA's runtime: between runtime_queue.cpp, where work waits and runs,
 * and runtime_calls.cpp, where the calls are. */
#pragma once
#include "tests/simt/runtime.h"
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

struct CUstream_st;
typedef std::function<bool()> Work; // false: it waits for other ranks, and is asked again

struct Record { // of an event, once; outlives it while work refers to it
    bool done;
    double at; // of the clock, then
};

struct Node {
    Work work;
    std::vector<size_t> behind; // nodes
};
struct CUgraph_st {
    std::vector<Node> nodes;
};
struct CUgraphExec_st {
    std::vector<Node> nodes;
};

struct Capture {
    CUstream_st *origin;
    std::unique_ptr<CUgraph_st> graph;
    bool invalid = false;
};

struct Piece { // of a stream
    enum Kind { WORK, RECORD, WAIT } kind;
    Work work;
    std::shared_ptr<Record> record;
};

struct CUstream_st {
    std::deque<Piece> pieces;
    std::shared_ptr<Capture> capture; // NULL: none
    std::vector<size_t> front;        // nodes of the capture that the next one comes behind
};

struct CUevent_st {
    std::shared_ptr<Record> last = std::make_shared<Record>(Record{true, 0});
    std::shared_ptr<Capture> capture; // it was last recorded in a capture, behind these nodes
    std::vector<size_t> nodes;
    bool timed = false;
};

std::vector<CUstream_st *> &queue_streams();              // in the order they were made
void queue_put(CUstream_st *, std::function<void()>);     // into the stream or its capture
void queue_put_waiting(CUstream_st *, Work);
void queue_take_kernels();                                // launches into streams come here from now on
void queue_launch(CUstream_st *, const CUgraphExec_st *); // its nodes, in an order that they allow
void queue_finish(CUstream_st *);                         // until it is empty; NULL: all
void queue_reach(const std::shared_ptr<Record> &);
void queue_progress(); // what an order runs when nobody waits
[[noreturn]] void queue_deadlock();
void queue_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));
