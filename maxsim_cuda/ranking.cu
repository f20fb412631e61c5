// Top-k: blocks that share a query's many scores keep k keys each, until so few are left that one block a query brings
// them together with what was ranked before.
#include "ranking.h"

#include <algorithm>

#include "check.h"
#include "forward_args.cuh"
#include "launch.h"

namespace maxsim {
namespace cuda {
namespace {

// Keys as unsigned integers of the same order. None is zero, which stands for no document.
using Key = unsigned long long;
constexpr Key kSigned = 1ull << 63;

constexpr int kSliceThreads = 256, kSliceKeys = 16, kSlice = kSliceThreads * kSliceKeys, kMergeThreads = 1024;

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

// The k greatest of a query's candidates and of the keys that it had, in descending order.
template <class Source>
__global__ void __launch_bounds__(kMergeThreads)
    rank_merge(const Source candidates, const Ranked ranked, int64_t* out, int width, int padded) {
  extern __shared__ Key best[];
  __shared__ Threshold<kMergeThreads> threshold;
  __shared__ int taken;
  for (int64_t query = blockIdx.x; query < ranked.queries; query += gridDim.x) {
    const int64_t* known = ranked.keys + query * ranked.known;
    const auto visit = [&](const auto& call) {
      for (int64_t i = threadIdx.x; i < candidates.count; i += kMergeThreads) call(candidates.at(query, i));
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
    for (int i = threadIdx.x; i < width; i += kMergeThreads)
      out[query * width + i] = static_cast<int64_t>(best[i] ^ kSigned);
    __syncthreads();
  }
}

// How many keys of a list go in front of `key`, which another list has; equal ones do if theirs is the earlier list.
__device__ __forceinline__ int64_t in_front(const int64_t* list, int64_t length, int64_t key, bool earlier) {
  int64_t low = 0, high = length;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (earlier ? list[middle] >= key : list[middle] > key)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// A key's place among all is the sum of its places in each list, so every thread has a key to itself.
__global__ void __launch_bounds__(256) unrank_lists(const KeyLists keys, int64_t width, float* scores, int64_t* ids) {
  const int64_t rows = keys.queries * keys.length, count = keys.lists * rows;
  for (int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x; i < count; i += int64_t{gridDim.x} * 256) {
    const int64_t list = i / rows, query = i % rows / keys.length, key = keys.data[i];
    int64_t place = i % keys.length;
    for (int64_t other = 0; other < keys.lists; ++other)
      if (other != list)
        place += in_front(keys.data + other * rows + query * keys.length, keys.length, key, other < list);
    if (place >= width) continue;
    const int32_t order = static_cast<int32_t>(key >> 32), bits = keys.largest ? order : ~order;
    scores[query * width + place] = __int_as_float(bits ^ (bits >> 31 & 0x7fffffff));
    ids[query * width + place] = 0xffffffff - (key & 0xffffffff);
  }
}

}  // namespace

int64_t rank_workspace(const Ranked& ranked) {
  if (ranked.documents <= kSlice) return 0;
  const int64_t first = ceil_div(ranked.documents, kSlice) * ranked.k, second = ceil_div(first, kSlice) * ranked.k;
  return ranked.queries * (first + second) * static_cast<int64_t>(sizeof(Key));
}

void rank(const Ranked& ranked, int64_t* out, void* workspace, cudaStream_t stream) {
  const int k = static_cast<int>(ranked.k);
  const auto slice = [&](const auto& source, Key* to) {
    const int slices = static_cast<int>(ceil_div(source.count, kSlice));
    const dim3 blocks(std::min(slices, 1 << 16), static_cast<unsigned>(std::min<int64_t>(ranked.queries, 1 << 15)));
    rank_slices<<<blocks, kSliceThreads, 0, stream>>>(source, ranked.queries, k, to, slices);
    check(cudaGetLastError(), "rank_slices");
    return Keys{to, int64_t{slices} * k};
  };
  const int width = static_cast<int>(std::min(ranked.k, ranked.known + ranked.documents));
  int padded = 1;
  while (padded < width) padded *= 2;
  const auto merge = [&](const auto& candidates) {
    rank_merge<<<grid(ranked.queries, 16), kMergeThreads, padded * sizeof(Key), stream>>>(candidates, ranked, out,
                                                                                          width, padded);
    check(cudaGetLastError(), "rank_merge");
  };
  const Scores scores{ranked.scores, ranked.documents, ranked.first, ranked.largest};
  if (ranked.documents <= kSlice) return merge(scores);
  Key* places[2] = {static_cast<Key*>(workspace)};
  places[1] = places[0] + ranked.queries * ceil_div(ranked.documents, kSlice) * k;
  Keys candidates = slice(scores, places[0]);
  // One block takes long over many candidates; slices halve them at least.
  for (int to = 1; candidates.count > 2 * std::max(kSlice, k); to ^= 1) candidates = slice(candidates, places[to]);
  merge(candidates);
}

void unrank(const KeyLists& keys, int64_t width, float* scores, int64_t* ids, cudaStream_t stream) {
  const int64_t count = keys.lists * keys.queries * keys.length;
  unrank_lists<<<grid(ceil_div(count, 256), 8), 256, 0, stream>>>(keys, width, scores, ids);
  check(cudaGetLastError(), "unrank_lists");
}

}  // namespace cuda
}  // namespace maxsim
