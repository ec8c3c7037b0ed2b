// The scheduler. Every resident block has an OS thread of its own, because __shared__ variables are thread-local there,
// and a fiber a CUDA thread. One fiber of one block runs at a time, handed on like a baton, so that a seed gives one
// schedule.
#include "runtime.h"

#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "counters.h"
#include "fiber.h"

#ifdef SIMT_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_ignore_thread_begin();
extern "C" void __tsan_ignore_thread_end();
#endif

namespace simt {

const Thread* thread = nullptr;
const Block* block = nullptr;
Settings settings;
int complaints = 0;

namespace {

constexpr unsigned warp_size = 32;
constexpr unsigned max_threads = 1024;
constexpr size_t default_shared = 48 << 10;
constexpr int shared_guard = 64;  // bytes after dynamic shared memory that must stay as they are
#if defined(SIMT_ASAN) || defined(SIMT_COUNT)
constexpr size_t resident_blocks = 1;  // __shared__ is plain static there; and the records are one block's here
#elif defined(SIMT_TSAN)
constexpr size_t resident_blocks = 2;  // its fibers are dear
#else
constexpr size_t resident_blocks = 3;
#endif
constexpr int poison = 0xFF;  // NaN, -1, an impossible bool

enum class State : uint8_t { ready, at_barrier, at_warp_operation, exited };

struct Fiber {
  Thread id;
  State state;
  WarpOperation operation;
  uint32_t mask;    // of the warp operation
  unsigned source;  // lane
  uint64_t value;   // handed in, then handed out
  Site site;
  Context context;
#ifdef SIMT_TSAN
  char fenced;  // 1 after a fence; its address is what the fence releases
  std::vector<char*>
      observed;  // the fences published by atomics that this thread's atomics followed, since its last fence
#endif
};

// xorshift: the schedule must not depend on a library.
struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9E3779B97F4A7C15ull + 1) {
    for (int i = 0; i < 8; ++i) below(2);
  }
  unsigned below(unsigned bound) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<unsigned>((state >> 11) % bound);
  }
};

struct Resident;

struct Launch {
  dim3 grid, threads;
  size_t dynamic_shared;
  const std::function<void()>& body;
  Random random;
  std::vector<uint64_t> blocks;  // in the order in which they start
  size_t next_block;
  std::vector<std::unique_ptr<Resident>> residents;
  std::atomic<int> turn;  // which resident holds the baton
#ifdef SIMT_TSAN
  std::map<const void*, std::vector<char*>> publishers{};  // of each atomic variable
#endif

  void hand_over(unsigned from);
};

Launch* launch_now = nullptr;
Resident* resident_now = nullptr;

struct Resident {
  Launch& launch;
  unsigned number;
  bool finished = false;
  Block view{};
  std::vector<Fiber> fibers;
  Fiber* current = nullptr;
  Context scheduler;
  char* dynamic = nullptr;
  Range fixed{};
#ifdef SIMT_TSAN
  std::vector<char*> observed;   // by any thread of the block before its last barrier
  std::deque<char> fences;       // what the block's fences between two barriers release
  std::vector<char*> published;  // those before the last barrier
  bool fences_since_barrier = false;
#endif
  char block_sync = 0;                           // what TSan sees of barriers
  char warp_sync[max_threads / warp_size] = {};  // and of __syncwarp

  Resident(Launch& launch_, unsigned number_) : launch(launch_), number(number_), fibers(count(launch_.threads)) {
    for (unsigned i = 0; i < fibers.size(); ++i) {
      const dim3& t = launch.threads;
      fibers[i].id = {{i % t.x, i / t.x % t.y, i / (t.x * t.y)}, i};
      create_fiber(fibers[i].context);
    }
    // Under ASan the exact size, so that the byte after it is known to be outside.
#ifdef SIMT_ASAN
    const size_t bytes = launch.dynamic_shared;
#else
    const size_t bytes = launch.dynamic_shared + shared_guard;
#endif
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, bytes) != 0) abort();
    dynamic = static_cast<char*>(memory);
  }
  ~Resident() {
    for (Fiber& fiber : fibers) release_fiber(fiber.context);
    free(dynamic);
  }
  static size_t count(const dim3& d) { return size_t{d.x} * d.y * d.z; }

  void work();
  void let_others_run();
  bool start_block();
  void run_block();
  void pass();
  bool settle_barrier();
  bool settle_warp(unsigned warp);
  void resume(Fiber& fiber);
  void pause();
  void order_all(bool begin);
  void shuffle(std::vector<unsigned>& order);
  [[noreturn]] void deadlock();
};

