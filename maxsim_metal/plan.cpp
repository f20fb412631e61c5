// Turns a problem into launches. Everything a kernel is told about a call is decided here.
#include "plan.h"

#include <algorithm>

namespace maxsim {
namespace metal_backend {
namespace {

// Grids stay far below any limit of the hardware; kernels walk on in steps of the grid.
constexpr int64_t kMaxGridX = 1024;
constexpr int64_t kMaxGridY = 65535;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t token_rows(const Segments& side) { return side.packed() ? side.extent : side.count * side.extent; }

Element element_of(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return Element::f16;
    case DType::bf16:
      return Element::bf16;
    default:
      return Element::f32;
  }
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return "f16";
    case DType::bf16:
      return "bf16";
    default:
      return "f32";
  }
}

const char* name_of(Format format) {
  switch (format) {
    case Format::residual:
      return "maxsim_residual_";
    case Format::bytes:
      return "maxsim_bytes_";
    default:
      return "maxsim_forward_";
  }
}

// Tiles hold both sides in one type: the inputs' own where they agree, else fp32, which holds either exactly.
DType tile_dtype(const Problem& problem) {
  return problem.queries.dtype == problem.documents.dtype ? problem.queries.dtype : DType::f32;
}

bool vectorised(const Segments& side, DType tile, int64_t byte_offset) {
  const int64_t vector = 4 * element_size(tile);
  const auto aligned = [](int64_t stride) { return stride % 4 == 0; };
  return side.dtype == tile && side.feature_stride == 1 && byte_offset % vector == 0 && aligned(side.token_stride) &&
         (side.packed() || (aligned(side.segment_stride.outer) && aligned(side.segment_stride.inner)));
}

SideParams side_params(const Segments& side) {
  SideParams params{};
  params.count = side.count;
  params.extent = side.extent;
  params.inner = side.inner;
  params.token_stride = side.token_stride;
  params.feature_stride = side.feature_stride;
  params.outer_stride = side.segment_stride.outer;
  params.inner_stride = side.segment_stride.inner;
  params.mask_token_stride = side.mask_token_stride;
  params.mask_outer_stride = side.mask_stride.outer;
  params.mask_inner_stride = side.mask_stride.inner;
  params.element = element_of(side.dtype);
  params.packed = side.packed();
  params.has_mask = side.mask != nullptr;
  if (side.packed()) {
    params.extents_stride = side.offsets.stride;
    params.wide_extents = side.offsets.wide;
  } else if (side.lengths) {
    params.has_lengths = true;
    params.extents_stride = side.lengths_stride.outer;
    params.extents_inner_stride = side.lengths_stride.inner;
    params.wide_extents = side.lengths.wide;
  }
  return params;
}

Meeting meeting_of(Pairing pairing) {
  switch (pairing) {
    case Pairing::cross:
      return Meeting::cross;
    case Pairing::slab:
      return Meeting::slab;
    default:
      return Meeting::list;
  }
}

ProblemParams problem_params(const Problem& problem) {
  ProblemParams params{};
  params.queries = side_params(problem.queries);
  params.documents = side_params(problem.documents);
  params.dim = problem.queries.dim;
  params.pairs = problem.pairs;
  params.query_ids_stride = problem.query_ids.stride;
  params.document_ids_stride = problem.document_ids.stride;
  params.argmax_width = problem.argmax_width == kNoArgmax ? 0 : problem.argmax_width;
  params.meeting = meeting_of(problem.pairing);
  params.wide_query_ids = problem.query_ids.wide;
  params.wide_document_ids = problem.document_ids.wide;
  params.normalize = problem.normalize ? kNormalizeQueries | kNormalizeDocuments : 0;
  params.empty_score = problem.empty_score;
  return params;
}

// The tensors that say what the problem is. Metal wants every argument of a kernel bound: what a call lacks, or has
// without elements, gets the buffer of `spare`, and the constants keep the kernel from reading it.
std::vector<Binding> problem_bindings(const Problem& problem, Role spare) {
  const auto present = [&](bool has, Role role) { return has ? role : spare; };
  const Segments &q = problem.queries, &d = problem.documents;
  const bool list = problem.pairing == Pairing::list;
  return {
      {kQueries, present(q.data, Role::queries)},
      {kDocuments, present(d.data, Role::documents)},
      {kQueryExtents, present(q.packed() || q.lengths, Role::query_extents)},
      {kDocumentExtents, present(d.packed() || d.lengths, Role::document_extents)},
      {kQueryIds, present(list, Role::query_ids)},
      {kDocumentIds, present(list, Role::document_ids)},
  };
}

uint32_t clamp_grid(int64_t wanted, int64_t most) {
  return static_cast<uint32_t>(std::max<int64_t>(1, std::min(wanted, most)));
}

int64_t power_of_two_at_least(int64_t n, int64_t most) {
  int64_t power = 1;
  while (power < n && power < most) power *= 2;
  return power;
}

// Packed queries do not tell the host how long they are; their mean does, as any choice gives the same bits.
int64_t typical_length(const Segments& side) {
  return side.packed() ? ceil_div(side.extent, std::max<int64_t>(side.count, 1)) : side.extent;
}

}  // namespace

