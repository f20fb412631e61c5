// Turns a problem into launches. Everything a kernel is told about a call is decided here.
#include "plan.h"

#include <algorithm>

namespace maxsim {
namespace metal_backend {
namespace {

// Grids stay far below any limit of the hardware; kernels walk on in steps of the grid.
constexpr int64_t kMaxGridX = 1024;
constexpr int64_t kMaxGridY = 65535;
constexpr int64_t kFewFeatures = 32, kFewTokens = 8;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t token_rows(const Segments& side) { return side.packed() ? side.extent : side.count * side.extent; }

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

// Tiles hold both sides in one type: the inputs' own where they agree, else fp32, which holds either exactly. All that
// is stored in eight bits or one is exact in every type: then it is that of the queries, or half.
DType tile_dtype(const Problem& problem) {
  const DType queries = problem.queries.dtype, documents = problem.documents.dtype;
  if (is_stored(queries)) return DType::f16;
  return queries == documents || is_stored(documents) ? queries : DType::f32;
}

bool vectorised(const Segments& side, DType tile, int64_t byte_offset) {
  const int64_t vector = 4 * element_size(side.dtype);
  const auto aligned = [](int64_t stride) { return stride % 4 == 0; };
  return (side.dtype == tile || (is_stored(side.dtype) && side.dtype != DType::bit)) && side.feature_stride == 1 &&
         byte_offset % vector == 0 && aligned(side.token_stride) &&
         (side.packed() || (aligned(side.segment_stride.outer) && aligned(side.segment_stride.inner)));
}

FactorParams factor_params(const TokenFactor& factor) {
  return {factor.block,
          factor.block_stride,
          factor.segment_stride.outer,
          factor.segment_stride.inner,
          static_cast<bool>(factor),
          0};
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
  params.element = static_cast<Element>(side.dtype);
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

void bind_masks(Dispatch& dispatch, const Problem& problem, Role spare) {
  dispatch.bindings.push_back({kQueryMask, problem.queries.mask ? Role::query_mask : spare});
  dispatch.bindings.push_back({kDocumentMask, problem.documents.mask ? Role::document_mask : spare});
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

// How many rows of queries meet a document at once. One chunk of one query is the same work in every call, which sums
// that depend on their order need.
enum class Stacking { as_many_as_fit, one_chunk };

ForwardParams forward_params(const Problem& problem, const TokenOffsets& offsets, DType tile, Stacking stacking) {
  const bool cross = problem.pairing == Pairing::cross;
  ForwardParams params{};
  params.problem = problem_params(problem);
  params.query_scale = factor_params(problem.queries.scale);
  params.document_scale = factor_params(problem.documents.scale);
  params.document_minimum = factor_params(problem.documents.minimum);
  params.problem.queries.vectorised = vectorised(problem.queries, tile, offsets.queries);
  params.problem.documents.vectorised = vectorised(problem.documents, tile, offsets.documents);
  params.chunks = params.slots = 1;
  if (stacking == Stacking::as_many_as_fit) {
    // A document is read once for all the query rows at hand: first more of one query, then more queries.
    const int64_t chunks = ceil_div(typical_length(problem.queries), kChunk);
    params.chunks = static_cast<int32_t>(power_of_two_at_least(chunks, kMaxRowGroups));
    if (cross)
      params.slots = static_cast<int32_t>(power_of_two_at_least(problem.queries.count, kMaxRowGroups / params.chunks));
  }
  params.row_groups = params.chunks * params.slots;
  params.items = cross ? problem.documents.count : problem.pairs;
  params.query_groups = cross ? ceil_div(problem.queries.count, params.slots) : 1;
  return params;
}

// What all forward kernels are given; `tile` and `suffix` are the rest of the name.
Dispatch& add_forward(Plan& plan, const Problem& problem, const ForwardParams& params, const char* kernel, DType tile,
                      const char* suffix) {
  plan.dispatches.emplace_back();
  Dispatch& dispatch = plan.dispatches.back();
  dispatch.kernel = std::string(kernel) + name_of(tile) + suffix;
  dispatch.bindings = problem_bindings(problem, Role::scores);
  bind_masks(dispatch, problem, Role::scores);
  dispatch.bindings.push_back({kScores, Role::scores});
  // Neighbouring threadgroups share the document rather than the queries: it is the larger of the two.
  dispatch.grid[0] = clamp_grid(params.query_groups, kMaxGridX);
  dispatch.grid[1] = clamp_grid(params.items, kMaxGridY);
  dispatch.threadgroup_bytes = kForwardMemoryBytes;
  dispatch.params = params;
  return dispatch;
}

// Of a forward that may save something for each query token: with it, and somewhere to put it.
bool saves(const Problem& problem) { return problem.argmax_width != kNoArgmax; }
Role saved(const Problem& problem, Role role) {
  return saves(problem) && problem.argmax_width > 0 ? role : Role::scores;
}

}  // namespace

Plan plan_forward(const Problem& problem, const TokenOffsets& offsets) {
  Plan plan;
  if (problem.pairs == 0) return plan;
  const bool stored = is_stored(problem.documents.dtype) || is_stored(problem.queries.dtype);
  const DType tile = tile_dtype(problem);
  Dispatch& dispatch =
      add_forward(plan, problem, forward_params(problem, offsets, tile, Stacking::as_many_as_fit),
                  stored ? "maxsim_stored_" : "maxsim_forward_", tile, saves(problem) ? "_argmax" : "");
  dispatch.bindings.push_back({kArgmax, saved(problem, Role::argmax)});
  if (!stored) return plan;
  const auto factor = [](const TokenFactor& of, Role role) { return of ? role : Role::scores; };
  dispatch.bindings.push_back({kQueryScales, factor(problem.queries.scale, Role::query_scales)});
  dispatch.bindings.push_back({kDocumentScales, factor(problem.documents.scale, Role::document_scales)});
  dispatch.bindings.push_back({kDocumentMinima, factor(problem.documents.minimum, Role::document_minima)});
  return plan;
}

Plan plan_residual(const Problem& problem, const TokenOffsets& offsets, const Residuals& residuals) {
  Plan plan;
  if (problem.pairs == 0) return plan;
  // The rounding of a decompressed feature averages out over many, and over the query tokens that meet it; over few it
  // would be seen. Queries are padded.
  const bool few = problem.queries.dim < kFewFeatures || problem.queries.extent < kFewTokens;
  const DType tile = few ? DType::f32 : problem.queries.dtype;
  ForwardParams params = forward_params(problem, offsets, tile, Stacking::as_many_as_fit);
  params.problem.normalize =
      (problem.normalize ? kNormalizeQueries : 0) | (residuals.normalize ? kNormalizeDocuments : 0);
  params.residual = {residuals.row_bytes,
                     residuals.centroid_count,
                     residuals.nbits,
                     residuals.codes.bytes,
                     residuals.codes.is_signed,
                     static_cast<Element>(residuals.centroid_type),
                     static_cast<Element>(residuals.weight_type),
                     0};
  Dispatch& dispatch = add_forward(plan, problem, params, "maxsim_residual_", tile, saves(problem) ? "_argmax" : "");
  const auto present = [](bool has, Role role) { return has ? role : Role::scores; };
  const bool tokens = token_rows(problem.documents) > 0;
  dispatch.bindings.push_back({kArgmax, saved(problem, Role::argmax)});
  dispatch.bindings.push_back({kCodes, present(tokens, Role::codes)});
  dispatch.bindings.push_back({kCentroids, present(residuals.centroid_count > 0, Role::centroids)});
  dispatch.bindings.push_back({kBucketWeights, Role::bucket_weights});
  return plan;
}

Plan plan_approx(const Problem& problem, const Approximation& approximation) {
  Plan plan;
  if (problem.pairs == 0) return plan;
  const Segments& documents = problem.documents;
  plan.dispatches.emplace_back();
  Dispatch& dispatch = plan.dispatches.back();
  dispatch.kernel = "maxsim_approx";
  dispatch.params = ApproxParams{side_params(documents),
                                 problem.pairs,
                                 problem.queries.dim,
                                 approximation.centroid_count,
                                 approximation.codes.bytes,
                                 approximation.codes.is_signed,
                                 approximation.probed != nullptr,
                                 0};
  const Role spare = Role::scores;
  const bool extents = documents.packed() || documents.lengths;
  dispatch.bindings = {{kDocumentExtents, extents ? Role::document_extents : spare},
                       {kScores, Role::scores},
                       {kCodes, token_rows(documents) > 0 ? Role::codes : spare},
                       {kCentroidScores, Role::centroid_scores},
                       {kProbed, approximation.probed ? Role::probed : spare}};
  dispatch.grid[0] = clamp_grid(ceil_div(problem.pairs, kSimdgroups), kMaxGridY);
  return plan;
}

Plan plan_soft_forward(const Problem& problem, const TokenOffsets& offsets, double tau) {
  Plan plan;
  if (problem.pairs == 0) return plan;
  const DType tile = tile_dtype(problem);
  ForwardParams params = forward_params(problem, offsets, tile, Stacking::one_chunk);
  params.tau = static_cast<float>(tau);
  Dispatch& dispatch = add_forward(plan, problem, params, "maxsim_soft_", tile, saves(problem) ? "_parts" : "");
  dispatch.bindings.push_back({kParts, saved(problem, Role::parts)});
  return plan;
}

namespace {

// What both backwards are made of: perhaps norms of either side, then a gradient for each.
class BackwardPlan {
 public:
  explicit BackwardPlan(const Problem& problem) : problem_(problem) {
    params_.problem = problem_params(problem);
    add_norms(problem.queries, Role::queries, query_norms_);
    add_norms(problem.documents, Role::documents, document_norms_);
  }

  // One dispatch for the gradient of a side that has rows, over `items` along one axis of the grid.
  Dispatch& add(const char* kernel, bool of_queries, int64_t items) {
    const bool list = problem_.pairing == Pairing::list;
    const Role sorted = of_queries ? Role::sorted_query_ids : Role::sorted_document_ids;
    const Role order = of_queries ? Role::query_order : Role::document_order;
    plan.dispatches.emplace_back();
    Dispatch& dispatch = plan.dispatches.back();
    dispatch.kernel = kernel;
    dispatch.bindings = problem_bindings(problem_, kSpare);
    dispatch.bindings.push_back({kScores, Role::grad_scores});
    dispatch.bindings.push_back({kSortedIds, list ? sorted : kSpare});
    dispatch.bindings.push_back({kPairOrder, list ? order : kSpare});
    dispatch.bindings.push_back(query_norms_);
    dispatch.bindings.push_back(document_norms_);
    dispatch.bindings.push_back({kGradient, of_queries ? Role::grad_queries : Role::grad_documents});
    params_.items = items;
    dispatch.params = params_;
    return dispatch;
  }

  void set_tau(double tau) { params_.tau = static_cast<float>(tau); }

  static constexpr Role kSpare = Role::grad_scores;
  Plan plan;

 private:
  void add_norms(const Segments& side, Role role, Binding& result) {
    const int64_t rows = token_rows(side);
    if (!problem_.normalize || rows == 0) return;
    result.role = Role::workspace;
    result.offset = plan.workspace_bytes;
    plan.workspace_bytes += rows * static_cast<int64_t>(sizeof(float));
    Dispatch dispatch;
    dispatch.kernel = "maxsim_norms";
    dispatch.params = NormParams{side_params(side), side.dim, rows};
    dispatch.bindings = {{kQueries, role}, {kQueryNorms, Role::workspace, result.offset}};
    dispatch.grid[0] = clamp_grid(ceil_div(rows, kSimdgroups), kMaxGridX);
    plan.dispatches.push_back(std::move(dispatch));
  }

  const Problem& problem_;
  BackwardParams params_{};
  Binding query_norms_{kQueryNorms, kSpare}, document_norms_{kDocumentNorms, kSpare};
};

bool nothing_to_sum(const Problem& problem) { return problem.pairs == 0 || problem.argmax_width == 0; }

}  // namespace

Plan plan_backward(const Problem& problem, bool need_queries, bool need_documents) {
  if (nothing_to_sum(problem) || !(need_queries || need_documents)) return {};
  BackwardPlan build(problem);
  if (need_queries && token_rows(problem.queries) > 0) {
    const int64_t items = problem.queries.count * problem.argmax_width;
    Dispatch& dispatch = build.add("maxsim_backward_queries", true, items);
    dispatch.bindings.push_back({kArgmax, Role::argmax});
    dispatch.grid[0] = clamp_grid(ceil_div(items, kSimdgroups), kMaxGridX);
  }
  if (need_documents && token_rows(problem.documents) > 0) {
    Dispatch& dispatch = build.add("maxsim_backward_documents", false, problem.documents.count);
    dispatch.bindings.push_back({kArgmax, Role::argmax});
    dispatch.grid[0] = clamp_grid(ceil_div(typical_length(problem.documents), kGradientTokens), kMaxGridX);
    dispatch.grid[1] = clamp_grid(problem.documents.count, kMaxGridY);
    dispatch.threadgroup_bytes = kBackwardMemoryBytes;
  }
  return std::move(build.plan);
}

Plan plan_soft_backward(const Problem& problem, double tau, bool need_queries, bool need_documents) {
  if (nothing_to_sum(problem) || !(need_queries || need_documents)) return {};
  BackwardPlan build(problem);
  build.set_tau(tau);
  const auto add = [&](const char* kernel, bool of_queries, const Segments& side) {
    if (token_rows(side) == 0) return;
    Dispatch& dispatch = build.add(kernel, of_queries, side.count);
    bind_masks(dispatch, problem, BackwardPlan::kSpare);
    dispatch.bindings.push_back({kParts, Role::parts});
    dispatch.grid[0] = clamp_grid(ceil_div(typical_length(side), kSoftRows), kMaxGridX);
    dispatch.grid[1] = clamp_grid(side.count, kMaxGridY);
    dispatch.threadgroup_bytes = kSoftMemoryBytes;
  };
  if (need_queries) add("maxsim_soft_backward_queries", true, problem.queries);
  if (need_documents) add("maxsim_soft_backward_documents", false, problem.documents);
  return std::move(build.plan);
}

}  // namespace metal_backend
}  // namespace maxsim
