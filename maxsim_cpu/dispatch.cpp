// Which instruction set a call runs on: the best this machine has for the dtypes, or the one a caller names.
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "isa.h"

namespace maxsim {
namespace cpu {
namespace {

int64_t bit(Path path) { return int64_t{1} << static_cast<int>(path); }

#if defined(__x86_64__)
// clang 14's __builtin_cpu_supports does not know f16c.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

int64_t detect() {
  int64_t found = bit(Path::portable);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
    found |= bit(Path::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
      found |= bit(Path::avx512);
      if (__builtin_cpu_supports("avx512bf16")) found |= bit(Path::avx512_bf16);
    }
  }
#elif defined(__aarch64__)
  found |= bit(Path::neon);
#endif
  return found;
}

const Isa& table(Path path) {
  switch (path) {
#if defined(__x86_64__)
    case Path::avx2:
      return avx2_isa;
    case Path::avx512:
      return avx512_isa;
    case Path::avx512_bf16:
      return avx512_bf16_isa;
#elif defined(__aarch64__)
    case Path::neon:
      return neon_isa;
#endif
    default:
      return portable_isa;
  }
}

}  // namespace

int64_t available_paths() {
  static const int64_t found = detect();
  return found;
}

const Isa& choose_isa(Path path, DType queries, DType documents) {
  // Whatever is stored in eight bits or fewer is a bf16 without rounding, and products of two are exact in fp32.
  const auto fits_bf16 = [](DType type) { return type == DType::bf16 || is_stored(type); };
  const bool both_bf16 = fits_bf16(queries) && fits_bf16(documents);
  if (path == Path::choose) {
    for (Path best : {Path::avx512_bf16, Path::avx512, Path::avx2, Path::neon, Path::portable})
      if ((available_paths() & bit(best)) && (best != Path::avx512_bf16 || both_bf16)) return table(best);
  }
  const int number = static_cast<int>(path);
  if (number < 0 || number > 31 || !(available_paths() & bit(path)))
    throw std::runtime_error("path " + std::to_string(number) + " does not run on this machine's CPU");
  // bf16 pairs exist for what bf16 holds on both sides only; the same machine runs everything else on plain AVX-512.
  if (path == Path::avx512_bf16 && !both_bf16) return table(Path::avx512);
  return table(path);
}

}  // namespace cpu
}  // namespace maxsim