Range thread_local_block() {
#ifdef SIMT_ASAN
  return {nullptr, 0};  // there, __shared__ is plain static: arrays get red zones
#else
  Range range{nullptr, 0};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        for (int i = 0; i < info->dlpi_phnum; ++i)
          if (info->dlpi_phdr[i].p_type == PT_TLS)
            *static_cast<Range*>(out) = {static_cast<char*>(info->dlpi_tls_data), info->dlpi_phdr[i].p_memsz};
        return 1;  // the executable comes first, and only it holds kernels
      },
      &range);
  return range;
#endif
}

void entry() {
  enter_fiber();
  launch_now->body();
  Resident& r = *resident_now;
  r.current->state = State::exited;
  switch_context(r.current->context, r.scheduler, true);
  abort();
}

#ifdef SIMT_TSAN
// The scheduler's own memory, from malloc to free, is none of TSan's business; what runs here runs one at a time.
struct Unseen {
  Unseen() { __tsan_ignore_thread_begin(); }
  ~Unseen() { __tsan_ignore_thread_end(); }
};
#endif

// Poisons by hand: TSan would take memset for an access of the kernel's.
void fill(char* begin, size_t bytes, int value) {
  volatile char* p = begin;
  for (size_t i = 0; i < bytes; ++i) p[i] = static_cast<char>(value);
}

void Launch::hand_over(unsigned from) {
  unsigned to = from;
  if (settings.order == Order::random) {
    std::vector<unsigned> alive;
    for (auto& r : residents)
      if (!r->finished) alive.push_back(r->number);
    if (alive.empty()) return;
    to = alive[random.below(static_cast<unsigned>(alive.size()))];
  } else {
    for (unsigned i = 1; i <= residents.size(); ++i) {
      to = (from + i) % residents.size();
      if (!residents[to]->finished) break;
    }
  }
  if (to == from) return;
  turn = static_cast<int>(to);
  turn.notify_all();
}

void wait_for_turn(Launch& launch, unsigned number) {
  for (int now; (now = launch.turn) != static_cast<int>(number);) launch.turn.wait(now);
  Resident& r = *launch.residents[number];
  resident_now = &r;
  block = &r.view;
}

void Resident::work() {
  adopt_thread(scheduler);
  fixed = thread_local_block();
  wait_for_turn(launch, number);
  while (start_block()) {
    run_block();
    let_others_run();
  }
  finished = true;
  launch.hand_over(number);
}

void Resident::let_others_run() {
  if (settings.order == Order::random && launch.random.below(4) != 0) return;
  launch.hand_over(number);
  wait_for_turn(launch, number);
}

bool Resident::start_block() {
  if (launch.next_block == launch.blocks.size()) return false;
  const uint64_t i = launch.blocks[launch.next_block++];
  const dim3& g = launch.grid;
  view = {{static_cast<unsigned>(i % g.x), static_cast<unsigned>(i / g.x % g.y), static_cast<unsigned>(i / g.x / g.y)},
          launch.threads,
          g,
          dynamic};
#ifdef SIMT_TSAN
  observed.clear();
  published.clear();
  fences_since_barrier = false;
#endif
  fill(fixed.begin, fixed.bytes, poison);
  fill(dynamic, launch.dynamic_shared, poison);
#ifndef SIMT_ASAN
  fill(dynamic + launch.dynamic_shared, shared_guard, poison);
#endif
  for (Fiber& fiber : fibers) {
    fiber.state = State::ready;
#ifdef SIMT_TSAN
    fiber.fenced = 0;
    fiber.observed.clear();
#endif
    prepare_fiber(fiber.context, entry);
  }
  return true;
}

