// MaxSim over residual documents whose lengths are stored: wgmma adds products of weights to the centroids'
// similarities. Steps are 16 rows of the index each, wherever documents begin.
#pragma once

#include "ptx/wgmma_registers.cuh"
#include "residual_prologue.cuh"
#include "sm90_residual_config.cuh"
#include "sm90_residual_scores.cuh"

namespace maxsim {
namespace cuda {

// What a lane has of 16 tokens, two of them: `code` and `inverse` of the step that comes after next, `packed` of the
// next one. All loads stand where they are written: what is asked for a little later is waited for a little longer.
template <int kBits, int kCode>
struct StoredTokens {
  StreamCode<kCode> code[2];
  float inverse[2];
  PackedShare<kBits> packed[2];

  __device__ __forceinline__ void load_codes(const CodeView& codes, const float* inverse_norms, int32_t row) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      code[j].load(codes, row + int64_t{8 * j});
      inverse[j] = __uint_as_float(ptx::load_4_now(inverse_norms + row + int64_t{8 * j}));
    }
  }
  __device__ __forceinline__ void load_packed(const unsigned char* bytes, int32_t row) {
#pragma unroll
    for (int j = 0; j < 2; ++j) packed[j].load(bytes + (row + int64_t{8 * j}) * (16 * kBits));
  }
  // What their products are multiplied by, NaN without a centroid.
  __device__ __forceinline__ void gather(const uint4* table, uint32_t limit, float unit, uint4 (&similarities)[2],
                                         float (&factors)[2]) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const bool known = code[j].known(limit);
      similarities[j] = ptx::load_16_of_l2_now(table + 4 * uint64_t{known ? code[j].low : 0});
      factors[j] = known ? inverse[j] * unit : __int_as_float(0x7fc00000);
    }
  }
};

