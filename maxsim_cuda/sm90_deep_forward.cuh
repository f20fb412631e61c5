// Forward on Hopper for rows too long to stay in shared memory: query rows and document tiles come through the ring
// together, some features at a time, as in a matrix product; then the maximum, as in sm90_forward.cuh.
#pragma once

#include "ptx/wgmma_152.cuh"
#include "row_max.cuh"
#include "sm90_deep_prepare.cuh"
#include "sm90_deep_producer.cuh"
#include "sm90_deep_split.cuh"
#include "sm90_finisher.cuh"

namespace maxsim {
namespace cuda {

template <class C, class T, bool kArgmax>
struct Sm90DeepConsumer {
  const Sm90DeepArgs& args;
  Sm90Shared<C>& shared;
  uint32_t queries, tiles;  // wgmma operands: this warpgroup's rows and the tile of the first stage
  int group, warp, lane;
  float products[C::kHalves][C::N / 2];
  std::conditional_t<C::kSplit, SplitSums<C>, Nothing> sums;  // of the products of all steps
  RowState<kArgmax> rows;
  Ring<C::kStages> ring;
  Ring<C::kQueryBuffers> buffer;
  Ring<Sm90Shared<C>::kFinished> finished{0, 1};
  bool any_token;   // the open document has kept one so far
  bool live, idle;  // this warpgroup's rows, and not this warp's, belong to a query

  __device__ __forceinline__ void wait_stage() {
    ptx::mbarrier_wait(C::kPrepares ? &shared.scaled[ring.at] : &shared.full[ring.at], ring.phase);
  }
  __device__ __forceinline__ void release(int stage) { ptx::mbarrier_arrive(&shared.empty[stage]); }

  // Products over all steps of a tile of kUsed halves. Its last stage, which describes it, is not released.
  template <int kUsed>
  __device__ __forceinline__ void multiply() {
    issue<kUsed>(false);
    for (int step = 1; step < args.steps; ++step) {
      const int before = ring.at;
      ring.advance();
      wait_stage();
      issue<kUsed>(true);
      ptx::wgmma_wait<1>();
      release(before);
    }
    ptx::wgmma_wait<0>();
#pragma unroll
    for (int half = 0; half < kUsed; ++half) ptx::wgmma_settled(products[half]);
  }
  template <int kUsed>
  __device__ __forceinline__ void issue(bool adds) {
    const uint32_t place = ring.at * (C::kStageBytes / 16);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int half = 0; half < kUsed; ++half)
        ptx::Wgmma<T, C::N>::run(products[half], ptx::wgmma_descriptor(queries + place, k * 32),
                                 ptx::wgmma_descriptor(tiles + place, half * C::kHalfBytes + k * 32), adds || k > 0);
    ptx::wgmma_commit();
  }
  // The same of split rows, whose products of a step have units of their own.
  __device__ __forceinline__ void multiply_split() {
    sums.clear();
    for (int step = 0;; ++step) {
      sums.multiply(products[0], queries + ring.at * (C::kStageBytes / 16), tiles + ring.at * (C::kStageBytes / 16),
                    args.allow_tf32);
      if (!__shfl_sync(~0u, idle, 0))
        sums.add(products[0], &shared.row_unit[ring.at][first_row()], &shared.token_unit[ring.at][lane % 4 * 2]);
      if (step + 1 == args.steps) return;
      release(ring.at);
      ring.advance();
      wait_stage();
    }
  }
  // The same without a product, for rows of no query.
  __device__ __forceinline__ void pass() {
    for (int step = 0; step + 1 < args.steps; ++step) {
      wait_stage();
      release(ring.at);
      ring.advance();
    }
    wait_stage();
  }

  template <int kUsed>
  __device__ __forceinline__ void take() {
    if (__shfl_sync(~0u, idle, 0)) return;
#pragma unroll
    for (int half = 0; half < kUsed; ++half) {
      const StageInfo& info = half ? shared.second[ring.at] : shared.stages[ring.at];
      const bool full = __shfl_sync(~0u, info.flags, 0) & StageInfo::kFull;
      const auto take_all = [&](auto& values) {
        if (C::kPrepares && args.problem.normalize)
          scale(values, &shared.squares[ring.at][C::kRows + half * C::N + lane % 4 * 2]);
        take_products(values, rows, TokensFrom{info.first_token}, lane % 4 * 2, full, info.bits,
                      ColumnScale<false>{nullptr});
      };
      if constexpr (C::kSplit)
        take_all(sums.value);
      else
        take_all(products[half]);
    }
  }
  // `factors`: from this thread's first column on.
  __device__ __forceinline__ static void scale(float (&values)[C::N / 2], const float* factors) {
#pragma unroll
    for (int j = 0; j < C::N / 8; ++j) {
      const float2 factor = *reinterpret_cast<const float2*>(factors + 8 * j);
#pragma unroll
      for (int e = 0; e < 4; ++e) values[4 * j + e] *= e % 2 ? factor.y : factor.x;
    }
  }

  // Of the two that this thread holds, eight apart.
  __device__ __forceinline__ int first_row() const { return group * 64 + warp * 16 + lane / 4; }

