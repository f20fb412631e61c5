// Long rows of fp32 on Hopper, as pairs of fp16: what takes a stage apart between the copy engine and the products, and
// what adds the products of stages up.
#pragma once

#include "ptx/wgmma.cuh"
#include "sm90_deep_config.cuh"
#include "sm90_split.cuh"

namespace maxsim {
namespace cuda {

// Each row of a stage has a unit of its own, so that no feature has to be seen before it is needed. Teams of warps take
// turns at the stages: one multiplies and converts while others wait for shared memory.
template <class C>
struct Sm90DeepSplitter {
  static constexpr int kWarps = C::kMoreWarps / C::kTeams, kThreads = kWarps * 32;
  using Rows = RowSplitter<C::kAtoms, kWarps, C::kSplitBatch>;
  static_assert(C::kTeams <= 128 / kSplitFeatures + 1,
                "no more than a row has steps, which is longer than 128 features");

  const Sm90DeepArgs& args;
  Sm90Shared<C>& shared;
  uint32_t stages;  // shared address
  int team;
  unsigned thread;  // of the team

  __device__ __forceinline__ void run() const {
    Ring<C::kStages> ring;
    for (int i = 0; i < team; ++i) ring.advance();
    int step = team;
    while (true) {
      ptx::mbarrier_wait(&shared.full[ring.at], ring.phase);
      const int flags = shared.stages[ring.at].flags;
      if (flags & StageInfo::kEnd) break;
      const bool last = step + 1 == args.steps;
      split_queries(ring.at, last && flags & StageInfo::kNewQueries);
      split_tokens(ring.at);
      if (args.problem.normalize) add_squares(ring, step == 0, last, flags & StageInfo::kNewQueries);
      ptx::fence_async_proxy();
      ptx::mbarrier_arrive(&shared.scaled[ring.at]);
      step += C::kTeams;
      if (step >= args.steps) step -= args.steps;
      for (int i = 0; i < C::kTeams; ++i) ring.advance();
    }
    ptx::mbarrier_arrive(&shared.scaled[ring.at]);
  }

 private:
  __device__ __forceinline__ void split_queries(int stage, bool last_of_new) const {
    const auto [present, buffer] = shared.queries[stage];
    float* scales = shared.row_scale[buffer];
    const uint32_t rows = stages + stage * C::kStageBytes;
#pragma unroll 1
    for (int first = 0; first < present; first += C::kOperandRows)
      Rows{thread, args.problem.normalize}.template split_rows<C::kOperandRows, Rows::Size::four>(
          rows + first * C::kRowBytes, DType::f32, min(present - first, C::kOperandRows), nullptr, nullptr,
          [&](int row, float unit, float, float square) {
            shared.row_unit[stage][first + row] = unit;
            if (args.problem.normalize) shared.squares[stage][first + row] = square;
            if (last_of_new) scales[first + row] = 1.f;
          });
  }
  __device__ __forceinline__ void split_tokens(int stage) const {
    Rows{thread, args.problem.normalize}.template split_rows<C::N, Rows::Size::four>(
        stages + stage * C::kStageBytes + C::kQueryBytes, DType::f32, C::N, nullptr, nullptr,
        [&](int row, float unit, float, float square) {
          shared.token_unit[stage][row] = unit;
          if (args.problem.normalize) shared.squares[stage][C::kRows + row] = square;
        });
  }

  // Sums of squares go from a stage to the next one, and become factors behind the last features. Teams wait for each
  // other here, so that a stage's are not overwritten before they are read.
  __device__ __forceinline__ void add_squares(const Ring<C::kStages>& ring, bool first, bool last,
                                              bool new_queries) const {
    const int stage = ring.at, before = (stage == 0 ? C::kStages : stage) - 1;
    ptx::mbarrier_wait(&shared.scaled[before], stage == 0 ? ring.phase ^ 1 : ring.phase);
    asm volatile("bar.sync %0, %1;" ::"r"(9 + team), "n"(kThreads) : "memory");
    for (int row = thread; row < C::kRows + C::N; row += kThreads) {
      float& square = shared.squares[stage][row];
      if (!first) square += shared.squares[before][row];
      if (!last) continue;
      if (row >= C::kRows)
        shared.token_norm[stage][row - C::kRows] = inverse_norm(square);
      else if (new_queries && row < shared.queries[stage].rows)
        shared.row_scale[shared.queries[stage].buffer][row] = inverse_norm(square);
    }
  }
};

// A thread's sums of the products of all steps so far.
template <class C>
struct SplitSums {
  float value[C::N / 2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < C::N / 2; ++i) value[i] = 0.f;
  }

  // An atom of high parts and one of low parts of query rows and of a tile.
  __device__ __forceinline__ static void multiply(float (&products)[C::N / 2], uint32_t queries, uint32_t tile,
                                                  bool allow_tf32) {
    ptx::wgmma_fence();
    multiply_halves(allow_tf32, [&](auto query_low, auto low, bool adds) {
      constexpr int kQueryLow = decltype(query_low)::value, kLow = decltype(low)::value;
#pragma unroll
      for (int k = 0; k < 4; ++k)
        ptx::Wgmma<__half, C::N>::run(products,
                                      ptx::wgmma_descriptor(queries, kQueryLow * C::kOperandRows * 128 + k * 32),
                                      ptx::wgmma_descriptor(tile, kLow * C::N * 128 + k * 32), adds || k > 0);
    });
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    ptx::wgmma_settled(products);
  }

  // `row_unit`: of this thread's first row, and eight behind it of the other. `token_unit`: of its first column.
  __device__ __forceinline__ void add(const float (&products)[C::N / 2], const float* row_unit,
                                      const float* token_unit) {
    const float row[2] = {row_unit[0], row_unit[8]};
#pragma unroll
    for (int j = 0; j < C::N / 8; ++j) {
      const float2 token = *reinterpret_cast<const float2*>(token_unit + 8 * j);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        value[4 * j + e] = fmaf(products[4 * j + e], row[e / 2] * (e % 2 ? token.y : token.x), value[4 * j + e]);
    }
  }

  __device__ __forceinline__ void scale(const float* factors) {
#pragma unroll
    for (int j = 0; j < C::N / 8; ++j) {
      const float2 factor = *reinterpret_cast<const float2*>(factors + 8 * j);
#pragma unroll
      for (int e = 0; e < 4; ++e) value[4 * j + e] *= e % 2 ? factor.y : factor.x;
    }
  }
};

}  // namespace cuda
}  // namespace maxsim