void Resident::run_block() {
  order_all(true);
  for (;;) {
    pass();
    if (!settle_barrier()) break;
    let_others_run();
  }
  order_all(false);
  count_block(fibers.size());
#ifndef SIMT_ASAN
  for (int i = 0; i < shared_guard; ++i)
    if (static_cast<unsigned char>(dynamic[launch.dynamic_shared + i]) != poison) {
      complain("block (%u,%u,%u) wrote %d bytes beyond its %zu bytes of dynamic shared memory", view.index.x,
               view.index.y, view.index.z, i + 1, launch.dynamic_shared);
      break;
    }
#endif
}

// Runs every warp as far as it gets; in random order, a little way each.
void Resident::pass() {
  const bool random = settings.order == Order::random;
  const auto n = static_cast<unsigned>(fibers.size());
  std::vector<unsigned> warps((n + warp_size - 1) / warp_size);
  shuffle(warps);
  for (unsigned warp : warps) {
    const unsigned first = warp * warp_size;
    for (bool progress = true; progress;) {
      progress = false;
      std::vector<unsigned> lanes(std::min(warp_size, n - first));
      shuffle(lanes);
      for (unsigned lane : lanes)
        if (fibers[first + lane].state == State::ready) {
          resume(fibers[first + lane]);
          progress = true;
        }
      progress |= settle_warp(warp);
      if (random && launch.random.below(2)) break;
    }
  }
}

// Fills `order` with 0, 1, .. as the schedule wants them.
void Resident::shuffle(std::vector<unsigned>& order) {
  std::iota(order.begin(), order.end(), 0u);
  if (settings.order == Order::reverse) std::reverse(order.begin(), order.end());
  if (settings.order == Order::random)
    for (auto i = static_cast<unsigned>(order.size()); i > 1; --i)
      std::swap(order[i - 1], order[launch.random.below(i)]);
}

void Resident::resume(Fiber& fiber) {
  current = &fiber;
  thread = &fiber.id;
  switch_context(scheduler, fiber.context);
}

void Resident::pause() { switch_context(current->context, scheduler); }

// Opens the barrier once every thread is there. False: all have exited.
bool Resident::settle_barrier() {
  const Fiber* first = nullptr;
  unsigned ready = 0, waiting = 0, exited = 0, yes = 0;
  bool one_site = true;
  for (const Fiber& fiber : fibers) {
    ready += fiber.state == State::ready;
    exited += fiber.state == State::exited;
    if (fiber.state != State::at_barrier) continue;
    ++waiting;
    yes += fiber.value != 0;
    if (!first) first = &fiber;
    one_site &= fiber.site.id == first->site.id && fiber.site.line == first->site.line;
  }
  if (exited == fibers.size()) return false;
  if (ready) return true;
  if (waiting + exited < fibers.size()) {
    // Random passes end early: a warp operation may be ready to go.
    bool progress = false;
    for (unsigned warp = 0; warp * warp_size < fibers.size(); ++warp) progress |= settle_warp(warp);
    if (!progress) deadlock();
    return true;
  }
  if (!one_site)
    complain("%s:%d: block (%u,%u,%u): threads wait at different barriers", first->site.file, first->site.line,
             view.index.x, view.index.y, view.index.z);
  if (exited)
    complain("%s:%d: block (%u,%u,%u): barrier after %u of %zu threads have exited", first->site.file, first->site.line,
             view.index.x, view.index.y, view.index.z, exited, fibers.size());
#ifdef SIMT_TSAN
  const Unseen unseen;
  if (fences_since_barrier) published.push_back(&fences.back());
  fences_since_barrier = false;
#endif
  for (Fiber& fiber : fibers)
    if (fiber.state == State::at_barrier) {
#ifdef SIMT_TSAN
      observed.insert(observed.end(), fiber.observed.begin(), fiber.observed.end());
      fiber.observed.clear();
#endif
      fiber.value = uint64_t{waiting} << 32 | yes;
      fiber.state = State::ready;
    }
  return true;
}

