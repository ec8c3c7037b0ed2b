#include "scheduler.h"

#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "counters.h"

namespace simt {

Launch* launch_now = nullptr;
Resident* resident_now = nullptr;

namespace {

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
  check_waited();
  Resident& r = *resident_now;
  r.current->state = State::exited;
  switch_context(r.current->context, r.scheduler, true);
  abort();
}

// Poisons by hand: TSan would take memset for an access of the kernel's.
void fill(char* begin, size_t bytes, int value) {
  volatile char* p = begin;
  for (size_t i = 0; i < bytes; ++i) p[i] = static_cast<char>(value);
}

void wait_for_turn(Launch& launch, unsigned number) {
  for (int now; (now = launch.turn) != static_cast<int>(number);) launch.turn.wait(now);
  Resident& r = *launch.residents[number];
  resident_now = &r;
  block = &r.view;
}

}  // namespace

Resident::Resident(Launch& launch_, unsigned number_)
    : launch(launch_), number(number_), fibers(count(launch_.threads)) {
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

Resident::~Resident() {
  for (Fiber& fiber : fibers) release_fiber(fiber.context);
  free(dynamic);
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
    fiber.waited = !launch.early;
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

}  // namespace simt
