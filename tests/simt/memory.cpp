#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "runtime.h"

#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace simt {
namespace {

constexpr size_t alignment = 256;
constexpr unsigned char untouched = 0xFF;
#ifdef SIMT_ASAN
constexpr size_t guard = 0;  // the red zone begins right after the last byte
#else
constexpr size_t guard = 256;
#endif

std::vector<Buffer*> live;

}  // namespace

const std::vector<Buffer*>& buffers() { return live; }

Buffer::Buffer(std::string name, size_t bytes, size_t offset) : name_(std::move(name)), bytes_(bytes) {
  const size_t lead = guard + offset;
  allocated_ = lead + bytes + guard;
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, allocated_) != 0) abort();
  memory_ = static_cast<char*>(memory);
  data_ = memory_ + lead;
  memset(memory_, untouched, allocated_);
#ifdef SIMT_ASAN
  ASAN_POISON_MEMORY_REGION(memory_, lead);
#endif
  live.push_back(this);
}

Buffer::~Buffer() {
#ifdef SIMT_ASAN
  ASAN_UNPOISON_MEMORY_REGION(memory_, allocated_);
#endif
  free(memory_);
  live.erase(std::find(live.begin(), live.end(), this));
}

void Buffer::check_guards() const {
#ifndef SIMT_ASAN
  for (const char* p = memory_; p < memory_ + allocated_; ++p) {
    if (p == data_) p += bytes_;
    if (p == memory_ + allocated_) break;
    if (static_cast<unsigned char>(*p) != untouched) {
      complain("a write outside %s: at byte %td of %zu", name_.c_str(), p - data_, bytes_);
      return;
    }
  }
#endif
}

}  // namespace simt
