// What stands behind simt.h: threads, barriers, warp operations and launches, and the settings that a test chooses.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>

namespace simt {

// A textual place in the kernel. `id` tells two barriers of one line (a macro, a template) apart.
struct Site {
  const char* file;
  int line;
  int id;
};

struct Thread {
  uint3 index;
  unsigned linear;  // in its block: x fastest
};

struct Block {
  uint3 index;
  dim3 threads;
  dim3 grid;
  char* dynamic_shared;
};

// The thread that runs now, and its block. Only one thread runs at any time.
extern const Thread* thread;
extern const Block* block;

enum class Order { forward, reverse, random };

struct Settings {
  Order order = Order::forward;
  uint64_t seed = 0;
  size_t shared_limit = 101376;  // what a block may opt in to: 99 KB, as on compute capability 8.6 and 8.9
  int multiprocessors = 4;
  int blocks_at_once = INT32_MAX;  // on a multiprocessor, of any kernel
  const void* stream = nullptr;    // every launch must use it
  bool dry = false;                // launches are noted, and nothing runs
};
extern Settings settings;

// A fault of the kernel or of its launch. Counted, and printed to stderr while there are few.
void complain(const char* format, ...) __attribute__((format(printf, 1, 2)));
extern int complaints;

// Waits for every thread of the block at the same site; how many threads had a predicate other than 0, and how many
// came.
struct BarrierResult {
  unsigned yes, all;
};
BarrierResult barrier(int predicate, const Site& site);

// Waits for every live lane of `mask` at the same operation. Orders no memory, except `sync`.
//   shuffle: the value of lane `source`;  vote: ballot of values other than 0, with the live lanes in the upper half;
//   match: the lanes with an equal value;  sync: nothing
enum class WarpOperation : uint8_t { shuffle, vote, match, sync };
uint64_t warp_operation(WarpOperation operation, uint32_t mask, uint64_t value, unsigned source, const Site& site);

// __threadfence: the only thing, with barriers, that orders one thread's accesses before another's. To see what another
// thread has published, a thread fences after the atomic that told it so.
void fence();

// Called before every atomic: another thread may run first.
void before_atomic(const void* address);

// Alignment of an access of `size` bytes: a GPU faults on a misaligned one.
void check_alignment(const void* address, size_t size, const Site& site);

// griddepcontrol.wait. Of a grid that is launched early each thread must have waited before it meets others, uses an
// atomic or a vector, or ends; in the counter build, before any access to a buffer.
void wait_for_predecessor();
void check_waited();

// Runs the kernel over the grid: body() is one thread's run. False: the launch is not valid, and nothing ran.
bool run_grid(const void* kernel, dim3 grid, dim3 threads, size_t dynamic_shared, const void* stream, bool early,
              const std::function<void()>& body);

// What a kernel opts in to beyond 48 KB of shared memory. False: more than a block can have.
bool allow_dynamic_shared(const void* kernel, size_t bytes);

// The block's static __shared__ memory: all of it, as this process lays it out (empty under ASan).
struct Range {
  char* begin;
  size_t bytes;
};
Range static_shared();
Range dynamic_shared();
bool on_fiber_stack(const void* address);

}  // namespace simt
