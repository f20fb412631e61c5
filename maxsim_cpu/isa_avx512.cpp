// AVX-512 for fp32 words: fp32, fp16 and mixed inputs, and bf16 where the CPU has no bf16 dot product.
#if defined(__x86_64__)

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // of GCC 12's own _mm512_undefined_ps (its bug 105593)
#endif
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "isa.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")
#endif

#include "isa_avx512.h"
#include "make_isa.h"

namespace maxsim {
namespace cpu {
const Isa avx512_isa = make_isa<Avx512, Fp32Words<Avx512>>(Path::avx512);
}  // namespace cpu
}  // namespace maxsim

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
