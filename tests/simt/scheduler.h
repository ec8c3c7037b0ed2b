// The scheduler. Every resident block has an OS thread of its own, because __shared__ variables are thread-local there,
// and a fiber a CUDA thread. One fiber of one block runs at a time, handed on like a baton, so that a seed gives one
// schedule.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "fiber.h"
#include "runtime.h"

#ifdef SIMT_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_ignore_thread_begin();
extern "C" void __tsan_ignore_thread_end();
#endif

namespace simt {

constexpr unsigned warp_size = 32;
constexpr unsigned max_threads = 1024;
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
  bool waited;  // for the launch before
  WarpOperation operation;
  uint32_t mask;    // of the warp operation
  unsigned source;  // lane
  uint64_t value;   // handed in, then handed out
  Site site;
  Context context;
#ifdef SIMT_TSAN
  char fenced;                  // 1 after a fence; its address is what the fence releases
  std::vector<char*> observed;  // fences published by atomics that its own followed, since its last fence
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
  bool early;  // it may start before the launch before it has ended
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

extern Launch* launch_now;
extern Resident* resident_now;  // that holds the baton

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

  Resident(Launch& launch_, unsigned number_);
  ~Resident();
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

#ifdef SIMT_TSAN
// The scheduler's own memory, from malloc to free, is none of TSan's business; what runs here runs one at a time.
struct Unseen {
  Unseen() { __tsan_ignore_thread_begin(); }
  ~Unseen() { __tsan_ignore_thread_end(); }
};
#endif

}  // namespace simt
