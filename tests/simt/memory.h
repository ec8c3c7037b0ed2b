// The device memory of a case: buffers between guards, so that a stray write shows in every build.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace simt {

class Buffer {
 public:
  // `offset`: bytes by which the address misses a multiple of 256. Filled with 0xFF (NaN, -1, an impossible bool).
  Buffer(std::string name, size_t bytes, size_t offset);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  const std::string& name() const { return name_; }

  // Complains about bytes around the buffer that have changed.
  void check_guards() const;

 private:
  std::string name_;
  size_t bytes_;
  char* memory_;
  char* data_;
  size_t allocated_;
};

// All that live.
const std::vector<Buffer*>& buffers();

}  // namespace simt
