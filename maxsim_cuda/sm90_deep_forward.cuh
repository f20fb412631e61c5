// Forward on Hopper for rows too long to stay in shared memory: query rows and document tiles come through the ring
// together, some features at a time, as in a matrix product; then the maximum, as in sm90_forward.cuh.
#pragma once

#include "ptx/wgmma_152.cuh"
#include "row_max.cuh"
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
    ptx::mbarrier_wait(C::kSplit ? &shared.scaled[ring.at] : &shared.full[ring.at], ring.phase);
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
      const auto take_all = [&](const auto& values) {
        take_products(values, rows, TokensFrom{info.first_token}, lane % 4 * 2, full, info.bits,
                      ColumnScale<false>{nullptr});
      };
      if constexpr (C::kSplit) {
        if (args.problem.normalize) sums.scale(&shared.token_norm[ring.at][lane % 4 * 2]);
        take_all(sums.value);
      } else {
        take_all(products[half]);
      }
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
  extern __shared__ char dynamic[];
  __shared__ Sm90Shared<C> shared;
  static_assert(C::kSharedBytes + sizeof(Sm90Shared<C>) <= 227 * 1024, "what a block can have");
  char* stages = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(dynamic) + 1023) & ~uintptr_t{1023});
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0), warp = threadIdx.x % 128 / 32;
  // Shuffled to stay in a register: the compiler would rather read the special one again at every use, and wait for it.
  const int lane = __shfl_xor_sync(~0u, threadIdx.x % 32, 0);
  if (threadIdx.x == 0) {
    if (!C::kSplit || args.tma) {
      ptx::tma_prefetch(&document_map);
      ptx::tma_prefetch(&query_map);
    }
    shared.init(C::kSplit && !args.tma ? 1 + kLoaderWarps : 0);
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
    if (C::kSplit && group > C::kGroups) {
      if constexpr (C::kSplit) {
        const unsigned splitter = threadIdx.x - (C::kGroups + 1) * 128;
        constexpr unsigned kThreads = Sm90DeepSplitter<C>::kThreads;
        Sm90DeepSplitter<C>{args, shared, ptx::shared_address(stages), static_cast<int>(splitter / kThreads),
                            splitter % kThreads}
            .run();
      }
    } else if (warp == kFinisherWarp) {
      Sm90Finisher<C, T, kArgmax, C::kSplit ? Columns::units : Columns::plain>{args, shared, lane}.run();
    } else if (warp == kProducerWarp || (C::kSplit && !args.tma)) {
      Sm90DeepProducer<C>{args, query_map, document_map, shared, stages, warp, lane}.run();
    }
  }
}

}  // namespace cuda
}  // namespace maxsim
