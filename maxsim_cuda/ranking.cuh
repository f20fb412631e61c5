// Top-k: blocks that share a query's many scores keep k keys each, until so few are left that one block a query brings
// them together with what was ranked before.
#pragma once

#include <algorithm>
#include <atomic>

#include "check.h"
#include "forward_args.cuh"
#include "launch_after.cuh"
#include "ptx/dependent_launch.cuh"
#include "ranking.h"

namespace maxsim {
namespace cuda {
namespace {

// Keys as unsigned integers of the same order. None is zero, which stands for no document.
using Key = unsigned long long;
constexpr Key kSigned = 1ull << 63;

constexpr int kSliceThreads = 256, kSliceKeys = 16, kSlice = kSliceThreads * kSliceKeys, kMergeThreads = 1024;
// Bytes of shared memory for a merge's keys, beside what else it keeps there.
constexpr int64_t kMostHeld = 80 << 10, kMergeStatic = 2 << 10;

// What a key says.
__device__ __forceinline__ int64_t id_of(Key key) { return 0xffffffff - static_cast<int64_t>(key & 0xffffffff); }
__device__ __forceinline__ float score_of(Key key) {
  const auto order = static_cast<int32_t>((key ^ kSigned) >> 32);
  return __int_as_float(order ^ (order >> 31 & 0x7fffffff));
}

// One zero and one NaN, above everything, as torch.topk has it.
__device__ __forceinline__ Key key_of(float score, int64_t id, bool largest) {
  score += 0.f;
  const int32_t bits = score != score ? 0x7fc00000 : __float_as_int(score);
  const int32_t order = bits ^ (bits >> 31 & 0x7fffffff);
  return (static_cast<Key>(static_cast<uint32_t>(largest ? order : ~order)) << 32 | (0xffffffffu - id)) ^ kSigned;
}

// A lower bound that the k greatest keys reach and no other does, by counting prefixes. Every thread brings its keys by
// `visit`, which calls back with each of them; there are more than k that are not zero.
template <int kThreads>
struct Threshold {
  int counts[256];
  Key least, most, bound;
  int wanted, shift;

