// A stable sort of hits by token, in shared memory: counting passes of six bits, lowest first.
#pragma once

#include <cstdint>

namespace maxsim {
namespace cuda {

template <int kThreads, int kCapacity, int kTokens>
struct HitSort {
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kSegment = kCapacity / kWarps;  // hits that one warp has collected
  static constexpr int kBits = 6;
  static constexpr int kBuckets = 1 << kBits;
  static_assert(kCapacity <= 1 << 16, "places are 16 bits");

  uint16_t token[kCapacity];  // of the slice; filled by the caller, a segment for each warp
  int count[kWarps];          // of them, by segment
  uint16_t order[kTokens > kBuckets ? 2 : 1][kCapacity];
  int warp_total[kWarps];

  // Hits of each bucket in each run of 32, then where they go: kBuckets rows of as many runs as there are.
  struct Starts {
    uint16_t at[kBuckets * (kCapacity / 32 + kWarps)];
  };

  __device__ __forceinline__ int total() const {
    int sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += count[w];
    return sum;
  }

  // The places of all hits in token order, equal tokens in the order of their places. Whole block; `starts` is scratch.
  __device__ __forceinline__ const uint16_t* run(Starts& starts, int tokens) {
    const int hits = total();
    const uint16_t* from = nullptr;
    int to = 0;
#pragma unroll 1
    for (int shift = 0; shift == 0 || (tokens - 1) >> shift > 0; shift += kBits, to ^= 1) {
      pass(starts, hits, shift, from, order[to]);
      from = order[to];
    }
    return from;
  }

  __device__ __forceinline__ void pass(Starts& starts, int hits, int shift, const uint16_t* from, uint16_t* to) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // At first the hits lie in segments with gaps behind them, and each warp ranks its own; then one after another.
    int runs = (hits + 31) / 32, first = warp, step = kWarps, offset = 0, limit = hits;
    if (!from) {
      runs = first = 0;
      for (int w = 0; w < kWarps; ++w) {
        if (w == warp) first = runs;
        runs += (count[w] + 31) / 32;
      }
      step = 1;
      offset = warp * kSegment - first * 32;
      limit = warp * kSegment + count[warp];
    }
    const int end = from ? runs : first + (count[warp] + 31) / 32;
    for (int i = threadIdx.x; i < kBuckets * runs; i += kThreads) starts.at[i] = 0;
    __syncthreads();
    for (int run = first; run < end; run += step) {
      int bucket, hit;
      const unsigned peers = rank(run * 32 + lane + offset, limit, shift, from, bucket, hit);
      if (bucket < kBuckets && !(peers & ((1u << lane) - 1)))
        starts.at[bucket * runs + run] = static_cast<uint16_t>(__popc(peers));
    }
    __syncthreads();
    scan(starts.at, kBuckets * runs);
    for (int run = first; run < end; run += step) {
      int bucket, hit;
      const unsigned peers = rank(run * 32 + lane + offset, limit, shift, from, bucket, hit);
      if (bucket < kBuckets)
        to[starts.at[bucket * runs + run] + __popc(peers & ((1u << lane) - 1))] = static_cast<uint16_t>(hit);
    }
    __syncthreads();
  }

  // The lanes of a run that have this lane's bucket; kBuckets where it has no hit.
  __device__ __forceinline__ unsigned rank(int at, int limit, int shift, const uint16_t* from, int& bucket,
                                           int& hit) const {
    hit = at < limit ? (from ? from[at] : at) : 0;
    bucket = at < limit ? token[hit] >> shift & (kBuckets - 1) : kBuckets;
    return __match_any_sync(~0u, bucket);
  }

  // The starts become their exclusive prefix sum, bucket by bucket. An odd share for each thread keeps them off each
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
