// Splits operands of the Hopper forward where they lie in shared memory, between the copy engine and the products.
#pragma once

#include "ptx/shared.cuh"
#include "sm90_shared.cuh"
#include "split.cuh"

namespace maxsim {
namespace cuda {

// Eight lanes share a row of kAtoms * 32 features. Row by row the 128-byte atoms of what was loaded become, in pairs,
// atoms of high parts and atoms of low parts, which take the same space as fp32 does. The order of features within a
// product is free: lane c's are 4 c on and 32 + 4 c on of each 64.
template <class C>
struct Sm90Splitter {
  const ForwardArgs& args;
  Sm90Shared<C>& shared;
  uint32_t queries, tiles;  // shared addresses
  int thread;

  __device__ __forceinline__ void run() {
    Ring<C::kStages> ring;
    Ring<C::kQueryBuffers> buffer;
    while (true) {
      ptx::mbarrier_wait(&shared.full[ring.at], ring.phase);
      const int flags = shared.stages[ring.at].flags;
      if (flags & StageInfo::kEnd) break;
      if (flags & StageInfo::kNewQueries) {
        ptx::mbarrier_wait(&shared.queries_full[buffer.at], buffer.phase);
        for (int first = 0; first < C::kRows; first += 64)
          split_rows<64>(queries + buffer.at * C::kQueryBytes + first * C::kAtoms * 128, args.problem.queries.dtype,
                         &shared.row_scale[buffer.at][first], static_cast<bool>(args.problem.queries.scale), nullptr);
        buffer.advance();
      }
      const Segments& documents = args.problem.documents;
      split_rows<C::N>(tiles + ring.at * C::kTileBytes, documents.dtype, shared.token_scale[ring.at],
                       static_cast<bool>(documents.scale), documents.minimum ? shared.token_minimum[ring.at] : nullptr);
      ptx::fence_async_proxy();
      arrive(ring.at);
      ring.advance();
    }
    arrive(ring.at);
  }

  static constexpr int kArrivals = C::kMoreWarps * 4;  // of those who write factors, a lane of each eight

 private:
  __device__ __forceinline__ void arrive(int stage) const {
    __syncwarp();
    if (thread % 8 == 0) ptx::mbarrier_arrive(&shared.scaled[stage]);
  }

  static constexpr int kValues = C::kAtoms * 4;             // of a row, a lane's
  static constexpr int kStep = C::kMoreWarps * 4;           // rows a step
  static constexpr int kBatch = C::kMoreWarps > 8 ? 1 : 2;  // steps at once, to hide latencies with few warps

  // Bytes of a value as it was loaded.
  enum class Size { one, two, four };

  // `scaled`: `scales` hold factors of the rows already. `minima` is null where none are added.
  template <int kRows>
  __device__ __forceinline__ void split_rows(uint32_t rows, DType dtype, float* scales, bool scaled,
                                             const float* minima) const {
    if (dtype == DType::f32)
      split_rows<kRows, Size::four>(rows, dtype, scales, scaled, minima);
    else if (is_stored(dtype))
      split_rows<kRows, Size::one>(rows, dtype, scales, scaled, minima);
    else
      split_rows<kRows, Size::two>(rows, dtype, scales, scaled, minima);
  }

  template <int kRows, Size kSize>
  __device__ __forceinline__ void split_rows(uint32_t rows, DType dtype, float* scales, bool scaled,
                                             const float* minima) const {
    static_assert(kRows % 4 == 0, "a warp has four rows a step, all there or none");
#pragma unroll 1
    for (int first = thread / 8; first < kRows; first += kBatch * kStep) {
      float value[kBatch][kValues] = {}, largest[kBatch], square[kBatch] = {}, factor[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (const int row = first + b * kStep; row < kRows) {
          load<kRows, kSize>(rows, dtype, row, value[b]);
          factor[b] = scaled ? scales[row] : 1.f;
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
      for (int step = 1; step <= 4; step *= 2)
#pragma unroll
        for (int b = 0; b < kBatch; ++b) largest[b] = fmaxf(largest[b], __shfl_xor_sync(~0u, largest[b], step));
      if (args.problem.normalize)
#pragma unroll
        for (int b = 0; b < kBatch; ++b) square[b] = sum_of_squares(value[b]);
      __syncwarp();  // the rows have been read
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (first + b * kStep < kRows) {
          const float unit = unit_of(largest[b]);
          store<kRows>(rows, first + b * kStep, value[b], inverse_unit(unit));
          if (thread % 8 == 0)
            scales[first + b * kStep] = args.problem.normalize ? unit * inverse_norm(square[b]) : unit * factor[b];
        }
    }
  }

  __device__ __forceinline__ static float sum_of_squares(const float (&value)[kValues]) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kValues; ++i) sum = fmaf(value[i], value[i], sum);
#pragma unroll
    for (int step = 1; step <= 4; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    return sum;
  }

  template <int kRows, Size kSize>
  __device__ __forceinline__ void load(uint32_t rows, DType dtype, int row, float (&value)[kValues]) const {
    const int lane = thread % 8;
#pragma unroll
    for (int i = 0; i < C::kAtoms; ++i) {
      if constexpr (kSize == Size::four) {
        const uint4 raw = ptx::load_shared_16(rows + swizzled(kRows, row, i * 8 + lane));
        const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int k = 0; k < 4; ++k) value[4 * i + k] = __uint_as_float(words[k]);
      } else if constexpr (kSize == Size::one) {  // signs are four bits of a byte
        const int byte = i * 4 + lane / 2;
        const uint32_t raw = dtype == DType::bit
                                 ? ptx::load_shared_1(rows + swizzled(kRows, row, 0) + byte) >> lane % 2 * 4
                                 : ptx::load_shared_4(rows + swizzled(kRows, row, i * 2 + lane / 4) + lane % 4 * 4);
        widen_stored(dtype, raw, value + 4 * i);
      } else {
        const int chunk = i / 2 * 8 + i % 2 * 4 + lane / 2;
        widen(dtype, ptx::load_shared_8(rows + swizzled(kRows, row, chunk) + lane % 2 * 8), value + 4 * i);
      }
    }
  }

  template <int kRows>
  __device__ __forceinline__ void store(uint32_t rows, int row, const float (&value)[kValues], float inverse) const {
#pragma unroll
    for (int pair = 0; pair < C::kAtoms / 2; ++pair) {
      uint32_t high[4], low[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        split_pair(value[8 * pair + 2 * i], value[8 * pair + 2 * i + 1], inverse, high[i], low[i]);
      const uint32_t to = rows + swizzled(kRows, row, pair * 16 + thread % 8);
      ptx::store_shared_16(to, make_uint4(high[0], high[1], high[2], high[3]));
      ptx::store_shared_16(to + kRows * 128, make_uint4(low[0], low[1], low[2], low[3]));
    }
  }
};

}  // namespace cuda
}  // namespace maxsim
