// A stable sort of some hundred hits by token, in shared memory: counting passes of six bits, lowest first.
#pragma once

#include <cstdint>

namespace maxsim {
namespace cuda {

struct __align__(16) Hit {
  int64_t row;   // element offset of the query token; while hits are collected, the number of its pair
  float factor;  // of the row in the sum; while hits are collected, the query token as bits
  int token;     // of the slice
};

template <int kThreads, int kCapacity, int kTokens>
struct HitSort {
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kRuns = kCapacity / 32;  // hits that one warp ranks in one step
  static constexpr int kBits = 6;
  static constexpr int kBuckets = 1 << kBits;
  static constexpr int kOwnStarts = kBuckets * kRuns / kThreads;
  static_assert(kRuns % kWarps == 0 && kOwnStarts * kThreads == kBuckets * kRuns, "every thread has the same share");

  uint16_t order[kTokens > kBuckets ? 2 : 1][kCapacity];
  uint16_t start[kBuckets][kRuns];  // hits of the bucket in the run, then where they go
  int warp_total[kWarps];

  // The numbers of `count` hits in token order, equal tokens in the order of their numbers. Whole block.
  __device__ __forceinline__ const uint16_t* run(const Hit* hits, int count, int tokens) {
    const uint16_t* from = nullptr;
    int to = 0;
#pragma unroll 1
    for (int shift = 0; shift == 0 || (tokens - 1) >> shift; shift += kBits, to ^= 1) {
      pass(hits, count, shift, from, order[to]);
      from = order[to];
    }
    return from;
  }

  __device__ __forceinline__ void pass(const Hit* hits, int count, int shift, const uint16_t* from, uint16_t* to) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < kOwnStarts; ++i) (&start[0][0])[i * kThreads + threadIdx.x] = 0;
    __syncthreads();
    int hit[kRuns / kWarps], bucket[kRuns / kWarps], rank[kRuns / kWarps];
#pragma unroll
    for (int i = 0; i < kRuns / kWarps; ++i) {
      const int run = i * kWarps + warp, at = run * 32 + lane;
      bucket[i] = kBuckets;
      if (run * 32 >= count) continue;
      const bool present = at < count;
      hit[i] = present ? (from ? from[at] : at) : 0;
      if (present) bucket[i] = hits[hit[i]].token >> shift & (kBuckets - 1);
      const unsigned peers = __match_any_sync(~0u, bucket[i]);
      rank[i] = __popc(peers & ((1u << lane) - 1));
      if (present && rank[i] == 0) start[bucket[i]][run] = static_cast<uint16_t>(__popc(peers));
    }
    __syncthreads();
    scan();
#pragma unroll
    for (int i = 0; i < kRuns / kWarps; ++i)
      if (bucket[i] < kBuckets) to[start[bucket[i]][i * kWarps + warp] + rank[i]] = static_cast<uint16_t>(hit[i]);
    __syncthreads();
  }

  // start becomes its exclusive prefix sum, bucket by bucket.
  __device__ __forceinline__ void scan() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint16_t* own = &start[0][0] + threadIdx.x * kOwnStarts;
    int sum = 0;
#pragma unroll
    for (int i = 0; i < kOwnStarts; ++i) sum += own[i];
    int before = sum;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, before, step);
      if (lane >= step) before += other;
    }
    if (lane == 31) warp_total[warp] = before;
    before -= sum;
    __syncthreads();
    for (int w = 0; w < warp; ++w) before += warp_total[w];
#pragma unroll
    for (int i = 0; i < kOwnStarts; ++i) {
      const int count = own[i];
      own[i] = static_cast<uint16_t>(before);
      before += count;
    }
    __syncthreads();
  }
};

}  // namespace cuda
}  // namespace maxsim
