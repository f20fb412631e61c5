// Splits operands of the Hopper forward where they lie in shared memory, between the copy engine and the products.
#pragma once

#include "ptx/shared.cuh"
#include "sm90_shared.cuh"
#include "sm90_shifted.cuh"
#include "sm90_unmapped.cuh"
#include "split.cuh"

namespace maxsim {
namespace cuda {

// Four lanes share a row of kAtoms * 32 features: with eight, what a row costs beside its features takes longer than
// these. Row by row the 128-byte atoms of what was loaded become, in pairs, atoms of high parts and atoms of low parts,
// which take the same space as fp32 does. kBatch: rows of a thread at once.
template <int kAtoms, int kWarps, int kBatch>
struct RowSplitter {
  static constexpr int kLanes = 4, kPairs = kAtoms / 2, kParts = 2;  // of a row's 64 features, a lane's eights
  static constexpr int kValues = kPairs * kParts * 8;
  static constexpr int kStep = kWarps * 32 / kLanes;  // rows at a time

  // Bytes of a value as it was loaded.
  enum class Size { one, two, four };

  unsigned thread;
  bool normalizes;

  // The first `present` of kRows rows. `scales`: factors of rows, `minima`: what is added to values with their factors,
  // either null where there are none. told(row, unit, factor, square): what one lane of a row's is told, the sum of
  // squares where rows are normalised.
  template <int kRows, bool kStored, class Told>
  __device__ __forceinline__ void split_rows(uint32_t rows, DType dtype, int present, const float* scales,
                                             const float* minima, const Told& told) const {
    if (dtype == DType::f32)
      split_rows<kRows, Size::four>(rows, dtype, present, scales, minima, InPlace{}, told);
    else if (kStored && is_stored(dtype))
      split_rows<kRows, Size::one>(rows, dtype, present, scales, minima, InPlace{}, told);
    else
      split_rows<kRows, Size::two>(rows, dtype, present, scales, minima, InPlace{}, told);
  }
  // The same of rows that lie shifted.
  template <int kRows, class Told>
  __device__ __forceinline__ void split_rows(uint32_t rows, DType dtype, int present, const Shifted& lying,
                                             const Told& told) const {
    dtype == DType::f32 ? split_rows<kRows, Size::four>(rows, dtype, present, nullptr, nullptr, lying, told)
                        : split_rows<kRows, Size::two>(rows, dtype, present, nullptr, nullptr, lying, told);
  }

  template <int kRows, Size kSize, class Lying, class Told>
  __device__ __forceinline__ void split_rows(uint32_t rows, DType dtype, int present, const float* scales,
                                             const float* minima, const Lying& lying, const Told& told) const {
    static_assert(kRows % (32 / kLanes) == 0, "a warp's rows at a time are all there or none");
    const int row0 = thread / kLanes;
#pragma unroll 1
    for (int first = row0; first < present; first += kBatch * kStep) {
      float value[kBatch][kValues] = {}, largest[kBatch], square[kBatch] = {}, factor[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (const int row = first + b * kStep; row < present) {
          load<kRows, kSize>(rows + row * 128, dtype, lying, row, value[b]);
          factor[b] = scales ? scales[row] : 1.f;
          if (kSize == Size::one && minima) {
#pragma unroll
            for (int i = 0; i < kValues; ++i) value[b][i] = fmaf(value[b][i], factor[b], minima[row]);
            factor[b] = 1.f;
          }
        }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        float part[4] = {};  // passes over NaN, whose products are NaN in any case
#pragma unroll
        for (int i = 0; i < kValues; ++i) part[i % 4] = fmaxf(part[i % 4], fabsf(value[b][i]));
        largest[b] = fmaxf(fmaxf(part[0], part[1]), fmaxf(part[2], part[3]));
      }
#pragma unroll
      for (int step = 1; step < kLanes; step *= 2)
#pragma unroll
        for (int b = 0; b < kBatch; ++b) largest[b] = fmaxf(largest[b], __shfl_xor_sync(~0u, largest[b], step));
      if (normalizes)
#pragma unroll
        for (int b = 0; b < kBatch; ++b) square[b] = sum_of_squares(value[b]);
      __syncwarp();  // the rows have been read
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (const int row = first + b * kStep; row < present) {
          const float unit = unit_of(largest[b]);
          store<kRows>(rows + row * 128, value[b], inverse_unit(unit));
          if (lane() == 0) told(row, unit, factor[b], square[b]);
        }
    }
  }

