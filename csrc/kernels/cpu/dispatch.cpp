// Picks the kernels for the processor that runs, once. ENTMASK_CPU=baseline|avx2|avx512 in the environment asks for
// less than the processor has (to test and to compare); asking for more, or for what is not built, keeps the best there
// is.
#include <cstdlib>
#include <cstring>

#include "cpu.h"

namespace entmask::cpu {
namespace {

const Kernels& choose() {
#ifdef ENTMASK_HAVE_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const char* asked = std::getenv("ENTMASK_CPU");
  if (avx512 && !(asked && (!std::strcmp(asked, "avx2") || !std::strcmp(asked, "baseline")))) return avx512::table;
  if (avx2 && !(asked && !std::strcmp(asked, "baseline"))) return avx2::table;
#endif
  return baseline::table;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace entmask::cpu
