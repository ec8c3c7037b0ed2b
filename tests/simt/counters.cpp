// The counter build. Its kernels are compiled with -fsanitize=thread, which calls a hook at every load and store; the
// hooks here record the access instead of looking for races.
#include "counters.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "memory.h"
#include "runtime.h"
#include "scheduler.h"

namespace simt {
namespace {

constexpr unsigned banks = 32, bank_bytes = 4;
constexpr uintptr_t sector_bytes = 32;

struct Record {
  uintptr_t site, address;
  uint32_t size;
  Access access;
};

// One access of one lane, as part of the `occurrence`-th request of the site to the buffer. A request whose lanes read
// several buffers counts as one to each.
struct LaneAccess {
  uintptr_t site;
  uint32_t occurrence;
  const Buffer* buffer;  // nullptr: shared memory, or parameters and constants
  uint32_t lane;
  Record record;
};

struct SiteCounts {
  Access access;
  bool shared;
  std::string buffer;
  uint64_t requests = 0, lanes = 0, bytes = 0;
  uint64_t sectors = 0, least_sectors = 0;
  uint64_t wavefronts = 0, least_wavefronts = 0;
};

struct Traffic {
  std::vector<bool> read, written;  // sectors of the buffer
};

struct LaunchCounts {
  const void* kernel;
  dim3 grid, threads;
  size_t dynamic_shared;
  std::map<std::pair<uintptr_t, const Buffer*>, SiteCounts> sites;
  std::map<std::string, Traffic> buffers;
};

std::vector<LaunchCounts> launches;
std::vector<Record> records[1024];  // of the threads of the block that runs

bool in(const Range& range, uintptr_t address) {
  const auto begin = reinterpret_cast<uintptr_t>(range.begin);
  return address >= begin && address < begin + range.bytes;
}

const Buffer* buffer_of(uintptr_t address) {
  for (const Buffer* b : buffers())
    if (in({b->data(), b->bytes()}, address)) return b;
  return nullptr;
}

// Distinct values of a container.
template <typename T>
size_t distinct(std::vector<T>& values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values.size();
}

void count_global(SiteCounts& counts, Traffic& traffic, const Buffer& buffer, const LaneAccess* begin,
                  const LaneAccess* end) {
  const auto base = reinterpret_cast<uintptr_t>(buffer.data()) & ~(sector_bytes - 1);
  std::vector<std::pair<uintptr_t, uint32_t>> pieces;
  std::vector<uintptr_t> sectors;
  for (const LaneAccess* a = begin; a != end; ++a) {
    pieces.emplace_back(a->record.address, a->record.size);
    const uintptr_t last = (a->record.address + a->record.size - 1 - base) / sector_bytes;
    for (uintptr_t s = (a->record.address - base) / sector_bytes; s <= last; ++s) sectors.push_back(s);
  }
  distinct(pieces);
  uint64_t bytes = 0;
  for (const auto& piece : pieces) bytes += piece.second;
  counts.bytes += bytes;
  counts.sectors += distinct(sectors);
  counts.least_sectors += (bytes + sector_bytes - 1) / sector_bytes;
  auto mark = [&](std::vector<bool>& touched) {
    touched.resize(buffer.bytes() / sector_bytes + 2);
    for (uintptr_t s : sectors) touched[s] = true;
  };
  if (counts.access != Access::store) mark(traffic.read);
  if (counts.access != Access::load) mark(traffic.written);
}

// Lanes are served together as long as they ask for at most 128 bytes: 32, 16 or 8 of them. Those need as many
// wavefronts as the busiest bank has different words.
void count_shared(SiteCounts& counts, const LaneAccess* begin, const LaneAccess* end) {
  const uint32_t size = begin->record.size, together = warp_size * bank_bytes / std::max(size, bank_bytes);
  for (uint32_t first = 0; first < warp_size; first += together) {
    std::vector<uintptr_t> words;
    for (const LaneAccess* a = begin; a != end; ++a)
      if (a->lane >= first && a->lane < first + together)
        for (uintptr_t w = a->record.address / bank_bytes; w <= (a->record.address + size - 1) / bank_bytes; ++w)
          words.push_back(w);
    if (words.empty()) continue;
    distinct(words);
    uint64_t busy[banks] = {};
    for (uintptr_t w : words) ++busy[w % banks];
    counts.wavefronts += *std::max_element(busy, busy + banks);
    counts.least_wavefronts += 1;
  }
}

void count_request(LaunchCounts& launch, const LaneAccess* begin, const LaneAccess* end) {
  const Record& first = begin->record;
  const bool shared = in(static_shared(), first.address) || in(dynamic_shared(), first.address);
  const Buffer* buffer = begin->buffer;
  if (!shared && !buffer) return;  // parameters and constants: the constant cache
  SiteCounts& counts = launch.sites[{first.site, buffer}];
  counts.access = first.access;
  counts.shared = shared;
  counts.requests += 1;
  counts.lanes += static_cast<uint64_t>(end - begin);
  if (shared) {
    count_shared(counts, begin, end);
  } else {
    counts.buffer = buffer->name();
    count_global(counts, launch.buffers[buffer->name()], *buffer, begin, end);
  }
}

const char* name(Access access) {
  return access == Access::load ? "load" : access == Access::store ? "store" : "atomic";
}

uint64_t touched_bytes(const std::vector<bool>& sectors) {
  return static_cast<uint64_t>(std::count(sectors.begin(), sectors.end(), true)) * sector_bytes;
}

}  // namespace

void count_access(Access access, const void* address, size_t size, const void* site) {
  if (!thread || on_fiber_stack(address)) return;
  if (!resident_now->current->waited && buffer_of(reinterpret_cast<uintptr_t>(address))) check_waited();
  records[thread->linear].push_back(
      {reinterpret_cast<uintptr_t>(site), reinterpret_cast<uintptr_t>(address), static_cast<uint32_t>(size), access});
}

void count_launch(const void* kernel, dim3 grid, dim3 threads, size_t dynamic_shared) {
  launches.push_back({kernel, grid, threads, dynamic_shared, {}, {}});
}

void count_block(size_t threads) {
  std::vector<LaneAccess> accesses;
  for (size_t first = 0; first < threads; first += warp_size) {
    accesses.clear();
    for (uint32_t lane = 0; lane < warp_size && first + lane < threads; ++lane) {
      std::vector<Record>& own = records[first + lane];
      std::stable_sort(own.begin(), own.end(), [](const Record& a, const Record& b) { return a.site < b.site; });
      uint32_t occurrence = 0;
      for (size_t i = 0; i < own.size(); ++i) {
        occurrence = i > 0 && own[i].site == own[i - 1].site ? occurrence + 1 : 0;
        accesses.push_back({own[i].site, occurrence, buffer_of(own[i].address), lane, own[i]});
      }
      own.clear();
    }
    auto key = [](const LaneAccess& a) { return std::tie(a.site, a.occurrence, a.buffer); };
    std::stable_sort(accesses.begin(), accesses.end(),
                     [&](const LaneAccess& a, const LaneAccess& b) { return key(a) < key(b); });
    for (size_t begin = 0, end; begin < accesses.size(); begin = end) {
      for (end = begin + 1; end < accesses.size() && key(accesses[end]) == key(accesses[begin]);) ++end;
      count_request(launches.back(), &accesses[begin], &accesses[begin] + (end - begin));
    }
  }
}

void print_counts(FILE* out) {
  fputs("{\"launches\": [", out);
  const char* next_launch = "";
  for (const LaunchCounts& l : launches) {
    fprintf(out, "%s{\"kernel\": %zu, \"grid\": [%u, %u, %u], \"threads\": [%u, %u, %u], \"dynamic_shared\": %zu",
            next_launch, reinterpret_cast<size_t>(l.kernel), l.grid.x, l.grid.y, l.grid.z, l.threads.x, l.threads.y,
            l.threads.z, l.dynamic_shared);
    fputs(", \"buffers\": {", out);
    const char* next = "";
    for (const auto& [buffer, traffic] : l.buffers) {
      fprintf(out, "%s\"%s\": {\"read\": %zu, \"written\": %zu}", next, buffer.c_str(),
              size_t{touched_bytes(traffic.read)}, size_t{touched_bytes(traffic.written)});
      next = ", ";
    }
    fputs("}, \"sites\": [", out);
    next = "";
    for (const auto& [at, c] : l.sites) {
      fprintf(
          out,
          "%s{\"site\": %zu, \"access\": \"%s\", \"shared\": %s, \"buffer\": \"%s\", \"requests\": %zu, \"lanes\": "
          "%zu, "
          "\"bytes\": %zu, \"sectors\": %zu, \"least_sectors\": %zu, \"wavefronts\": %zu, \"least_wavefronts\": %zu}",
          next, size_t{at.first}, name(c.access), c.shared ? "true" : "false", c.buffer.c_str(), size_t{c.requests},
          size_t{c.lanes}, size_t{c.bytes}, size_t{c.sectors}, size_t{c.least_sectors}, size_t{c.wavefronts},
          size_t{c.least_wavefronts});
      next = ", ";
    }
    fputs("]}", out);
    next_launch = ", ";
  }
  fputs("]}", out);
}

}  // namespace simt

// ---- What -fsanitize=thread calls

#define SIMT_HOOK(size)                                                            \
  void __tsan_read##size(const void* p) {                                          \
    simt::count_access(simt::Access::load, p, size, __builtin_return_address(0));  \
  }                                                                                \
  void __tsan_write##size(const void* p) {                                         \
    simt::count_access(simt::Access::store, p, size, __builtin_return_address(0)); \
  }                                                                                \
  void __tsan_unaligned_read##size(const void* p) {                                \
    simt::count_access(simt::Access::load, p, size, __builtin_return_address(0));  \
  }                                                                                \
  void __tsan_unaligned_write##size(const void* p) {                               \
    simt::count_access(simt::Access::store, p, size, __builtin_return_address(0)); \
  }

extern "C" {
SIMT_HOOK(1)
SIMT_HOOK(2)
SIMT_HOOK(4)
SIMT_HOOK(8)
SIMT_HOOK(16)
void __tsan_read_range(const void* p, size_t size) {
  simt::count_access(simt::Access::load, p, size, __builtin_return_address(0));
}
void __tsan_write_range(const void* p, size_t size) {
  simt::count_access(simt::Access::store, p, size, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
}