 private:
  __device__ __forceinline__ unsigned lane() const { return thread % kLanes; }

  // Which of 64 features' eights a lane has. In every other row the upper ones are first: so eight lanes at a time, of
  // two rows, are in all banks.
  __device__ __forceinline__ unsigned eight(int part) const {
    return (lane() + part * kLanes) ^ (thread / kLanes % 2 * 4);
  }

  // Where a row's chunk is, counted from where its first atom would be if it were not swizzled.
  template <int kRows>
  __device__ __forceinline__ uint32_t place(unsigned chunk) const {
    return chunk / 8 * kRows * 128 + ((chunk ^ thread / kLanes) % 8) * 16;
  }

  // Eights are added in pairs, so that nothing depends on which of a lane's is first.
  __device__ __forceinline__ static float sum_of_squares(const float (&value)[kValues]) {
    float sum = 0.f;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      float square[kParts] = {};
#pragma unroll
      for (int part = 0; part < kParts; ++part)
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float one = value[8 * (pair * kParts + part) + i];
          square[part] = fmaf(one, one, square[part]);
        }
      sum += square[0] + square[1];
    }
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    return sum;
  }

  template <int kRows, Size kSize>
  __device__ __forceinline__ void load(uint32_t at, DType dtype, const InPlace&, int, float (&value)[kValues]) const {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair)
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const unsigned eight = this->eight(part);
        float* out = value + 8 * (pair * kParts + part);
        if constexpr (kSize == Size::four) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const uint4 raw = ptx::load_shared_16(at + place<kRows>(pair * 16 + eight * 2 + half));
            const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
            for (int k = 0; k < 4; ++k) out[half * 4 + k] = __uint_as_float(words[k]);
          }
        } else if constexpr (kSize == Size::one) {
          uint2 raw;
          if (dtype == DType::bit) {
            raw.x = ptx::load_shared_1(at + place<kRows>(0) + pair * 8 + eight);
            raw.y = raw.x >> 4;
          } else {
            raw = ptx::load_shared_8(at + place<kRows>(pair * 4 + eight / 2) + eight % 2 * 8);
          }
          widen_stored(dtype, raw.x, out);
          widen_stored(dtype, raw.y, out + 4);
        } else {
          const uint4 raw = ptx::load_shared_16(at + place<kRows>(pair * 8 + eight));
          widen(dtype, make_uint2(raw.x, raw.y), out);
          widen(dtype, make_uint2(raw.z, raw.w), out + 4);
        }
      }
  }

  // The same of a row that lies shifted.
  template <int kRows, Size kSize>
  __device__ __forceinline__ void load(uint32_t at, DType dtype, const Shifted& lying, int row,
                                       float (&value)[kValues]) const {
    constexpr int kWords = kSize == Size::four ? 8 : 4;
    const auto chunk_at = [&](unsigned chunk) { return at + place<kRows>(chunk); };
#pragma unroll
    for (int i = 0; i < kPairs * kParts; ++i) {
      uint32_t words[kWords + 4];
      load_words<kWords, kPairs * 2 * kWords>(lying, row, (i / kParts * 8 + eight(i % kParts)) * kWords / 4, chunk_at,
                                              words);
      float* out = value + 8 * i;
      if constexpr (kSize == Size::four) {
#pragma unroll
        for (int k = 0; k < 8; ++k) out[k] = __uint_as_float(words[k]);
      } else {
        widen(dtype, make_uint2(words[0], words[1]), out);
        widen(dtype, make_uint2(words[2], words[3]), out + 4);
      }
    }
  }

  template <int kRows>
  __device__ __forceinline__ void store(uint32_t row, const float (&value)[kValues], float inverse) const {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair)
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        uint32_t high[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* two = value + 8 * (pair * kParts + part) + i * 2;
          split_pair(two[0], two[1], inverse, high[i], low[i]);
        }
        const uint32_t to = row + place<kRows>(pair * 16 + eight(part));
        ptx::store_shared_16(to, make_uint4(high[0], high[1], high[2], high[3]));
        ptx::store_shared_16(to + kRows * 128, make_uint4(low[0], low[1], low[2], low[3]));
      }
  }
};

