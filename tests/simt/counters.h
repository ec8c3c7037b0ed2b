// What the counter build measures: the memory requests of every warp. In the other builds nothing is counted.
//
// Each access arrives with its address, size and call site. The n-th access that the lanes of one warp make at one site
// is one request, as a warp would make it. A global request costs the 32-byte sectors that it touches; a shared one the
// wavefronts that its banks need.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdio>

namespace simt {

#ifdef SIMT_COUNT
enum class Access : unsigned char { load, store, atomic };
void count_access(Access access, const void* address, size_t size, const void* site);
void count_launch(const void* kernel, dim3 grid, dim3 threads, size_t dynamic_shared);
void count_block(size_t threads);
void print_counts(FILE* out);  // JSON
#else
inline void count_launch(const void*, dim3, dim3, size_t) {}
inline void count_block(size_t) {}
inline void print_counts(FILE* out) { fputs("{}", out); }
#endif

}  // namespace simt
