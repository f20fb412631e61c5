// Rows that no tensor map describes, by the loader warps or those that split rows: those whose bytes 16 does not
// divide, which begin anywhere between the addresses that the copy engine counts in, and those whose features lie
// apart. Some of the first kind come another way (sm90_loose.cuh, sm90_shifted.cuh).
#pragma once

#include "ptx/load.cuh"
#include "ptx/shared.cuh"
#include "sm90_shared.cuh"

namespace maxsim {
namespace cuda {

// The kWords words from a byte of the first four on become the first ones.
template <int kWords>
__device__ __forceinline__ void words_from(uint32_t (&words)[kWords + 4], int byte) {
#pragma unroll
  for (int i = 0; i < kWords + 2; ++i) words[i] = byte & 8 ? words[i + 2] : words[i];
#pragma unroll
  for (int i = 0; i < kWords + 1; ++i) words[i] = byte & 4 ? words[i + 1] : words[i];
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = __funnelshift_r(words[i], words[i + 1], byte * 8);
}

// Two neighbouring 16-byte chunks of a row, whose bytes lie in three aligned words of 16 bytes.
struct ChunkPair {
  int skipped;  // bytes before its first one, in the first word
  uint32_t words[12];

  // The words that hold the first `bytes` from there on.
  __device__ __forceinline__ void load(const char* from, int bytes) {
    skipped = static_cast<int>(reinterpret_cast<uintptr_t>(from)) & 15;
    const char* aligned = reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(from) & ~uintptr_t{15});
    const int behind = bytes > 0 ? skipped + bytes : 0;
    ptx::load_16_if<0>(behind > 0, aligned, words);
    ptx::load_16_if<16>(behind > 16, aligned, words + 4);
    ptx::load_16_if<32>(behind > 32, aligned, words + 8);
  }
  // Its bytes from the first on, as far as `kept` says.
  __device__ __forceinline__ void align(const uint32_t (&kept)[8], uint4 (&out)[2]) const {
    uint32_t chunk[12];
#pragma unroll
    for (int i = 0; i < 12; ++i) chunk[i] = words[i];
    words_from<8>(chunk, skipped);
#pragma unroll
    for (int i = 0; i < 8; ++i) chunk[i] &= kept[i];
    out[0] = make_uint4(chunk[0], chunk[1], chunk[2], chunk[3]);
    out[1] = make_uint4(chunk[4], chunk[5], chunk[6], chunk[7]);
  }
};

// An operand's rows, shared out to kThreads threads. kBatch: pairs of chunks that a thread has on their way before it
// looks at the first, which is what hides the time that memory takes. The loops are short: what they read again and
// again has to stay where instructions are read from.
template <int kThreads, int kBatch>
struct UnmappedRows {
  const Segments& side;
  const char* end;   // behind the last of all the side's rows
  int rows, chunks;  // of the operand
  int thread;
  int feature = 0;  // of each row, that comes first

  // Rows begin at the side's element `first` and a token stride apart; those that keeps(row) does not want become
  // zeros. place(row, chunk): the shared address of a chunk.
  template <class Keeps, class Place>
  __device__ __forceinline__ void copy(int64_t first, const Keeps& keeps, const Place& place) const {
    const int size = static_cast<int>(element_size(side.dtype));
    first += feature * side.feature_stride;
    if (side.feature_stride == 1)
      copy_pairs(static_cast<const char*>(side.data) + first * size, size, keeps, place);
    else if (size == 4)
      copy_features<uint32_t>(first, keeps, place);
    else if (size == 2)
      copy_features<uint16_t>(first, keeps, place);
    else
      copy_features<uint8_t>(first, keeps, place);
  }

