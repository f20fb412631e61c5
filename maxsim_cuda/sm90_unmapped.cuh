// Rows that no tensor map describes, by ordinary loads of the loader warps: those whose bytes 16 does not divide, which
// begin anywhere between the addresses that the copy engine counts in, and those whose features lie apart.
#pragma once

#include "ptx/load.cuh"
#include "sm90_shared.cuh"

namespace maxsim {
namespace cuda {

// The 16-byte chunks of an operand's rows, shared out to kThreads threads. row_of(row): the element of a side where a row
// begins, or -1 for zeros. place(row, chunk): where in shared memory that chunk goes. kBatch: pairs of chunks whose bytes
// are on their way before the first is looked at, which is what hides the time that memory takes.
template <int kThreads, int kBatch>
struct UnmappedRows {
  const Segments& side;
  int64_t side_bytes;  // from the first to the last of all rows
  int rows, chunks;    // of the operand
  int thread;

  template <class RowOf, class Place>
  __device__ __forceinline__ void copy(const RowOf& row_of, const Place& place) const {
    const int size = static_cast<int>(element_size(side.dtype));
    if (side.feature_stride == 1)
      copy_pairs(size, row_of, place);
    else if (size == 4)
      copy_features<uint32_t>(row_of, place);
    else if (size == 2)
      copy_features<uint16_t>(row_of, place);
    else
      copy_features<uint8_t>(row_of, place);
  }

 private:
  // Features that follow one another: two neighbouring chunks lie in three aligned words of 16 bytes.
  struct Pair {
    const char* from;  // its first byte
    int bytes;         // that belong to the row, from there on, or fewer than one
    uint4 words[3];

    __device__ __forceinline__ const char* word(int i) const {
      return reinterpret_cast<const char*>((reinterpret_cast<uintptr_t>(from) & ~uintptr_t{15}) + i * 16);
    }
    // Words that end behind the last of all rows are nobody's as a whole.
    __device__ __forceinline__ void load(const char* end) {
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        words[i] = make_uint4(0, 0, 0, 0);
        if (bytes > 0 && word(i) < from + bytes && word(i) + 16 <= end) words[i] = ptx::load_16_now(word(i));
      }
    }
    __device__ __forceinline__ void load_last(const char* end) {
#pragma unroll
      for (int i = 0; i < 3; ++i)
        if (bytes > 0 && word(i) < from + bytes && word(i) + 16 > end) {
          uint32_t part[4] = {};
#pragma unroll
          for (int k = 0; k < 16; ++k)
            if (word(i) + k < from + bytes)
              part[k / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(word(i)[k])) << k % 4 * 8;
          words[i] = make_uint4(part[0], part[1], part[2], part[3]);
        }
    }
    // Its bytes from the first on, and zeros where the row has no more.
    __device__ __forceinline__ void align(uint4 (&out)[2]) const {
      const int skipped = static_cast<int>(reinterpret_cast<uintptr_t>(from) & 15);
      uint32_t word[12], chunk[8];
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        word[4 * i] = words[i].x, word[4 * i + 1] = words[i].y;
        word[4 * i + 2] = words[i].z, word[4 * i + 3] = words[i].w;
      }
#pragma unroll
      for (int i = 0; i < 10; ++i) word[i] = skipped & 8 ? word[i + 2] : word[i];
#pragma unroll
      for (int i = 0; i < 9; ++i) word[i] = skipped & 4 ? word[i + 1] : word[i];
#pragma unroll
      for (int i = 0; i < 8; ++i) chunk[i] = __funnelshift_r(word[i], word[i + 1], skipped % 4 * 8);
      if (bytes < 32)
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int kept = bytes - i * 4;
          chunk[i] = kept >= 4 ? chunk[i] : kept > 0 ? chunk[i] & (1u << kept * 8) - 1 : 0;
        }
      out[0] = make_uint4(chunk[0], chunk[1], chunk[2], chunk[3]);
      out[1] = make_uint4(chunk[4], chunk[5], chunk[6], chunk[7]);
    }
  };

  template <class RowOf, class Place>
  __device__ __forceinline__ void copy_pairs(int size, const RowOf& row_of, const Place& place) const {
    const char* data = static_cast<const char*>(side.data);
    const int row_bytes = static_cast<int>(row_elements(side)) * size, pairs = (chunks + 1) / 2;
#pragma unroll 1
    for (int first = thread; first < rows * pairs; first += kThreads * kBatch) {
      Pair pair[kBatch];
      int row[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        row[b] = (first + b * kThreads) / pairs;
        const int64_t element = row[b] < rows ? row_of(row[b]) : -1;
        const int skipped = (first + b * kThreads - row[b] * pairs) * 32;
        pair[b].from = data + max(element, int64_t{0}) * size + skipped;
        pair[b].bytes = element < 0 ? 0 : row_bytes - skipped;
        pair[b].load(data + side_bytes);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (row[b] < rows) {
          pair[b].load_last(data + side_bytes);
          const int chunk = (first + b * kThreads - row[b] * pairs) * 2;
          uint4 out[2];
          pair[b].align(out);
          *reinterpret_cast<uint4*>(place(row[b], chunk)) = out[0];
          if (chunk + 1 < chunks) *reinterpret_cast<uint4*>(place(row[b], chunk + 1)) = out[1];
        }
    }
  }

  // One by one. Where neighbouring tokens are nearer than neighbouring features, neighbouring threads have the former.
  template <class Bits, class RowOf, class Place>
  __device__ __forceinline__ void copy_features(const RowOf& row_of, const Place& place) const {
    constexpr int kCount = 16 / sizeof(Bits);
    const bool across = side.token_stride < side.feature_stride;
    const Bits* data = static_cast<const Bits*>(side.data);
    const int features = static_cast<int>(row_elements(side));
#pragma unroll 2
    for (int i = thread; i < rows * chunks; i += kThreads) {
      const int row = across ? i % rows : i / chunks, chunk = across ? i / rows : i % chunks;
      const int64_t element = row_of(row);
      uint4 value = make_uint4(0, 0, 0, 0);
      Bits* part = reinterpret_cast<Bits*>(&value);
      if (element >= 0)
#pragma unroll
        for (int k = 0; k < kCount; ++k)
          if (const int feature = chunk * kCount + k; feature < features)
            part[k] = data[element + feature * side.feature_stride];
      *reinterpret_cast<uint4*>(place(row, chunk)) = value;
    }
  }
};

}  // namespace cuda
}  // namespace maxsim
