// AVX2 with FMA and F16C: 8 floats a vector, every dtype widened to fp32.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "isa.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "make_isa.h"

namespace maxsim {
namespace cpu {
namespace {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  using Mask = __m256;
  static constexpr int lanes = 8;
  // 2 panels x 6 rows: 12 accumulators, 2 query words and a broadcast fill 15 of 16 registers.
  static constexpr int panels = 2;
  static constexpr int rows = 6;

  static F zero() { return _mm256_setzero_ps(); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static I load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static F load_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static F load_bf16(const uint16_t* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static void store(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static void store_f16(uint16_t* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static F broadcast(float v) { return _mm256_set1_ps(v); }
  static I broadcast(int32_t v) { return _mm256_set1_epi32(v); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F power_of_two(F n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_castps_si256(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static Mask unordered(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_UNORD_Q); }
  static Mask greater(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  static Mask either(Mask a, Mask b) { return _mm256_or_ps(a, b); }
  static bool any(Mask m) { return _mm256_movemask_ps(m) != 0; }
  static F select(Mask m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }
  static I select(Mask m, I yes, I no) {
    return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(no), _mm256_castsi256_ps(yes), m));
  }
  // A permutation reads the low three bits of an index, and the table repeats every 2 ** kBits entries.
  template <int kBits>
  static F look_up(const float* table, const uint8_t* packed) {
    if constexpr (kBits == 8) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed));
      return _mm256_i32gather_ps(table, _mm256_cvtepu8_epi32(bytes), 4);
    } else {
      uint32_t word = 0;
      std::memcpy(&word, packed, kBits);
      const I places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
      const I bits = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int32_t>(word)),
                                       _mm256_mullo_epi32(places, _mm256_set1_epi32(kBits)));
      const F low = _mm256_permutevar8x32_ps(load(table), bits);
      if (kBits < 4) return low;
      const F upper = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 28));  // the sign says which half of the table
      return _mm256_blendv_ps(low, _mm256_permutevar8x32_ps(load(table + 8), bits), upper);
    }
  }
};

}  // namespace

const Isa avx2_isa = make_isa<Avx2, Fp32Words<Avx2>>(Path::avx2);
}  // namespace cpu
}  // namespace maxsim

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