 private:
  // A thread has the same pair of several rows.
  template <class Keeps, class Place>
  __device__ __forceinline__ void copy_pairs(const char* first, int size, const Keeps& keeps,
                                             const Place& place) const {
    const int row_bytes = (static_cast<int>(row_elements(side)) - feature) * size, pairs = (chunks + 1) / 2;
    const int pair = thread % pairs, step = kThreads / pairs, bytes = max(0, min(row_bytes - pair * 32, 32));
    if (thread >= step * pairs) return;
    const int64_t stride = side.token_stride * size;
    // A row's last word may end behind the last row of all.
    const bool near_end = first + (rows - 1) * stride + row_bytes + 15 > end;
    uint32_t kept[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) kept[i] = __funnelshift_lc(~0u, 0, min(max(bytes - i * 4, 0), 4) * 8);
    first += pair * 32;
#pragma unroll 1
    for (int begin = thread / pairs; begin < rows; begin += step * kBatch) {
      ChunkPair loaded[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int row = begin + b * step;
        const char* from = first + row * stride;
        int wanted = row < rows && keeps(row) ? bytes : 0;
        if (near_end && from + bytes + 15 > end) wanted = 0;
        loaded[b].load(from, wanted);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (const int row = begin + b * step; row < rows) {
          uint4 out[2];
          loaded[b].align(kept, out);
          ptx::store_shared_16(place(row, pair * 2), out[0]);
          if (pair * 2 + 1 < chunks) ptx::store_shared_16(place(row, pair * 2 + 1), out[1]);
        }
    }
    if (near_end) copy_last(first, stride, pair, bytes, keeps, place);
  }

  // What could not be loaded by whole words, byte by byte.
  template <class Keeps, class Place>
  __device__ __forceinline__ void copy_last(const char* first, int64_t stride, int pair, int bytes, const Keeps& keeps,
                                            const Place& place) const {
    const int pairs = (chunks + 1) / 2, step = kThreads / pairs;
#pragma unroll 1
    for (int row = thread / pairs; row < rows; row += step)
      if (const char* from = first + row * stride; keeps(row) && from + bytes + 15 > end)
#pragma unroll 1
        for (int i = 0; i < bytes; ++i)
          ptx::store_shared_1(place(row, pair * 2 + i / 16) + i % 16, static_cast<uint8_t>(from[i]));
  }

  // One by one. Where neighbouring tokens are nearer than neighbouring features, neighbouring threads have the former.
  template <class Bits, class Keeps, class Place>
  __device__ __forceinline__ void copy_features(int64_t first, const Keeps& keeps, const Place& place) const {
    constexpr int kCount = 16 / sizeof(Bits);
    const bool across = side.token_stride < side.feature_stride;
    const Bits* data = static_cast<const Bits*>(side.data) + first;
    const int features = static_cast<int>(row_elements(side)) - feature;
#pragma unroll 1
    for (int i = thread; i < rows * chunks; i += kThreads) {
      const int row = across ? i % rows : i / chunks, chunk = across ? i / rows : i % chunks;
      const int count = keeps(row) ? features - chunk * kCount : 0;
      const Bits* from = data + row * side.token_stride + chunk * kCount * side.feature_stride;
      uint4 value = make_uint4(0, 0, 0, 0);
      Bits* part = reinterpret_cast<Bits*>(&value);
      if (count > 0) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) part[k] = from[min(k, count - 1) * side.feature_stride];  // all at once
#pragma unroll
        for (int k = 0; k < kCount; ++k)
          if (k >= count) part[k] = 0;
      }
      ptx::store_shared_16(place(row, chunk), value);
    }
  }
};

// Where chunks of a block of query rows go. The address is shuffled, because the compiler would put it together anew
// for each.
template <class C>
struct QueryPlace {
  uint32_t address;
  int block;
  __device__ __forceinline__ uint32_t operator()(int token, int chunk) const {
    const int row = block_row<C>(block, token);
    return address + row / 64 * 64 * C::kQueryRowBytes + swizzled<C::kQueryAtomBytes>(C::kOperandRows, row % 64, chunk);
  }
};
__device__ __forceinline__ uint32_t held_address(const char* operand) {
  return __shfl_sync(~0u, ptx::shared_address(operand), 0);
}

// A group of query blocks, of which lane b knows block b, by kThreads threads.
template <class C, int kThreads, int kBatch>
__device__ __forceinline__ void copy_query_rows(const Sm90Args& args, const BlockInfo& info, char* to, int chunks,
                                                int thread) {
  const UnmappedRows<kThreads, kBatch> rows{args.problem.queries, args.query_end, kBlockTokens, chunks, thread};
  QueryPlace<C> place{held_address(to), 0};
#pragma unroll 1
  for (; place.block < C::kBlocks; ++place.block) {
    const int64_t begin = __shfl_sync(~0u, info.begin, place.block);
    const uint32_t kept = __shfl_sync(~0u, info.kept, place.block);
    if (kept) rows.copy(begin, [&](int token) { return kept >> token & 1; }, place);
  }
}

}  // namespace cuda
}  // namespace maxsim