template <class C>
struct Sm90Splitter {
  static constexpr int kThreads = C::kMoreWarps * 32;
  // Few warps have latencies to hide.
  using Rows = RowSplitter<C::kAtoms, C::kMoreWarps, (C::kMoreWarps > 8 ? 1 : 2)>;

  const Sm90Args& args;
  Sm90Shared<C>& shared;
  char *queries, *tiles;
  unsigned thread;

  __device__ __forceinline__ void run() {
    Ring<C::kStages> ring;
    Ring<C::kQueryBuffers> buffer;
    const Segments& documents = args.problem.documents;
    while (true) {
      ptx::mbarrier_wait(&shared.full[ring.at], ring.phase);
      const int flags = shared.stages[ring.at].flags;
      if (flags & StageInfo::kEnd) break;
      if (flags & StageInfo::kNewQueries) {
        ptx::mbarrier_wait(&shared.queries_full[buffer.at], buffer.phase);
        if (splitters_load<C>(args.problem.queries)) load_queries(buffer.at);
        for (int first = 0; first < C::kRows; first += 64)
          split<64>(queries + buffer.at * C::kQueryBytes + first * C::kAtoms * 128, args.problem.queries,
                    &shared.row_scale[buffer.at][first], nullptr);
        buffer.advance();
      }
      if (splitters_load<C>(documents)) load_tile(ring.at);
      split<C::N>(tiles + ring.at * C::kTileBytes, documents, shared.token_scale[ring.at],
                  documents.minimum ? shared.token_minimum[ring.at] : nullptr);
      ptx::fence_async_proxy();
      ptx::mbarrier_arrive(&shared.scaled[ring.at]);
      ring.advance();
    }
    ptx::mbarrier_arrive(&shared.scaled[ring.at]);
  }

 private:
  // What no tensor map describes, put where copies would have been.
  __device__ __forceinline__ void load_queries(int buffer) const {
    BlockInfo info;
    if (thread % 32 < C::kBlocks) info = shared.blocks[buffer][thread % 32];
    copy_query_rows<C, kThreads, C::kLoadBatch>(args, info, queries + buffer * C::kQueryBytes,
                                                split_chunks<C>(args.problem.queries), thread);
    sync_splitters();
  }
  __device__ __forceinline__ void load_tile(int stage) const {
    const Segments& side = args.problem.documents;
    const uint32_t to = ptx::shared_address(tiles) + stage * C::kTileBytes;
    const auto [begin, rows] = shared.sources[stage];
    const int there = rows;
    const UnmappedRows<kThreads, C::kLoadBatch> unmapped{side, args.document_end, C::N, split_chunks<C>(side),
                                                         static_cast<int>(thread)};
    unmapped.copy(
        begin, [=](int row) { return row < there; },
        [=](int row, int chunk) { return to + swizzled(C::N, row, chunk); });
    sync_splitters();
  }
  __device__ __forceinline__ void sync_splitters() const { asm volatile("bar.sync 9, %0;" ::"n"(kThreads) : "memory"); }

  // `scales` hold factors of the rows already, if the side has any.
  template <int kRows>
  __device__ __forceinline__ void split(const char* rows, const Segments& side, float* scales,
                                        const float* minima) const {
    const bool normalizes = args.problem.normalize;
    Rows{thread, normalizes}.template split_rows<kRows, true>(
        ptx::shared_address(rows), side.dtype, kRows, side.scale ? scales : nullptr, minima,
        [&](int row, float unit, float factor, float square) {
          scales[row] = normalizes ? unit * inverse_norm(square) : unit * factor;
        });
  }
};

}  // namespace cuda
}  // namespace maxsim
