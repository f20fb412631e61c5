// Similarities of every centroid with one block of queries, which take the centroids' place where tokens' lengths are
// stored: 64 bytes a token from L2 in place of 256.
#pragma once

#include "residual_step.cuh"

namespace maxsim {
namespace cuda {

// Sixteen bits each, of a fixed point that holds the largest possible: eight times as exact as halves of that range.
// The step is a power of two, so that reading one is a multiply-add without a rounding.
struct SimilarityScale {
  float step, up;

  __device__ __forceinline__ SimilarityScale(float longest_query, float longest_centroid, float multiplier) {
    const float largest = longest_query * longest_centroid / multiplier;
    step = exp2f(static_cast<float>(largest > 0.f ? min(100, max(-100, ilogbf(largest))) + 1 - 15 : -100));
    up = 1.f / step;
  }
  __device__ __forceinline__ uint32_t write(float low, float high) const { return code(low) | code(high) << 16; }
  __device__ __forceinline__ uint32_t code(float value) const {
    return static_cast<uint32_t>(max(-32768, min(32767, __float2int_rn(value * up))) + 32768);
  }
  // 2^23 + code, by the bits; less what was added to it.
  __device__ __forceinline__ float low(uint32_t both) const { return read(__byte_perm(both, 0x4b000000u, 0x7610)); }
  __device__ __forceinline__ float high(uint32_t both) const { return read(__byte_perm(both, 0x4b000000u, 0x7632)); }
  __device__ __forceinline__ float read(uint32_t bits) const {
    return fmaf(__uint_as_float(bits), step, -(8388608.f + 32768.f) * step);
  }
};

// Buckets of a lane's 32 features, which lie side by side: nothing asks for the order that centroids come in.
template <int kBits>
struct PackedShare {
  uint32_t words[kBits];

  __device__ __forceinline__ void load(const ResidualArgs& args, int64_t row) {
    const unsigned char* from = args.index.bytes + (row * 4 + threadIdx.x % 4) * (4 * kBits);
    if constexpr (kBits == 1) {
      words[0] = __ldg(reinterpret_cast<const uint32_t*>(from));
    } else if constexpr (kBits == 2) {
      const uint2 two = __ldg(reinterpret_cast<const uint2*>(from));
      words[0] = two.x, words[1] = two.y;
    } else {
#pragma unroll
      for (int i = 0; i < kBits / 4; ++i) {
        const uint4 four = __ldg(reinterpret_cast<const uint4*>(from) + i);
        words[4 * i] = four.x, words[4 * i + 1] = four.y, words[4 * i + 2] = four.z, words[4 * i + 3] = four.w;
      }
    }
  }

  __device__ __forceinline__ const unsigned char* entry(const unsigned char* table, uint32_t own, int byte) const {
    const int shift = 8 * (byte % 4);
    const uint32_t word = words[byte / 4], offset = shift >= 7 ? word >> (shift - 7) : word << (7 - shift);
    return table + ((offset & 0x7f80u) | own);
  }

  // Feature pairs 4c to 4c + 3 of the lane's.
  __device__ __forceinline__ void look_up(const unsigned char* table, uint32_t own, int c,
                                          uint32_t (&values)[4]) const {
    if constexpr (kBits == 1) {
      const uint4 four = *reinterpret_cast<const uint4*>(entry(table, own, c));
      values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
    } else if constexpr (kBits == 2) {
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const uint2 two = *reinterpret_cast<const uint2*>(entry(table, own, 2 * c + b));
        values[2 * b] = two.x, values[2 * b + 1] = two.y;
      }
    } else if constexpr (kBits == 4) {
#pragma unroll
      for (int b = 0; b < 4; ++b) values[b] = *reinterpret_cast<const uint32_t*>(entry(table, own, 4 * c + b));
    } else {
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const uint32_t low = *reinterpret_cast<const uint32_t*>(entry(table, own, 8 * c + 2 * b));
        const uint32_t high = *reinterpret_cast<const uint32_t*>(entry(table, own, 8 * c + 2 * b + 1));
        values[b] = __byte_perm(low, high, 0x5410);
      }
    }
  }
};

// As Step, with rows of weights alone, to whose products the centroids' similarities are added.
template <int kBits>
struct TableStep {
  PackedShare<kBits> packed[2];
  uint4 similarities[2];
  uint32_t rows[1][kSteps][4];

  __device__ __forceinline__ void gather(const ResidualArgs& args, uint32_t code) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < 2; ++j)
      similarities[j] = __ldcg(args.stream.table + 4 * int64_t{__shfl_sync(~0u, code, 8 * j + lane / 4)} + lane % 4);
  }
  __device__ __forceinline__ void add(const ResidualArgs&, const unsigned char* table, uint32_t own, float) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t values[4];
        packed[j].look_up(table, own, c, values);
#pragma unroll
        for (int i = 0; i < 4; ++i) rows[0][2 * c + i / 2][j + 2 * (i % 2)] = values[i];
      }
  }
  __device__ __forceinline__ void start_products(float (&c)[16], const SimilarityScale& scale) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4& four = similarities[half];
      const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        c[4 * n + 2 * half] = scale.low(words[n]);
        c[4 * n + 2 * half + 1] = scale.high(words[n]);
      }
    }
  }
};

}  // namespace cuda
}  // namespace maxsim
