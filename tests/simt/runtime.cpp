// What kernels call, and launches.
#include "runtime.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "counters.h"
#include "scheduler.h"

namespace simt {

const Thread* thread = nullptr;
const Block* block = nullptr;
Settings settings;
int complaints = 0;

namespace {

constexpr size_t default_shared = 48 << 10;

std::map<const void*, size_t>& allowed_dynamic_shared() {
  static std::map<const void*, size_t> map;
  return map;
}

bool valid_launch(const void* kernel, dim3 grid, dim3 threads, size_t dynamic_shared, const void* stream) {
  const uint64_t thread_count = uint64_t{threads.x} * threads.y * threads.z;
  auto allowed = allowed_dynamic_shared().find(kernel);
  const size_t shared =
      allowed == allowed_dynamic_shared().end() ? default_shared : std::max(default_shared, allowed->second);
  bool valid = false;
  if (thread_count == 0 || thread_count > max_threads || threads.z > 64)
    complain("launch of %u x %u x %u threads a block", threads.x, threads.y, threads.z);
  else if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535)
    complain("launch of a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
  else if (dynamic_shared > shared)
    complain("launch with %zu bytes of dynamic shared memory, %zu allowed", dynamic_shared, shared);
  else
    valid = true;
  if (stream != settings.stream) complain("launch on another stream than the caller's");
  return valid;
}

}  // namespace

void complain(const char* format, ...) {
  if (complaints++ >= 20) return;
  fputs("simt: ", stderr);
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
}

BarrierResult barrier(int predicate, const Site& site) {
  check_waited();
  Resident& r = *resident_now;
  Fiber& fiber = *r.current;
  fiber.state = State::at_barrier;
  fiber.value = predicate != 0;
  fiber.site = site;
#ifdef SIMT_TSAN
  __tsan_release(&r.block_sync);
#endif
  r.pause();
#ifdef SIMT_TSAN
  __tsan_acquire(&r.block_sync);
#endif
  return {static_cast<unsigned>(fiber.value), static_cast<unsigned>(fiber.value >> 32)};
}

uint64_t warp_operation(WarpOperation operation, uint32_t mask, uint64_t value, unsigned source, const Site& site) {
  check_waited();
  Resident& r = *resident_now;
  Fiber& fiber = *r.current;
  const unsigned lane = fiber.id.linear % warp_size;
  if (!(mask >> lane & 1)) complain("%s:%d: lane %u is not in its own mask %08x", site.file, site.line, lane, mask);
  fiber.state = State::at_warp_operation;
  fiber.operation = operation;
  fiber.mask = mask;
  fiber.value = value;
  fiber.source = source;
  fiber.site = site;
#ifdef SIMT_TSAN
  char* sync = operation == WarpOperation::sync ? &r.warp_sync[fiber.id.linear / warp_size] : nullptr;
  if (sync) __tsan_release(sync);
  r.pause();
  if (sync) __tsan_acquire(sync);
#else
  r.pause();
#endif
  return fiber.value;
}

// Fences for TSan, as in C++: a fence, then an atomic, publish what the thread did before the fence; an atomic on the
// same variable, then a fence, see it. Both pairs may be split over a block, as CUDA code does: all threads' fences, a
// barrier, one thread's atomic; and that thread's atomic, a barrier, all threads' fences.
void fence() {
#ifdef SIMT_TSAN
  const Unseen unseen;
  Fiber& fiber = *resident_now->current;
  for (char* publisher : fiber.observed) __tsan_acquire(publisher);
  for (char* publisher : resident_now->observed) __tsan_acquire(publisher);
  fiber.observed.clear();
  Resident& r = *resident_now;
  if (!r.fences_since_barrier) r.fences.push_back(0);
  r.fences_since_barrier = true;
  __tsan_release(&r.fences.back());
  __tsan_release(&fiber.fenced);
  fiber.fenced = 1;
#endif
}

void before_atomic([[maybe_unused]] const void* address) {
  check_waited();
  if (settings.order == Order::random && launch_now->random.below(4) == 0) resident_now->pause();
#ifdef SIMT_TSAN
  const Unseen unseen;
  Fiber& fiber = *resident_now->current;
  std::vector<char*>& publishers = launch_now->publishers[address];
  fiber.observed.insert(fiber.observed.end(), publishers.begin(), publishers.end());
  if (fiber.fenced) publishers.push_back(&fiber.fenced);
  const std::vector<char*>& of_block = resident_now->published;
  publishers.insert(publishers.end(), of_block.begin(), of_block.end());
#endif
}

void check_alignment(const void* address, size_t size, const Site& site) {
  if (thread && !on_fiber_stack(address)) check_waited();
  if (reinterpret_cast<uintptr_t>(address) % size != 0)
    complain("%s:%d: misaligned access of %zu bytes at an address that is %zu modulo %zu", site.file, site.line, size,
             reinterpret_cast<uintptr_t>(address) % size, size);
}

void wait_for_predecessor() { resident_now->current->waited = true; }
void check_waited() {
  if (!thread) return;  // on the host
  Fiber& fiber = *resident_now->current;
  if (fiber.waited) return;
  const uint3& b = resident_now->view.index;
  complain("block (%u,%u,%u): thread %u has not waited for the launch before", b.x, b.y, b.z, fiber.id.linear);
  fiber.waited = true;  // once is enough
}

bool allow_dynamic_shared(const void* kernel, size_t bytes) {
  if (bytes > settings.shared_limit) {
    complain("%zu bytes of dynamic shared memory asked for, a block can have %zu", bytes, settings.shared_limit);
    return false;
  }
  allowed_dynamic_shared()[kernel] = bytes;
  return true;
}

Range static_shared() { return resident_now->fixed; }
Range dynamic_shared() { return {resident_now->dynamic, launch_now->dynamic_shared}; }
bool on_fiber_stack(const void* address) {
  const Context& context = resident_now->current->context;
  return address >= context.stack && address < static_cast<const char*>(context.stack) + context.stack_size;
}

bool run_grid(const void* kernel, dim3 grid, dim3 threads, size_t dynamic_shared, const void* stream, bool early,
              const std::function<void()>& body) {
  if (!valid_launch(kernel, grid, threads, dynamic_shared, stream)) return false;
  count_launch(kernel, grid, threads, dynamic_shared);
  if (settings.dry) return true;
  Launch launch{grid, threads, dynamic_shared, early, body, Random(settings.seed), {}, 0, {}, {0}};
  launch.blocks.resize(Resident::count(grid));
  std::iota(launch.blocks.begin(), launch.blocks.end(), uint64_t{0});
  if (settings.order == Order::reverse) std::reverse(launch.blocks.begin(), launch.blocks.end());
  if (settings.order == Order::random)
    for (auto i = static_cast<unsigned>(launch.blocks.size()); i > 1; --i)
      std::swap(launch.blocks[i - 1], launch.blocks[launch.random.below(i)]);

  const size_t resident = std::min<size_t>(resident_blocks, launch.blocks.size());
  for (unsigned i = 0; i < resident; ++i) launch.residents.push_back(std::make_unique<Resident>(launch, i));
  launch_now = &launch;
  std::vector<std::thread> workers;
  for (auto& r : launch.residents) workers.emplace_back([&r] { r->work(); });
  for (std::thread& worker : workers) worker.join();
  launch_now = nullptr;
  thread = nullptr;
  return true;
}

}  // namespace simt