  // Hands the open document's maxima to the finisher.
  __device__ __forceinline__ void hand_over(int64_t target, int flags) {
    ptx::mbarrier_wait(&shared.finished_empty[finished.at], finished.phase);
    rows.reduce();
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (lane % 4 == 0 && first_row() < C::kRows) {
        shared.maxima[finished.at][first_row() + r * 8] = rows.best[r];
        if (kArgmax) shared.winners[finished.at][first_row() + r * 8] = rows.winner[r];
      }
    rows.reset();
    close(target, flags | (any_token ? StageInfo::kAnyToken : 0));
    any_token = false;
  }
  __device__ __forceinline__ void close(int64_t target, int flags) {
    if (group == 0 && warp == 0 && lane == 0) shared.finished[finished.at] = {target, flags, buffer.at};
    ptx::mbarrier_arrive(&shared.finished_full[finished.at]);
    finished.advance();
  }

  __device__ __forceinline__ void run() {
    any_token = live = idle = false;
    buffer = {C::kQueryBuffers - 1, 1};  // the first queries advance it
    rows.reset();
    while (true) {
      wait_stage();
      const int opening = __shfl_sync(~0u, shared.stages[ring.at].flags, 0);
      if (opening & StageInfo::kEnd) break;
      if (opening & StageInfo::kNewQueries) {
        buffer.advance();
        ptx::mbarrier_wait(&shared.queries_full[buffer.at], buffer.phase);
        constexpr int kMine = C::kBlocks / C::kGroups;
        const BlockInfo* blocks = &shared.blocks[buffer.at][group * kMine];
        live = blocks[0].kept || (kMine > 1 && blocks[kMine - 1].kept);
        idle = warp / 2 >= kMine || blocks[warp / 2].kept == 0;
      }
      if (!__shfl_sync(~0u, live, 0)) {
        pass();
      } else if constexpr (C::kSplit) {
        multiply_split();
        take<1>();
      } else if (opening & Sm90Shared<C>::kTwo) {
        multiply<2>();
        take<2>();
      } else {
        multiply<1>();
        take<1>();
      }
      const StageInfo& info = shared.stages[ring.at];
      const int flags = __shfl_sync(~0u, info.flags, 0);
      const int other = flags & Sm90Shared<C>::kTwo ? shared.second[ring.at].flags : 0;
      any_token |= ((flags | other) & StageInfo::kAnyToken) != 0;
      const int64_t target = info.target;
      release(ring.at);
      ring.advance();
      if (flags & StageInfo::kLast) hand_over(target, flags & (StageInfo::kInvalid | StageInfo::kRelease));
    }
    ptx::mbarrier_wait(&shared.finished_empty[finished.at], finished.phase);
    close(0, StageInfo::kEnd);
  }
};

template <class C, class T, bool kArgmax>
__global__ void __launch_bounds__(C::kThreads, 1)
    sm90_deep_forward(const __grid_constant__ Sm90DeepArgs args, const __grid_constant__ CUtensorMap query_map,
                      const __grid_constant__ CUtensorMap document_map) {
  // Operands begin at multiples of 1024, and so does what comes behind a whole number of them.
  extern __shared__ __align__(1024) char stages[];
  __shared__ Sm90Shared<C> shared;
  static_assert(alignof(Sm90Shared<C>) == 1024 && C::kSharedBytes + sizeof(Sm90Shared<C>) <= 227 * 1024,
                "what a block can have");
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0), warp = threadIdx.x % 128 / 32;
  // Shuffled to stay in a register: the compiler would rather read the special one again at every use, and wait for it.
  const int lane = __shfl_xor_sync(~0u, threadIdx.x % 32, 0);
  if (threadIdx.x == 0) {
    if (!C::kLoads) {
      ptx::tma_prefetch(&document_map);
      ptx::tma_prefetch(&query_map);
    }
    shared.init();
  }
  __syncthreads();
  if (group < C::kGroups) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(C::kMathRegisters));
    Sm90DeepConsumer<C, T, kArgmax>{
        args,
        shared,
        ptx::wgmma_operand(ptx::shared_address(stages) + group * C::kOperandRows * C::kRowBytes),
        ptx::wgmma_operand(ptx::shared_address(stages) + C::kQueryBytes),
        group,
        warp,
        lane}
        .run();
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(C::kOtherRegisters));
    if (C::kPrepares && group > C::kGroups) {
      if constexpr (C::kPrepares) {
        using Preparer = Sm90DeepPreparer<C, T>;
        const unsigned thread = threadIdx.x - (C::kGroups + 1) * 128;
        Preparer{args, shared, ptx::shared_address(stages), static_cast<int>(thread / Preparer::kThreads),
                 thread % Preparer::kThreads}
            .run();
      }
    } else if (warp == kFinisherWarp) {
      Sm90Finisher<C, T, kArgmax, C::kPrepares ? Columns::units : Columns::plain>{args, shared, lane}.run();
    } else if (warp == kProducerWarp) {
      Sm90DeepProducer<C>{args, query_map, document_map, shared, stages, lane}.run();
    }
  }
}

}  // namespace cuda
}  // namespace maxsim
