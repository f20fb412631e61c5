// Top-k of plain scores, and lists of keys that were ranked apart.
#include "ranking.cuh"

namespace maxsim {
namespace cuda {
namespace {

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
  const Scores scores{ranked.scores, ranked.documents, ranked.first, ranked.largest};
  rank_into(scores, ranked, WriteKeys{out}, workspace, stream);
}

void unrank(const KeyLists& keys, int64_t width, float* scores, int64_t* ids, cudaStream_t stream) {
  const int64_t count = keys.lists * keys.queries * keys.length;
  unrank_lists<<<grid(ceil_div(count, 256), 8), 256, 0, stream>>>(keys, width, scores, ids);
  check(cudaGetLastError(), "unrank_lists");
}

}  // namespace cuda
}  // namespace maxsim
