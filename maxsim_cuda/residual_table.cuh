// Similarities of every centroid with one block of queries, which take the centroids' place where tokens' lengths are
// stored: 64 bytes a token from L2 in place of 256.
#pragma once

#include "ptx/load.cuh"
#include "residual_step.cuh"

namespace maxsim {
namespace cuda {

// Sixteen bits each: those in the middle of a float from 2 to 8, all of which begin with the same byte. So reading one
// takes a byte permutation, and products are added to it as it is. With a similarity of 0 in the middle, and the
// largest possible as far from it as a power of two takes it.
struct SimilarityScale {
  static constexpr float kZero = 5.f, kMost = 2.98f;
  float up = 1.f;

  SimilarityScale() = default;
  __device__ __forceinline__ SimilarityScale(float longest_query, float longest_centroid, float multiplier) {
    const float largest = longest_query * longest_centroid / multiplier;
    up = exp2f(static_cast<float>(largest > 0.f ? -min(100, max(-100, ilogbf(largest))) : 0));
    if (largest * up * 2.f < kMost) up *= 2.f;
  }
  __device__ __forceinline__ uint32_t write(float low, float high) const { return code(low) | code(high) << 16; }
  __device__ __forceinline__ uint32_t code(float similarity) const {
    const float moved = kZero + fminf(fmaxf(similarity * up, -kMost), kMost);
    return (__float_as_uint(moved) + 0x80) >> 8 & 0xffff;
  }
  static __device__ __forceinline__ float low(uint32_t both) {
    return __uint_as_float(__byte_perm(both, 0x40000000u, 0x7104));
  }
  static __device__ __forceinline__ float high(uint32_t both) {
    return __uint_as_float(__byte_perm(both, 0x40000000u, 0x7324));
  }
};

// Buckets of a lane's 32 features, which lie side by side: nothing asks for the order that centroids come in.
template <int kBits>
struct PackedShare {
  uint32_t words[kBits];

  __device__ __forceinline__ void load(const unsigned char* from) {
    if constexpr (kBits == 1) {
      words[0] = __ldg(reinterpret_cast<const uint32_t*>(from));
    } else if constexpr (kBits == 2) {
      const uint2 two = ptx::load_8_now(from);
      words[0] = two.x, words[1] = two.y;
    } else {
#pragma unroll
      for (int i = 0; i < kBits / 4; ++i) {
        const uint4 four = __ldg(reinterpret_cast<const uint4*>(from) + i);
        words[4 * i] = four.x, words[4 * i + 1] = four.y, words[4 * i + 2] = four.z, words[4 * i + 3] = four.w;
      }
    }
  }
};

// The entry of a word's byte in a table that begins at a multiple of its 32 KB: `own` is its address in shared memory
// and the lane's copy, to which a byte's row is added by the same operation that cuts it out.
template <int kBytes>
__device__ __forceinline__ void look_up(uint32_t own, uint32_t word, int byte, uint32_t (&values)[kBytes / 4]) {
  const int shift = 8 * byte;
  const uint32_t at = ((shift >= 7 ? word >> (shift - 7) : word << (7 - shift)) & 0x7f80u) | own;
  if constexpr (kBytes == 4) asm volatile("ld.shared.u32 %0, [%1];" : "=r"(values[0]) : "r"(at));
  if constexpr (kBytes == 8)
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(values[0]), "=r"(values[1]) : "r"(at));
  if constexpr (kBytes == 16)
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(values[0]), "=r"(values[1]), "=r"(values[2]), "=r"(values[3])
                 : "r"(at));
}

// Weights of 16 tokens, as rows of the tensor cores. Few bits have both tokens of a lane in one byte: what is looked up
// are then registers that an operand has side by side, and none has to be moved.
template <int kBits>
__device__ __forceinline__ void weights_of(const PackedShare<kBits> (&packed)[2], uint32_t own,
                                           uint32_t (&rows)[kSteps][4]) {
  if constexpr (kBits <= 2) {
    constexpr uint32_t kLow = 0x0f0f0f0fu;
#pragma unroll
    for (int w = 0; w < kBits; ++w) {
      const uint32_t g = packed[0].words[w], h = packed[1].words[w];
      const uint32_t halves[2] = {(g & kLow) | (h << 4 & ~kLow), (g >> 4 & kLow) | (h & ~kLow)};
#pragma unroll
      for (int b = 0; b < 4; ++b)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if constexpr (kBits == 2) {
            uint32_t two[2];
            look_up<8>(own, halves[i], b, two);
            rows[4 * w + b][2 * i] = two[0], rows[4 * w + b][2 * i + 1] = two[1];
          } else {
            uint32_t four[4];
            look_up<16>(own, halves[i], b, four);
#pragma unroll
            for (int k = 0; k < 4; ++k) rows[2 * b + i][k % 2 * 2 + k / 2] = four[k];
          }
        }
    }
  } else {
#pragma unroll
    for (int pair = 0; pair < kShare / 2; ++pair)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t& row = rows[pair / 2][j + 2 * (pair % 2)];
        uint32_t low[1], high[1];
        if constexpr (kBits == 4) {
          look_up<4>(own, packed[j].words[pair / 4], pair % 4, low);
          row = low[0];
        } else {
          look_up<4>(own, packed[j].words[pair / 2], pair % 2 * 2, low);
          look_up<4>(own, packed[j].words[pair / 2], pair % 2 * 2 + 1, high);
          row = __byte_perm(low[0], high[0], 0x5410);
        }
      }
  }
}

// Products begin with the similarities of a lane's two tokens.
__device__ __forceinline__ void start_products(const uint4 (&similarities)[2], float (&c)[16]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4& four = similarities[half];
    const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      c[4 * n + 2 * half] = SimilarityScale::low(words[n]);
      c[4 * n + 2 * half + 1] = SimilarityScale::high(words[n]);
    }
  }
}

}  // namespace cuda
}  // namespace maxsim