  template <class Visit>
  __device__ __forceinline__ Key find(int k, const Visit& visit) {
    if (threadIdx.x == 0) least = ~0ull, most = 0, wanted = k;
    __syncthreads();
    Key low = ~0ull, high = 0;
    visit([&](Key key) {
      if (key) low = min(low, key), high = max(high, key);
    });
#pragma unroll
    for (int step = 1; step <= 16; step *= 2) {
      low = min(low, __shfl_xor_sync(~0u, low, step));
      high = max(high, __shfl_xor_sync(~0u, high, step));
    }
    if (threadIdx.x % 32 == 0) atomicMin(&least, low), atomicMax(&most, high);
    __syncthreads();
    // A byte at a time, from the highest in which two keys differ.
    if (threadIdx.x == 0) {
      shift = max(0, 63 - __clzll(least ^ most)) / 8 * 8;
      bound = shift + 8 < 64 ? most >> (shift + 8) << (shift + 8) : 0;
    }
    while (true) {
      for (int i = threadIdx.x; i < 256; i += kThreads) counts[i] = 0;
      __syncthreads();
      const int at = shift;
      const Key prefix = bound, same = at + 8 < 64 ? ~0ull << (at + 8) : 0;
      visit([&](Key key) {
        if (key && (key & same) == prefix) atomicAdd(&counts[key >> at & 255], 1);
      });
      __syncthreads();
      if (threadIdx.x < 32) {
        // Lane l has digits 255 - 8l and the seven below, so that a scan counts what is greater.
        int own[8], sum = 0;
        for (int i = 0; i < 8; ++i) sum += own[i] = counts[255 - static_cast<int>(threadIdx.x) * 8 - i];
        int above = sum;
        for (int step = 1; step < 32; step *= 2) {
          const int other = __shfl_up_sync(~0u, above, step);
          if (static_cast<int>(threadIdx.x) >= step) above += other;
        }
        above -= sum;
        const int need = wanted;
        __syncwarp();
        if (above < need && need <= above + sum) {
          int digit = 0;
          while (above + own[digit] < need) above += own[digit++];
          bound = prefix | static_cast<Key>(255 - static_cast<int>(threadIdx.x) * 8 - digit) << at;
          wanted = need - above;
          shift = own[digit] == need - above ? -1 : at - 8;
        }
      }
      __syncthreads();
      if (shift < 0) return bound;
    }
  }
};

// The sum over the block; what its threads wrote before is visible behind it.
__device__ __forceinline__ int count_block(int count) {
  __shared__ int sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
#pragma unroll
  for (int step = 1; step <= 16; step *= 2) count += __shfl_xor_sync(~0u, count, step);
  if (threadIdx.x % 32 == 0) atomicAdd(&sum, count);
  __syncthreads();
  return sum;
}

// Equal keys, of a document that was added twice, may be more than there is room for.
__device__ __forceinline__ void put(Key* best, int room, int* taken, Key key) {
  const int place = atomicAdd(taken, 1);
  if (place < room) best[place] = key;
}

// Scores of documents, or keys, `count` for each query.
struct Scores {
  const float* data;
  int64_t count, first;
  bool largest;
  __device__ __forceinline__ Key at(int64_t query, int64_t i) const {
    return key_of(data[query * count + i], first + i, largest);
  }
};
struct Keys {
  const Key* data;
  int64_t count;
  __device__ __forceinline__ Key at(int64_t query, int64_t i) const { return data[query * count + i]; }
};

// The k greatest keys of a slice of what a query has, in any order, zeros behind them.
template <class Source>
__global__ void __launch_bounds__(kSliceThreads)
    rank_slices(const Source source, int64_t queries, int k, Key* out, int slices) {
  __shared__ Threshold<kSliceThreads> threshold;
  __shared__ int taken;
  ptx::wait_for_prior_kernel();
  ptx::launch_dependents();
  for (int64_t query = blockIdx.y; query < queries; query += gridDim.y)
    for (int slice = blockIdx.x; slice < slices; slice += gridDim.x) {
      const int64_t first = int64_t{slice} * kSlice;
      Key keys[kSliceKeys];
      int count = 0;
#pragma unroll
      for (int i = 0; i < kSliceKeys; ++i) {
        const int64_t place = first + i * kSliceThreads + threadIdx.x;
        keys[i] = place < source.count ? source.at(query, place) : 0;
        count += keys[i] != 0;
      }
      if (threadIdx.x == 0) taken = 0;
      count = count_block(count);
      const auto visit = [&](const auto& call) {
#pragma unroll
        for (int i = 0; i < kSliceKeys; ++i) call(keys[i]);
      };
      const Key least = count > k ? threshold.find(k, visit) : 1;
      Key* best = out + (query * slices + slice) * k;
      visit([&](Key key) {
        if (key >= least) put(best, k, &taken, key);
      });
      for (int i = count + threadIdx.x; i < k; i += kSliceThreads) best[i] = 0;
      __syncthreads();
    }
}

// The k greatest of a query's candidates and of the keys that it had, in descending order: `finish` gets them in shared
// memory, zeros where there are fewer. `held` candidates, all or none of them, wait there too, behind the best.
template <class Source, class Finish>
__global__ void __launch_bounds__(kMergeThreads, 1)
    rank_merge(const Source candidates, const Ranked ranked, const Finish finish, int width, int padded, int held) {
  extern __shared__ Key best[];
  __shared__ Threshold<kMergeThreads> threshold;
  __shared__ int taken;
  ptx::wait_for_prior_kernel();
  ptx::launch_dependents();
  for (int64_t query = blockIdx.x; query < ranked.queries; query += gridDim.x) {
    const int64_t* known = ranked.keys + query * ranked.known;
#pragma unroll 4
    for (int i = threadIdx.x; i < held; i += kMergeThreads) best[padded + i] = candidates.at(query, i);
    const auto visit = [&](const auto& call) {
      for (int i = threadIdx.x; i < held; i += kMergeThreads) call(best[padded + i]);
      for (int64_t i = held + threadIdx.x; i < candidates.count; i += kMergeThreads) call(candidates.at(query, i));
      for (int64_t i = threadIdx.x; i < ranked.known; i += kMergeThreads) call(static_cast<Key>(known[i]) ^ kSigned);
    };
    if (threadIdx.x == 0) taken = 0;
    for (int i = threadIdx.x; i < padded; i += kMergeThreads) best[i] = 0;
    int count = 0;
    visit([&](Key key) { count += key != 0; });
    const Key least = count_block(count) > width ? threshold.find(width, visit) : 1;
    visit([&](Key key) {
      if (key >= least) put(best, width, &taken, key);
    });
    __syncthreads();
    for (int size = 2; size <= padded; size *= 2)
      for (int step = size / 2; step; step /= 2) {
        for (int i = threadIdx.x; i < padded / 2; i += kMergeThreads) {
          const int low = i / step * step * 2 + i % step, high = low + step;
          const Key a = best[low], b = best[high];
          if ((low & size) == 0 ? a < b : a > b) best[low] = b, best[high] = a;
        }
        __syncthreads();
      }
    finish(query, best, width);
    __syncthreads();
  }
}

// Keys [queries, width], descending.
struct WriteKeys {
  int64_t* out;
  __device__ __forceinline__ void operator()(int64_t query, const Key* best, int width) const {
    for (int i = threadIdx.x; i < width; i += kMergeThreads)
      out[query * width + i] = static_cast<int64_t>(best[i] ^ kSigned);
  }
};

// The best of `source`, of which there are as many as `ranked` says, and of the keys that `ranked` has. `workspace` has
// rank_workspace() bytes.
template <class Source, class Finish>
void rank_into(const Source& source, const Ranked& ranked, const Finish& finish, void* workspace, cudaStream_t stream) {
  const int k = static_cast<int>(ranked.k);
  const auto slice = [&](const auto& from, Key* to) {
    const int slices = static_cast<int>(ceil_div(from.count, kSlice));
    const dim3 blocks(std::min(slices, 1 << 16), static_cast<unsigned>(std::min<int64_t>(ranked.queries, 1 << 15)));
    launch_after("rank_slices", &rank_slices<std::decay_t<decltype(from)>>, blocks, kSliceThreads, 0, stream, from,
                 ranked.queries, k, to, slices);
    return Keys{to, int64_t{slices} * k};
  };
  const int width = static_cast<int>(std::min(ranked.k, ranked.known + ranked.documents));
  int padded = 1;
  while (padded < width) padded *= 2;
  const auto merge = [&](const auto& candidates) {
    const auto kernel = &rank_merge<std::decay_t<decltype(candidates)>, Finish>;
    const Device& device = current_device();
    const int64_t room = std::min<int64_t>(device.shared_bytes - kMergeStatic, kMostHeld) / int64_t{sizeof(Key)};
    const int held = candidates.count + padded <= room ? static_cast<int>(candidates.count) : 0;
    static std::atomic<bool> allowed[kDevices];
    if (!allowed[device.index]) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(room * sizeof(Key))),
            "shared memory of rank_merge");
      allowed[device.index] = true;
    }
    launch_after("rank_merge", kernel, grid(ranked.queries, 16), kMergeThreads, (padded + held) * sizeof(Key), stream,
                 candidates, ranked, finish, width, padded, held);
  };
  if (ranked.documents <= kSlice) return merge(source);
  Key* places[2] = {static_cast<Key*>(workspace)};
  places[1] = places[0] + ranked.queries * ceil_div(ranked.documents, kSlice) * k;
  Keys candidates = slice(source, places[0]);
  // One block takes long over many candidates; slices halve them at least.
  for (int to = 1; candidates.count > 2 * std::max(kSlice, k); to ^= 1) candidates = slice(candidates, places[to]);
  merge(candidates);
}

}  // namespace
}  // namespace cuda
}  // namespace maxsim