template <int kBits, int kCode>
__global__ void __launch_bounds__(kResidualThreads, Sm90ResidualTable::kPerSm)
    sm90_residual_table(const __grid_constant__ ResidualArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  using Table = Lookup<kBits, true>;
  __shared__ __align__(1024) unsigned char staged[kQueryBlockBytes];
  __shared__ Sm90ResidualShared<1> shared;
  extern __shared__ __align__(16) unsigned char memory[];
  unsigned char* const lookup =
      memory + (-static_cast<uint32_t>(__cvta_generic_to_shared(memory)) & (kLookupBytes - 1));
  const Segments& side = args.problem.documents;
  const StreamPlan& plan = args.stream;
  const int group = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int number = blockIdx.x * kResidualWarps + warp;
  // Steps behind the end are those in front of it again, of no document.
  const int32_t most = static_cast<int32_t>(side.extent) - 16;
  int32_t first, beyond;
  const auto row_of = [&](int step) { return first + min(16 * step, beyond); };
  const StreamLines<kBits, kCode, true> lines(args);
  // Where a lane's own tokens are, of the first 16 rows.
  const int token = lane / 4;
  CodeView codes = args.index.codes;
  codes.data = static_cast<const char*>(codes.data) + token * kCode;
  const float* inverse_norms = args.index.inverse_norms + token;
  const unsigned char* bytes = args.index.bytes + (4 * token + lane % 4) * (4 * kBits);
  asm volatile("" : "+l"(codes.data), "+l"(inverse_norms), "+l"(bytes));
  StoredTokens<kBits, kCode> tokens, begin;
  const auto begin_part = [&](int64_t base, int32_t rows) {
    first = static_cast<int32_t>(max(min(base + int64_t{number} * rows, int64_t{most}), int64_t{0}));
    beyond = most - first;
    asm volatile("" : "+r"(first), "+r"(beyond));  // else they are worked out again at every step
    begin.load_codes(codes, inverse_norms, row_of(0));
    tokens.load_packed(bytes, row_of(0));
    tokens.load_codes(codes, inverse_norms, row_of(1));
    for (int i = 0; i < Sm90ResidualTable::kAhead; ++i) lines.prefetch(row_of(i));
  };
  // Documents nearly always have all rows: tokens are on their way before the offsets have said so.
  begin_part(0, plan.likely_rows);
  const StreamParts parts(side, plan.warps, 16);
  if (parts.base != 0 || parts.rows != plan.likely_rows) begin_part(parts.base, parts.rows);
  const int32_t steps = parts.rows / 16;

  asm volatile("griddepcontrol.wait;" ::: "memory");
  // Everything is asked for before anything is waited for. Where the document's tokens are is asked when it is known.
  const auto document = static_cast<int32_t>(ptx::load_4_of_l2_now(plan.first_document + number));
  const float unit = plan.units[group];
  const bool out_of_order = placed_out_of_order(plan);
  constexpr int kBlockChunks = kQueryBlockBytes / 16, kChunksPerThread = kBlockChunks / kResidualThreads;
  uint4 chunks[kChunksPerThread];
#pragma unroll
  for (int i = 0; i < kChunksPerThread; ++i)
    chunks[i] = plan.columns[group * kBlockChunks + i * kResidualThreads + threadIdx.x];
  const typename Table::Pieces pieces(plan.entries);
  if (threadIdx.x < 32) shared.factors[0][lane] = __ldcg(plan.factors + group * 32 + lane);
  if (threadIdx.x == 0) shared.kept[0] = __ldcg(plan.kept + group), shared.valid[0] = __ldcg(plan.valid + group);
  const uint4* const table = plan.table + 4 * group * args.index.centroid_count + lane % 4;
  const uint32_t own = static_cast<uint32_t>(__cvta_generic_to_shared(lookup)) | Table::own();
  const uint32_t limit = StreamCode<kCode>::limit(args.index);
  uint4 similarities[2];
  float factors[2][2];  // of this step and the next
  begin.gather(table, limit, unit, similarities, factors[0]);
  TokenStream stream(side, parts.part(number, document, side.count));
  stream.look();
#pragma unroll
  for (int i = 0; i < kChunksPerThread; ++i)
    reinterpret_cast<uint4*>(staged)[i * kResidualThreads + threadIdx.x] = chunks[i];
  pieces.write(lookup);
  ptx::fence_async_proxy();
  if (__syncthreads_or(out_of_order)) {  // which leaves nothing to share out
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kResidualThreads + threadIdx.x; i < side.count;
         i += static_cast<int64_t>(gridDim.x) * kResidualThreads)
      args.scores[group * side.count + i] = __int_as_float(0x7fc00000);
    return;
  }
  const auto advance = [&] {
    if (!stream.advance()) stream.row = stream.end = INT32_MAX;
  };
  advance();

  uint32_t operand = ptx::wgmma_operand(static_cast<uint32_t>(__cvta_generic_to_shared(staged)));
  Sm90ResidualScores<1> scores{args, shared, group, 1};
  int32_t others[2] = {-1, -1};
  PositiveColumns columns[1];
  columns[0].reset();
  uint32_t rows[2][kSteps][4];
  float c[16];
  // Of step i. What its successors need is asked for before its products: to issue these is to wait for three warps.
  const auto multiply = [&](int i, const uint32_t (&of)[kSteps][4], float (&next_factors)[2]) {
    asm volatile("" : "+r"(operand));  // else its sums with all offsets wait in registers
    start_products(similarities, c);
    tokens.gather(table, limit, unit, similarities, next_factors);
    tokens.load_packed(bytes, row_of(i + 1));
    tokens.load_codes(codes, inverse_norms, row_of(i + 2));
    lines.prefetch(row_of(i + Sm90ResidualTable::kAhead));
    ptx::wgmma_fence();
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      ptx::WgmmaRegisters<__half>::run(c, of[s], ptx::wgmma_descriptor(operand, s / 4 * 4096 + s % 4 * 32), true);
    ptx::wgmma_commit();
  };
  weights_of<kBits>(tokens.packed, own, rows[0]);
  multiply(0, rows[0], factors[1]);

  // Step i ends, while its successor waits to be multiplied and what comes behind that is on its way.
  const auto step = [&](int i, auto parity) {
    constexpr int kNow = decltype(parity)::value, kNext = 1 - kNow;
    weights_of<kBits>(tokens.packed, own, rows[kNext]);
    ptx::wgmma_wait<0>();
    ptx::wgmma_settled(c);
    for (auto& of : rows[kNow]) ptx::wgmma_read(of);
    const float low = factors[kNow][0], high = factors[kNow][1];
    const float low_above = fmaf(-SimilarityScale::kZero, low, PositiveColumns::kAbove);
    const float high_above = fmaf(-SimilarityScale::kZero, high, PositiveColumns::kAbove);
    const int32_t row = row_of(i);
    if (row >= stream.row && row + 16 < stream.end) {
      columns[0].take_some(c, low, high, low_above, high_above, true, true);
    } else {
      while (true) {
        const int32_t own_row = row + token;
        columns[0].take_some(c, low, high, low_above, high_above, own_row >= stream.row && own_row < stream.end,
                             own_row + 8 >= stream.row && own_row + 8 < stream.end);
        if (stream.end > row + 16) break;
        scores.finish(columns, stream.document(), stream.is_split(), stream.has_begun(), others);
        advance();
        if (stream.row >= row + 16) break;
      }
    }
    if (i + 1 == steps) return false;
    multiply(i + 1, rows[kNext], factors[kNow]);
    return true;
  };
  for (int i = 0;; i += 2) {
    if (!step(i, std::integral_constant<int, 0>{})) break;
    if (!step(i + 1, std::integral_constant<int, 1>{})) break;
  }
  if (others[0] >= 0 || others[1] >= 0) scores.meet(parts, number, others);
#endif
}

}  // namespace cuda
}  // namespace maxsim
