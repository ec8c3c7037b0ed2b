// The operations that a driver runs: launchers by name, with the size of their params struct.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace simt {

struct Operation {
  const char* name;
  size_t params_bytes;
  size_t (*workspace)(const void* params);
  cudaError_t (*run)(const void* params, void* workspace, cudaStream_t stream);
};

// Ends with a null name. Each driver links its own.
extern const Operation operations[];

}  // namespace simt
