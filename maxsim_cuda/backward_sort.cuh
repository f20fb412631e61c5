// A stable sort of hits by token, in shared memory: one counting pass with a counter for each token and warp.
#pragma once

#include <cstdint>

namespace maxsim {
namespace cuda {

template <int kThreads, int kCapacity, int kTokens>
struct HitSort {
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kSegment = kCapacity / kWarps;  // hits that one warp has collected
  static_assert(kCapacity <= 1 << 16 && kTokens < 1 << 16, "places, counts and tokens are 16 bits");

  uint16_t token[kCapacity];  // of the slice; filled by the caller, a segment for each warp
  int count[kWarps];          // of them, by segment
  uint16_t order[kCapacity];
  int warp_total[kWarps];

  // Hits of each token in each warp's segment, then where they go: a row of warps for each token.
  struct alignas(4) Starts {
    uint16_t at[kTokens * kWarps];
  };

  __device__ __forceinline__ int total() const {
    int sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += count[w];
    return sum;
  }

  // Before hits are counted. Whole block, which has to meet before the first.
  __device__ __forceinline__ static void clear(Starts& starts, int tokens) {
    uint32_t* words = reinterpret_cast<uint32_t*>(starts.at);
    for (int i = threadIdx.x; i < (tokens * kWarps + 1) / 2; i += kThreads) words[i] = 0;
  }

  // One more hit of a warp. Counters are halves of words, as there are no atomics for less.
  __device__ __forceinline__ static void add(Starts& starts, unsigned token, unsigned warp) {
    const unsigned at = token * kWarps + warp;
    atomicAdd(reinterpret_cast<uint32_t*>(starts.at) + at / 2, 1u << at % 2 * 16);
  }

  // The places of all hits in token order, equal tokens in the order of their places. Whole block.
  __device__ __forceinline__ const uint16_t* run(Starts& starts, int tokens) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    scan(starts.at, tokens * kWarps);
    const int end = warp * kSegment + count[warp];
    for (int first = warp * kSegment; first < end; first += 32) {
      const int place = first + lane;
      const bool there = place < end;
      const int own = there ? token[place] : kTokens;
      const unsigned peers = __match_any_sync(~0u, own), before = peers & ((1u << lane) - 1);
      uint16_t& start = starts.at[(there ? own : 0) * kWarps + warp];
      const int to = start;
      __syncwarp();
      if (there) {
        order[to + __popc(before)] = static_cast<uint16_t>(place);
        if (!before) start = static_cast<uint16_t>(to + __popc(peers));
      }
      __syncwarp();
    }
    __syncthreads();
    return order;
  }

  // The starts become their exclusive prefix sum, token by token. An odd share for each thread keeps them off each
  // other's banks.
  __device__ __forceinline__ void scan(uint16_t* starts, int size) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int share = (size + kThreads - 1) / kThreads | 1;
    const int from = min(size, static_cast<int>(threadIdx.x) * share), to = min(size, from + share);
    int sum = 0;
    for (int i = from; i < to; ++i) sum += starts[i];
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
    for (int i = from; i < to; ++i) {
      const int hits = starts[i];
      starts[i] = static_cast<uint16_t>(before);
      before += hits;
    }
    __syncthreads();
  }
};

}  // namespace cuda
}  // namespace maxsim
