// AVX-512 with bf16 dot products: two features a multiply-add, fp32 accumulation, bf16 rows read in place.
#if defined(__x86_64__)

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // of GCC 12's own _mm512_undefined_ps (its bug 105593)
#endif
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "isa.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c")
#endif

#include "isa_avx512.h"
#include "make_isa.h"

namespace maxsim {
namespace cpu {
namespace {

struct Bf16Pairs {
  using Word = __m512i;
  static constexpr bool bf16_pairs = true;
  static Word load(const uint32_t* panel) { return _mm512_loadu_si512(panel); }
  static Word broadcast(const char* word) {
    int32_t pair;
    std::memcpy(&pair, word, 4);
    return _mm512_set1_epi32(pair);
  }
  static __m512 multiply_add(Word q, Word d, __m512 sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(q), reinterpret_cast<__m512bh>(d));
  }
};

}  // namespace

const Isa avx512_bf16_isa = make_isa<Avx512, Bf16Pairs>(Path::avx512_bf16);
}  // namespace cpu
}  // namespace maxsim

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