Plan plan_forward(const Problem& problem, const TokenOffsets& offsets, const Compression& compression) {
  Plan plan;
  if (problem.pairs == 0) return plan;
  const bool argmax = problem.argmax_width != kNoArgmax, cross = problem.pairing == Pairing::cross;
  const bool dense = compression.format == Format::dense;
  const DType tile = dense ? tile_dtype(problem) : problem.queries.dtype;
  ForwardParams params{};
  params.problem = problem_params(problem);
  params.format = compression.params;
  if (!dense)
    params.problem.normalize = (compression.normalize_queries ? kNormalizeQueries : 0) |
                               (compression.normalize_documents ? kNormalizeDocuments : 0);
  params.problem.queries.vectorised = vectorised(problem.queries, tile, offsets.queries);
  params.problem.documents.vectorised = dense && vectorised(problem.documents, tile, offsets.documents);
  // A document is read once for all the query rows at hand: first more of one query, then more queries.
  params.chunks =
      static_cast<int32_t>(power_of_two_at_least(ceil_div(typical_length(problem.queries), kChunk), kMaxRowGroups));
  params.slots =
      cross ? static_cast<int32_t>(power_of_two_at_least(problem.queries.count, kMaxRowGroups / params.chunks)) : 1;
  params.row_groups = params.chunks * params.slots;
  params.items = cross ? problem.documents.count : problem.pairs;
  params.query_groups = cross ? ceil_div(problem.queries.count, params.slots) : 1;

  Dispatch dispatch;
  dispatch.kernel = std::string(name_of(compression.format)) + name_of(tile) + (argmax ? "_argmax" : "");
  const Role spare = Role::scores;
  dispatch.bindings = problem_bindings(problem, spare);
  dispatch.bindings.push_back({kQueryMask, problem.queries.mask ? Role::query_mask : spare});
  dispatch.bindings.push_back({kDocumentMask, problem.documents.mask ? Role::document_mask : spare});
  dispatch.bindings.push_back({kScores, Role::scores});
  if (compression.format == Format::residual) dispatch.bindings.push_back({kCodes, Role::codes});
  if (!dense) {
    const bool second = compression.format == Format::residual || compression.params.has_minima;
    dispatch.bindings.push_back({kTable, Role::table});
    dispatch.bindings.push_back({kSecond, second ? Role::second : spare});
  }
  dispatch.bindings.push_back({kArgmax, argmax && problem.argmax_width > 0 ? Role::argmax : spare});
  // Neighbouring threadgroups share the document rather than the queries: it is the larger of the two.
  dispatch.grid[0] = clamp_grid(params.query_groups, kMaxGridX);
  dispatch.grid[1] = clamp_grid(params.items, kMaxGridY);
  dispatch.threadgroup_bytes = kForwardMemoryBytes;
  dispatch.params = params;
  plan.dispatches.push_back(std::move(dispatch));
  return plan;
}

Plan plan_backward(const Problem& problem, bool need_queries, bool need_documents) {
  Plan plan;
  if (problem.pairs == 0 || problem.argmax_width == 0 || !(need_queries || need_documents)) return plan;
  const Role spare = Role::grad_scores;
  const bool list = problem.pairing == Pairing::list;
  const int64_t query_rows = token_rows(problem.queries), document_rows = token_rows(problem.documents);
  Binding query_norms{kQueryNorms, spare}, document_norms{kDocumentNorms, spare};
  const auto norms = [&](const Segments& side, Role role, int64_t rows, Binding& result) {
    if (!problem.normalize || rows == 0) return;
    result.role = Role::workspace;
    result.offset = plan.workspace_bytes;
    plan.workspace_bytes += rows * static_cast<int64_t>(sizeof(float));
    Dispatch dispatch;
    dispatch.kernel = "maxsim_norms";
    dispatch.params = NormParams{side_params(side), side.dim, rows};
    dispatch.bindings = {{kQueries, role}, {kQueryNorms, Role::workspace, result.offset}};
    dispatch.grid[0] = clamp_grid(ceil_div(rows, kSimdgroups), kMaxGridX);
    plan.dispatches.push_back(std::move(dispatch));
  };
  norms(problem.queries, Role::queries, query_rows, query_norms);
  norms(problem.documents, Role::documents, document_rows, document_norms);
  BackwardParams params{};
  params.problem = problem_params(problem);
  const auto gradient = [&](const char* kernel, Role sorted, Role order, Role out) -> Dispatch& {
    Dispatch dispatch;
    dispatch.kernel = kernel;
    dispatch.bindings = problem_bindings(problem, spare);
    dispatch.bindings.push_back({kScores, Role::grad_scores});
    dispatch.bindings.push_back({kArgmax, Role::argmax});
    dispatch.bindings.push_back({kSortedIds, list ? sorted : spare});
    dispatch.bindings.push_back({kPairOrder, list ? order : spare});
    dispatch.bindings.push_back(query_norms);
    dispatch.bindings.push_back(document_norms);
    dispatch.bindings.push_back({kGradient, out});
    dispatch.params = params;
    plan.dispatches.push_back(std::move(dispatch));
    return plan.dispatches.back();
  };
  if (need_queries && query_rows > 0) {
    params.items = problem.queries.count * problem.argmax_width;
    Dispatch& dispatch =
        gradient("maxsim_backward_queries", Role::sorted_query_ids, Role::query_order, Role::grad_queries);
    dispatch.grid[0] = clamp_grid(ceil_div(params.items, kSimdgroups), kMaxGridX);
  }
  if (need_documents && document_rows > 0) {
    params.items = problem.documents.count;
    Dispatch& dispatch =
        gradient("maxsim_backward_documents", Role::sorted_document_ids, Role::document_order, Role::grad_documents);
    dispatch.grid[0] = clamp_grid(ceil_div(typical_length(problem.documents), kGradientTokens), kMaxGridX);
    dispatch.grid[1] = clamp_grid(params.items, kMaxGridY);
    dispatch.threadgroup_bytes = kBackwardMemoryBytes;
  }
  return plan;
}

}  // namespace metal_backend
}  // namespace maxsim
