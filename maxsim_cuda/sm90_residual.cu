// Which residual documents the Hopper kernel takes, and in how many blocks.
#include <algorithm>
#include <type_traits>

#include "forward_args.cuh"
#include "residual_args.cuh"
#include "sm90_residual_config.cuh"
#include "sm90_residual_select.h"

namespace maxsim {
namespace cuda {
namespace {

// Similarities of every centroid are worth computing for a block of queries each against more tokens than centroids. A
// power of two brings them into their range, and the weights with them, which must remain halves.
bool wants_table(const Problem& problem, const Residuals& r, int64_t chunks) {
  constexpr float kShortest = 1.f / 64, kLongest = 16.f;
  return r.inverse_norms && r.centroid_type == DType::f16 && chunks == 1 &&
         problem.queries.count <= Sm90ResidualTable::kMostQueries && r.centroid_norm >= kShortest &&
         r.centroid_norm <= kLongest && problem.documents.extent >= std::max<int64_t>(16, r.centroid_count);
}

// Parts of the workspace, one behind another; `bytes` gets how many there are.
StreamPlan stream_plan(const Residuals& r, const Segments& documents, const StreamGrid& grid, char* workspace,
                       int64_t* bytes) {
  int64_t used = 0;
  const auto take = [&](auto*& part, int64_t count) {
    part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(workspace + used);
    used += ceil_div(count * static_cast<int64_t>(sizeof(*part)), 256) * 256;
  };
  StreamPlan plan{};
  plan.groups = static_cast<int32_t>(grid.groups);
  plan.warps = static_cast<int32_t>(grid.blocks * kResidualWarps);
  plan.placing = static_cast<int32_t>(std::min(grid.prologue * (grid.table ? grid.groups : 1),
                                               std::max<int64_t>(1, ceil_div(documents.count, kResidualThreads))));
  const int64_t warps = grid.groups * plan.warps, blocks = grid.groups * grid.width;
  plan.likely_rows = part_rows(documents.extent, plan.warps, 16);
  take(plan.out_of_order, plan.placing);
  take(plan.first_document, plan.warps);
  take(plan.arrivals, warps);
  take(plan.partials, warps * 2 * grid.width * 32);
  take(plan.columns, blocks * (kQueryBlockBytes / 16));
  take(plan.factors, blocks * 32);
  take(plan.kept, blocks);
  take(plan.valid, blocks);
  take(plan.entries, grid.table ? 256 * 4 : 0);
  take(plan.units, grid.groups);
  take(plan.table, grid.table ? grid.groups * r.centroid_count * 4 : 0);
  if (bytes) *bytes = used;
  return plan;
}

}  // namespace

StreamGrid sm90_residual_grid(const Problem& problem, const Residuals& r, int64_t chunks) {
  StreamGrid grid;
  const Segments& documents = problem.documents;
  const bool takes = problem.pairing == Pairing::cross && problem.argmax_width == kNoArgmax && documents.packed() &&
                     !documents.mask && r.normalize && r.dim == kMaxResidualDim && r.codes.bytes > 1 &&
                     documents.count <= INT32_MAX && chunks <= kStreamBlocks;
  if (!takes) return grid;
  static_assert(Sm90ResidualTable::kPerSm == Sm90Residual<1, 2>::kPerSm, "one grid for both");
  grid.table = wants_table(problem, r, chunks);
  grid.width = grid.table || problem.queries.count * chunks == 1 ? 1 : kStreamBlocks;
  const int64_t groups = ceil_div(problem.queries.count, grid.width / chunks);
  if (groups > 65535) return grid;
  grid.groups = groups;
  const int sms = current_device().sms;
  const int per_sm = grid.width > 1 ? Sm90Residual<kStreamBlocks, 2>::kPerSm : Sm90Residual<1, 2>::kPerSm;
  const int64_t resident = std::max<int64_t>(1, int64_t{per_sm} * sms / groups);
  grid.blocks = std::max<int64_t>(1, std::min(resident, ceil_div(documents.extent, kLeastPart * kResidualWarps)));
  const int64_t wanted = grid.table ? ceil_div(r.centroid_count, 16 * kResidualWarps) + 1
                                    : std::max(groups * grid.width, ceil_div(documents.count, kResidualThreads));
  grid.prologue =
      std::max<int64_t>(1, std::min<int64_t>(wanted, int64_t{kProloguePerSm} * sms / (grid.table ? groups : 1)));
  stream_plan(r, documents, grid, nullptr, &grid.bytes);
  return grid;
}

void sm90_residual(ResidualArgs args, const StreamGrid& grid, void* workspace, cudaStream_t stream) {
  args.stream = stream_plan(args.index, args.problem.documents, grid, static_cast<char*>(workspace), nullptr);
  args.index.centroid_type == DType::f16 ? sm90_residual_f16(args, grid, stream)
                                         : sm90_residual_bf16(args, grid, stream);
}

}  // namespace cuda
}  // namespace maxsim
