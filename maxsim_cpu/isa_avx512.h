// 16 floats a vector, 32 registers. Included under the target pragma of the file that uses it.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace maxsim {
namespace cpu {
namespace {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  using Mask = __mmask16;
  static constexpr int lanes = 16;
  // 2 panels x 12 rows: 24 accumulators, 2 query words and a broadcast fill 27 of 32 registers; a step of k needs
  // 14 loads for 24 multiply-adds, under the two loads and two multiply-adds a cycle of every AVX-512 core.
  static constexpr int panels = 2;
  static constexpr int rows = 12;

  static F zero() { return _mm512_setzero_ps(); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static I load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_bf16(const uint16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void store(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  static void store_f16(uint16_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static F broadcast(float v) { return _mm512_set1_ps(v); }
  static I broadcast(int32_t v) { return _mm512_set1_epi32(v); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F power_of_two(F n) {
    const __m512i exponent = _mm512_add_epi32(_mm512_castps_si512(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
  }
  static Mask unordered(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
  static Mask greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static Mask either(Mask a, Mask b) { return a | b; }
  static bool any(Mask m) { return m != 0; }
  static F select(Mask m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
  static I select(Mask m, I yes, I no) { return _mm512_mask_blend_epi32(m, no, yes); }
  // A permutation reads the low four bits of an index, and the table repeats every 2 ** kBits entries.
  template <int kBits>
  static F look_up(const float* table, const uint8_t* packed) {
    const I places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    if constexpr (kBits == 8) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed));
      return _mm512_i32gather_ps(_mm512_cvtepu8_epi32(bytes), table, 4);
    } else {
      uint32_t words[2] = {0, 0};
      std::memcpy(words, packed, 2 * kBits);
      I bits = _mm512_set1_epi32(static_cast<int32_t>(words[0]));
      I shifts = _mm512_mullo_epi32(places, _mm512_set1_epi32(kBits));
      if (kBits == 4) {  // eight buckets a word
        bits = _mm512_mask_blend_epi32(0xff00, bits, _mm512_set1_epi32(static_cast<int32_t>(words[1])));
        shifts = _mm512_and_si512(shifts, _mm512_set1_epi32(31));
      }
      return _mm512_permutexvar_ps(_mm512_srlv_epi32(bits, shifts), load(table));
    }
  }
};

}  // namespace
}  // namespace cpu
}  // namespace maxsim
