// Picks the kernels for the processor that runs, once. ENTMASK_CPU=baseline|avx2|avx512 in the environment asks for
// less than the processor has (to test and to compare); asking for more, or for what is not built, keeps the best there
// is. Any other name is an error, and an empty one is none.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu.h"

namespace entmask::cpu {
namespace {

const Kernels& choose() {
  const char* given = std::getenv("ENTMASK_CPU");
  const std::string asked = given && *given ? given : "avx512";
  if (asked != "baseline" && asked != "avx2" && asked != "avx512")
    throw std::invalid_argument("ENTMASK_CPU must be baseline, avx2 or avx512, got '" + asked + "'");
#ifdef ENTMASK_HAVE_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && asked == "avx512") return avx512::table;
  if (avx2 && asked != "baseline") return avx2::table;
#endif
  return baseline::table;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace entmask::cpu
