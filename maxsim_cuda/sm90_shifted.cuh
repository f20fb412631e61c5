// Rows that begin anywhere, between the addresses that copies count in: the 16-byte words that hold them are copied,
// and whoever reads rows next finds them shifted by what lies before them in their first word.
#pragma once

#include "ptx/cp_async.cuh"
#include "ptx/shared.cuh"
#include "sm90_shared.cuh"
#include "sm90_unmapped.cuh"

namespace maxsim {
namespace cuda {

// How rows lie in an operand: where they belong, or so many bytes behind that and the last chunk of each elsewhere.
struct InPlace {};
struct Shifted {
  uint32_t behind;  // shared address of the first row's last chunk, which others' follow
  int first, step;  // bytes: the first row's shift, and what it grows by from row to row, both modulo 16
  __device__ __forceinline__ int shift(int row) const { return (first + row * step) & 15; }
};

__device__ __forceinline__ Shifted shifted(const Segments& side, int64_t begin, uint32_t behind) {
  if (side.feature_stride != 1) return {behind, 0, 0};
  const int64_t size = element_size(side.dtype);
  const auto below_16 = [](int64_t bytes) { return static_cast<int>(bytes) & 15; };
  return {behind, below_16(reinterpret_cast<intptr_t>(side.data) + begin * size), below_16(side.token_stride * size)};
}

// kWords words that a row has from `chunk` on, of kChunks chunks in all. at(chunk): where one lies.
template <int kWords, int kChunks, class At>
__device__ __forceinline__ void load_words(const Shifted& lying, int row, int chunk, const At& at,
                                           uint32_t (&words)[kWords + 4]) {
#pragma unroll
  for (int i = 0; i < kWords / 4 + 1; ++i) {
    const uint4 raw = ptx::load_shared_16(chunk + i == kChunks ? lying.behind + row * 16 : at(chunk + i));
    words[4 * i] = raw.x, words[4 * i + 1] = raw.y, words[4 * i + 2] = raw.z, words[4 * i + 3] = raw.w;
  }
  words_from<kWords>(words, lying.shift(row));
}

// The copies of rows, which no thread waits for: `chunks` of each, a multiple of eight, and one more. A warp has few of
// them under way at a time, so that many warps have to start them. Loops are unrolled, a lane has the same chunk of
// every fourth row, and where all of a tile is there nothing is asked.
struct ShiftedRows {
  const char *from, *end;  // the first row's first byte that is wanted, and behind all of the side
  int64_t step;            // bytes from row to row
  int chunks;
  int bytes;  // of a row, from there on

  // The first of kRows rows goes to `to`, atoms of eight chunks `atom_step` bytes apart, the last chunks to `behind`.
  // Rows that keeps(row) does not want become zeros, as does what is not there. `all`: every row is wanted.
  template <int kRows, int kWarps, class Keeps>
  __device__ __forceinline__ void copy(int warp, int lane, uint32_t to, int atom_step, uint32_t behind, bool all,
                                       const Keeps& keeps) const {
    (all && bytes >= chunks * 16) ? copy_atoms<kRows, kWarps, true>(warp, lane, to, atom_step, keeps)
                                  : copy_atoms<kRows, kWarps, false>(warp, lane, to, atom_step, keeps);
    const char* last = from + (warp * 32 + lane) * step + chunks * 16;
#pragma unroll
    for (int i = 0; i < (kRows + kWarps * 32 - 1) / (kWarps * 32); ++i, last += kWarps * 32 * step)
      if (const int row = (i * kWarps + warp) * 32 + lane; row < kRows)
        copy_chunk<false>(last, bytes - chunks * 16, keeps(row), behind + row * 16);
  }

 private:
  template <int kRows, int kWarps, bool kWhole, class Keeps>
  __device__ __forceinline__ void copy_atoms(int warp, int lane, uint32_t to, int atom_step, const Keeps& keeps) const {
    constexpr int kEights = kRows / 8;
    static_assert(kRows % 8 == 0);
    const int part = lane / 8, chunk = lane % 8;
    uint32_t places[2] = {to + warp * 1024 + swizzled(8, part, chunk), to + warp * 1024 + swizzled(8, part + 4, chunk)};
    const int64_t stride = kWarps * 8 * step;
#pragma unroll 1
    for (int atom = 0; atom < chunks / 8; ++atom, places[0] += atom_step, places[1] += atom_step) {
      const int left = bytes - (atom * 8 + chunk) * 16;
      const char* upper = from + (warp * 8 + part) * step + (atom * 8 + chunk) * 16;
      const char* lower = upper + 4 * step;
#pragma unroll
      for (int i = 0; i < (kEights + kWarps - 1) / kWarps; ++i, upper += stride, lower += stride)
        if (const int eight = i * kWarps + warp; (i + 1) * kWarps <= kEights || eight < kEights) {
          const int row = eight * 8 + part;
          copy_chunk<kWhole>(upper, left, kWhole || keeps(row), places[0] + i * kWarps * 1024);
          copy_chunk<kWhole>(lower, left, kWhole || keeps(row + 4), places[1] + i * kWarps * 1024);
        }
    }
  }

  // kWhole: all is there. `left`: bytes of its row, from a chunk on that is as far behind its first byte as this chunk
  // is behind an aligned one. Copies that reach behind all of the side would read there.
  template <bool kWhole>
  __device__ __forceinline__ void copy_chunk(const char* first, int left, bool kept, uint32_t to) const {
    const uintptr_t address = reinterpret_cast<uintptr_t>(first);
    const char* aligned = reinterpret_cast<const char*>(address & ~uintptr_t{15});
    if (kWhole) return ptx::copy_16_to(to, aligned);
    const int there = kept ? max(0, min(left + static_cast<int>(address & 15), 16)) : 0;
    if (there == 0 || end - aligned >= 16) return ptx::copy_16_to(to, aligned, there);
#pragma unroll 1
    for (int i = 0; i < 16; ++i) ptx::store_shared_1(to + i, i < there ? static_cast<uint8_t>(aligned[i]) : 0);
  }
};

}  // namespace cuda
}  // namespace maxsim