// Lets go every group of lanes that is complete: all live lanes of the mask wait, with the same operation and mask.
bool Resident::settle_warp(unsigned warp) {
  Fiber* lanes = &fibers[warp * warp_size];
  const auto count = std::min<unsigned>(warp_size, static_cast<unsigned>(fibers.size()) - warp * warp_size);
  bool any = false;
  for (unsigned leader = 0; leader < count; ++leader) {
    const Fiber& lead = lanes[leader];
    if (lead.state != State::at_warp_operation) continue;
    uint32_t live = 0;
    bool complete = true, one_line = true;
    for (unsigned lane = 0; lane < count; ++lane) {
      const Fiber& other = lanes[lane];
      if (!(lead.mask >> lane & 1) || other.state == State::exited) continue;
      complete &=
          other.state == State::at_warp_operation && other.operation == lead.operation && other.mask == lead.mask;
      one_line &= other.site.line == lead.site.line;
      live |= 1u << lane;
    }
    live |= 1u << leader;  // a lane outside its own mask has been reported: go on without it
    if (!complete) continue;
    if (!one_line) complain("%s:%d: lanes of one warp meet here and at another line", lead.site.file, lead.site.line);
    const WarpOperation operation = lead.operation;
    uint64_t values[warp_size] = {};
    uint32_t ballot = 0;
    for (unsigned lane = 0; lane < count; ++lane)
      if (live >> lane & 1) {
        values[lane] = lanes[lane].value;
        ballot |= uint32_t{values[lane] != 0} << lane;
      }
    for (unsigned lane = 0; lane < count; ++lane) {
      if (!(live >> lane & 1)) continue;
      Fiber& fiber = lanes[lane];
      fiber.state = State::ready;
      if (operation == WarpOperation::vote) fiber.value = uint64_t{live} << 32 | ballot;
      if (operation == WarpOperation::match) {
        uint32_t equal = 0;
        for (unsigned other = 0; other < count; ++other)
          equal |= uint32_t{(live >> other & 1) && values[other] == values[lane]} << other;
        fiber.value = equal;
      }
      if (operation == WarpOperation::shuffle) {
        if (live >> fiber.source & 1) {
          fiber.value = values[fiber.source];
        } else {
          fiber.value = ~0ull;
          complain("%s:%d: lane %u reads lane %u, which has exited or is not in the mask %08x", fiber.site.file,
                   fiber.site.line, lane, fiber.source, fiber.mask);
        }
      }
    }
    any = true;
  }
  return any;
}

void Resident::deadlock() {
  fprintf(stderr, "simt: deadlock in block (%u,%u,%u):\n", view.index.x, view.index.y, view.index.z);
  int shown = 0;
  for (const Fiber& fiber : fibers)
    if (fiber.state != State::exited && ++shown <= 8)
      fprintf(stderr, "  thread %u waits at %s:%d, mask %08x\n", fiber.id.linear, fiber.site.file, fiber.site.line,
              fiber.mask);
  fflush(stderr);
  _exit(1);
}

// TSan: a block's shared memory is new to it, so its threads come after those of the block before on the same OS
// thread.
void Resident::order_all([[maybe_unused]] bool begin) {
#ifdef SIMT_TSAN
  if (begin) __tsan_release(&block_sync);
  for (Fiber& fiber : fibers) {
    __tsan_switch_to_fiber(fiber.context.tsan_fiber, __tsan_switch_to_fiber_no_sync);
    begin ? __tsan_acquire(&block_sync) : __tsan_release(&block_sync);
    __tsan_switch_to_fiber(scheduler.tsan_fiber, __tsan_switch_to_fiber_no_sync);
  }
  if (!begin) __tsan_acquire(&block_sync);
#endif
}

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
  if (reinterpret_cast<uintptr_t>(address) % size != 0)
    complain("%s:%d: misaligned access of %zu bytes at an address that is %zu modulo %zu", site.file, site.line, size,
             reinterpret_cast<uintptr_t>(address) % size, size);
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

bool run_grid(const void* kernel, dim3 grid, dim3 threads, size_t dynamic_shared, const void* stream,
              const std::function<void()>& body) {
  if (!valid_launch(kernel, grid, threads, dynamic_shared, stream)) return false;
  count_launch(kernel, grid, threads, dynamic_shared);
  Launch launch{grid, threads, dynamic_shared, body, Random(settings.seed), {}, 0, {}, {0}};
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
