// MaxSim over residual documents on wgmma: a warpgroup's 64 rows are 16 tokens of each of its warps, decompressed in
// registers, and the columns are queries in shared memory.
#pragma once

#include "ptx/wgmma_registers.cuh"
#include "residual_prologue.cuh"
#include "sm90_residual_config.cuh"
#include "sm90_residual_scores.cuh"

namespace maxsim {
namespace cuda {

template <class E, int kBits, int kBlocks, int kCode>
__global__ void __launch_bounds__(kResidualThreads, Sm90Residual<kBlocks, kBits>::kPerSm)
    sm90_residual(const __grid_constant__ ResidualArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  using C = Sm90Residual<kBlocks, kBits>;
  using Table = Lookup<kBits>;
  __shared__ __align__(128) unsigned char lookup[kLookupBytes];
  __shared__ Sm90ResidualShared<kBlocks> shared;
  extern __shared__ __align__(16) unsigned char memory[];
  unsigned char* staged = memory + (-static_cast<uint32_t>(__cvta_generic_to_shared(memory)) & 1023);
  const Problem& problem = args.problem;
  const Segments& side = problem.documents;
  const StreamPlan& plan = args.stream;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int number = blockIdx.x * kResidualWarps + warp;
  const StreamParts parts(side, plan.warps, 1);

  const StreamLines<kBits, kCode, false> lines(args);
  for (int i = 0; i < kStreamAhead; ++i) {  // where the part begins, if offsets are in order
    const int64_t row = parts.base + int64_t{number} * parts.rows + 16 * i;
    lines.prefetch(static_cast<int32_t>(max(min(row, side.extent - 1), int64_t{0})));
  }
  const float multiplier = Table::template build<E>(lookup, args.index);
  asm volatile("griddepcontrol.wait;" ::: "memory");
  const int32_t document = __ldcg(plan.first_document + number);
  const bool out_of_order = placed_out_of_order(plan);
  constexpr int kChunksPerBlock = kQueryBlockBytes / 16;
  const uint4* columns_from = plan.columns + int64_t{blockIdx.y} * kBlocks * kChunksPerBlock;
#pragma unroll 4
  for (int i = threadIdx.x; i < kBlocks * kChunksPerBlock; i += kResidualThreads)
    reinterpret_cast<uint4*>(staged)[i] = __ldcg(columns_from + i);
  for (int i = threadIdx.x; i < kBlocks * 32; i += kResidualThreads)
    shared.factors[i / 32][i % 32] = __ldcg(plan.factors + int64_t{blockIdx.y} * kBlocks * 32 + i);
  if (threadIdx.x < kBlocks) {
    shared.kept[threadIdx.x] = __ldcg(plan.kept + int64_t{blockIdx.y} * kBlocks + threadIdx.x);
    shared.valid[threadIdx.x] = __ldcg(plan.valid + int64_t{blockIdx.y} * kBlocks + threadIdx.x);
  }
  ptx::fence_async_proxy();
  const bool in_order = !__syncthreads_or(out_of_order);

  TokenStream stream(
      side, in_order ? parts.part(number, document, side.count) : unordered_part(number, plan.warps, side.count));
  const int own_steps = stream.steps();
  if (lane == 0) shared.steps[warp] = own_steps;
  __syncthreads();
  int steps = 0;
  for (int w = 0; w < kResidualWarps; ++w) steps = max(steps, shared.steps[w]);
  steps = __shfl_sync(~0u, steps, 0);
  if (steps == 0) return;

  const uint32_t own = Table::own(), limit = StreamCode<kCode>::limit(args.index);
  uint32_t operand = ptx::wgmma_operand(static_cast<uint32_t>(__cvta_generic_to_shared(staged)));
  const int64_t per_group = kBlocks / args.chunks, first_query = blockIdx.y * per_group;
  Sm90ResidualScores<kBlocks> scores{args, shared, first_query,
                                     static_cast<int>(min(per_group, problem.queries.count - first_query))};
  int32_t others[2] = {-1, -1};
  PositiveColumns columns[kBlocks];
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) columns[b].reset();

  // Codes are read two steps ahead, what they stand for and buckets one.
  Step<E, kBits, 1, true> step;
  StreamCode<kCode> code, ahead;
  const auto load_code = [&](const StreamStep& of) { ahead.load(args.index.codes, min(of.row + lane % 16, of.last)); };
  const auto load_rows = [&](const StreamStep& of) {
#pragma unroll
    for (int j = 0; j < 2; ++j) step.packed[j].load(args, min(of.row + 8 * j + lane / 4, of.last));
  };
  StreamStep now = stream.next(), next = stream.next();
  load_code(now);
  code = ahead;
  load_rows(now);
  load_code(next);
  step.gather(args, code.known(limit) ? code.low : 0);
#pragma unroll 1
  for (int i = 0; i < steps; ++i) {
    asm volatile("" : "+r"(operand));  // else its sums with all offsets wait in registers
    const uint32_t unknown = __ballot_sync(~0u, !code.known(limit));
    float c[kBlocks > 1 ? 2 : 1][16];
    Factors<1> factors;
    step.add(args, lookup, own, multiplier);
    const StreamStep after = stream.next();
    code = ahead;
    load_rows(next);
    load_code(after);
    if constexpr (C::kPrefetch) lines.prefetch(after.row + kStreamAhead * 16);
    step.gather(args, code.known(limit) ? code.low : 0);
    factors.from_squares(step);
    factors.spoil(unknown);

    const auto multiply = [&](int b) {
      float (&sums)[16] = c[b % 2];
      ptx::wgmma_fence();
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const uint64_t at = ptx::wgmma_descriptor(operand, b * kQueryBlockBytes + s / 4 * 4096 + s % 4 * 32);
        ptx::WgmmaRegisters<E>::run(sums, step.rows[0][s], at, s > 0);
      }
      ptx::wgmma_commit();
    };
    multiply(0);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {  // a block's maxima are taken while the next one's products are on their way
      if (b + 1 < kBlocks) {
        multiply(b + 1);
        ptx::wgmma_wait<1>();
      } else {
        ptx::wgmma_wait<0>();
      }
      ptx::wgmma_settled(c[b % 2]);
      columns[b].take(c[b % 2], factors.low[0], factors.high[0]);
    }
    if (now.ends) scores.finish(columns, now.document, now.split, now.began, others);
    now = next;
    next = after;
  }
  if (others[0] >= 0 || others[1] >= 0) scores.meet(parts, number, others);
#endif
}

}  // namespace cuda
}  // namespace maxsim
