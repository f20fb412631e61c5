// The forward: every document meets the query rows of a pass, and each row keeps what its similarities come to. No
// similarity leaves the threadgroup, and a document is read once for all query rows of a pass.
#pragma once

#include <metal_simdgroup_matrix>
#include <metal_stdlib>

#include "device.h"
#include "params.h"
#include "tile.h"

namespace maxsim {
namespace metal_backend {

using namespace metal;

// What a query token makes of a document: its greatest similarity, and the token that has it.
struct Hard {
  typedef Best State;
  typedef int32_t Second;  // of a state's two words
  typedef int32_t Saved;   // the argmax
  static constexpr constant bool kScalesQueriesFirst = false;

  static inline State none() { return {-INFINITY, -1}; }
  static inline State make(float first, Second second) { return {first, second}; }
  static inline float first(State state) { return state.value; }
  static inline Second second(State state) { return state.index; }
  static inline void take(thread State& state, float value, int32_t token, float) {
    const Best candidate = {value, token};
    if (beats(candidate, state)) state = candidate;
  }
  static inline void merge(thread State& state, State other, float) {
    if (beats(other, state)) state = other;
  }
  static inline float value(State state, float scale, float) { return state.value * scale; }
  static inline Saved saved(State state, float) { return state.index; }
  static inline Saved nothing() { return -1; }
};

// Its soft maximum, tau * log(sum(exp(s / tau))): the greatest similarity, and the sum of what all are of it.
struct Share {
  float greatest;
  float sum;
};

struct Soft {
  typedef Share State;
  typedef float Second;
  typedef float Saved;  // what the token adds to its score
  static constexpr constant bool kScalesQueriesFirst = true;

  static inline State none() { return {-INFINITY, 0.0f}; }
  static inline State make(float first, Second second) { return {first, second}; }
  static inline float first(State state) { return state.greatest; }
  static inline Second second(State state) { return state.sum; }
  static inline void take(thread State& state, float value, int32_t, float tau) {
    const State one = {value, 1.0f};
    merge(state, one, tau);
  }
  // Where the greatest is not finite, the sum is never looked at.
  static inline void merge(thread State& state, State other, float tau) {
    if (isnan(state.greatest) || isnan(other.greatest)) {
      state.greatest = NAN;
    } else if (other.greatest > state.greatest) {
      state.sum = fma(state.sum, precise::exp((state.greatest - other.greatest) / tau), other.sum);
      state.greatest = other.greatest;
    } else if (other.greatest > -INFINITY) {
      state.sum = fma(other.sum, precise::exp((other.greatest - state.greatest) / tau), state.sum);
    }
  }
  static inline float value(State state, float, float tau) {
    return isfinite(state.greatest) ? fma(tau, precise::log(state.sum), state.greatest) : state.greatest;
  }
  static inline Saved saved(State, float value) { return value; }
  static inline Saved nothing() { return 0.0f; }
};

constant constexpr int kFirstBytes = kThreads * 8 * 4;  // a simdgroup's 32 rows and 8 columns, four bytes each
static_assert(2 * kFirstBytes <= kTileRows * kTilePitchBytes, "what the rows have come to fits where the tile was");

// The factor of query row `row` of the pass, of stored queries.
inline float query_factor(constant ForwardParams& params, Extras extras, Workspace space, int first_chunk, int row) {
  const int group = row / kChunk;
  const int token = (first_chunk + group % params.chunks) * kChunk + row % kChunk;
  threadgroup const Slot& slot = space.slots[group / params.chunks];
  if (!params.query_scale.exists || token >= slot.span.length) return 1.0f;
  return load_factor(extras.query_scales, params.query_scale, params.problem.queries, slot.query, slot.span.first_row,
                     token);
}

// Meets all tokens of the document with the rows of one pass; leaves what they come to in threadgroup memory.
template <typename T, Format kFormat, typename Reduction>
inline void meet(constant ForwardParams& params, Tensors tensors, Extras extras, Workspace space, Thread self,
                 Places places, int64_t document_id, Span document, int first_chunk) {
  constexpr int kFeatures = kTileRowBytes / int(sizeof(T));
  const int query_rows = params.row_groups * kChunk, step_tokens = kThreads / params.row_groups;
  const int32_t normalize = params.problem.normalize;
  const bool minima = kFormat == Format::stored && params.document_minimum.exists;
  typename Reduction::State best[4][2];
  for (int i = 0; i < 4; ++i)
    for (int e = 0; e < 2; ++e) best[i][e] = Reduction::none();

  for (int first_token = 0; first_token < document.length; first_token += step_tokens) {
    const bool has_tokens = first_token + self.slice * kChunk < document.length;
    simdgroup_matrix<float, 8, 8> sums[4][4];
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) sums[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    float squares[2] = {0.0f, 0.0f};  // of rows self.index and self.index + kThreads
    float features_sum = 0.0f;        // of row self.index
    for (int64_t k0 = 0; k0 < params.problem.dim; k0 += kFeatures) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
      stage<T, kFormat>(params, tensors, extras, space, self, document, first_chunk, first_token, k0);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      const int features = int(min(int64_t(kFeatures), params.problem.dim - k0));
      if (has_tokens) multiply<T>(space.tile, params.row_groups, self, features, sums);
      if (normalize)
        for (int i = 0; i < 2; ++i)
          if (self.index + i * kThreads < query_rows + step_tokens)
            squares[i] = add_squares<T>(space.tile, self.index + i * kThreads, squares[i]);
      if (minima && self.index < query_rows) features_sum = add_features<T>(space.tile, self.index, features_sum);
    }
    for (int i = 0; i < 2; ++i) {
      const int row = self.index + i * kThreads, local = row - query_rows;
      if (local >= step_tokens) continue;
      const float inverse = normalize ? inverse_norm(squares[i]) : 1.0f;
      if (local < 0) {
        float scale = normalize & kNormalizeQueries ? inverse : 1.0f;
        if (kFormat == Format::stored) scale = query_factor(params, extras, space, first_chunk, row);
        space.query_scale[row] = scale;
        if (minima) space.query_sum[row] = features_sum;
      } else {
        const int token = first_token + local;
        float scale = normalize & kNormalizeDocuments ? inverse : 1.0f;
        if (kFormat == Format::stored && token < document.length) {
          constant SideParams& side = params.problem.documents;
          if (params.document_scale.exists)
            scale = load_factor(extras.document_scales, params.document_scale, side, document_id, document.first_row,
                                token);
          if (minima)
            space.document_minimum[local] = load_factor(extras.document_minima, params.document_minimum, side,
                                                        document_id, document.first_row, token);
        }
        space.document_scale[local] = scale;
        space.kept[local] = token < document.length &&
                            token_kept(params.problem.documents, tensors.document_mask, document.mask_begin, token);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (!has_tokens) continue;
    for (int j = 0; j < 4; ++j)
      for (int e = 0; e < 2; ++e) {
        const int local = self.slice * kChunk + j * 8 + places.column[e];
        if (!space.kept[local]) continue;
        for (int i = 0; i < 4; ++i) {
          float value = sums[i][j].thread_elements()[e] * space.document_scale[local];
          const int row = self.row_group * kChunk + i * 8 + places.row[e];
          if (minima) value += space.document_minimum[local] * space.query_sum[row];
          if (Reduction::kScalesQueriesFirst) value *= space.query_scale[row];
          Reduction::take(best[i][e], value, first_token + local, params.tau);
        }
      }
  }

  // The tile's last readers are before the barrier above: a document that is met has tokens.
  const int candidates = step_tokens / 4;  // of one row: eight from every slice
  for (int i = 0; i < 4; ++i)
    for (int e = 0; e < 2; ++e) {
      const int row = self.row_group * kChunk + i * 8 + places.row[e];
      const int place = row * candidates + self.slice * 8 + places.column[e];
      ((threadgroup float*)space.tile)[place] = Reduction::first(best[i][e]);
      ((threadgroup typename Reduction::Second*)(space.tile + kFirstBytes))[place] = Reduction::second(best[i][e]);
    }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Thread r settles query row r of the pass: what it adds to the score, and what is saved of it.
template <typename Reduction>
inline void settle_row(constant ForwardParams& params, Tensors tensors, Workspace space, Thread self, int first_chunk,
                       device typename Reduction::Saved* saved) {
  if (self.index >= params.row_groups * kChunk) return;
  const int group = self.index / kChunk, slot = group / params.chunks;
  const int token = (first_chunk + group % params.chunks) * kChunk + self.index % kChunk;
  threadgroup const Slot& query = space.slots[slot];
  const bool counts =
      token < query.span.length && token_kept(params.problem.queries, tensors.query_mask, query.span.mask_begin, token);
  const int candidates = kThreads / params.row_groups / 4;
  threadgroup const float* firsts = (threadgroup const float*)space.tile + self.index * candidates;
  threadgroup const typename Reduction::Second* seconds =
      (threadgroup const typename Reduction::Second*)(space.tile + kFirstBytes) + self.index * candidates;
  typename Reduction::State best = Reduction::none();
  if (counts)
    for (int c = 0; c < candidates; ++c) Reduction::merge(best, Reduction::make(firsts[c], seconds[c]), params.tau);
  const float value = counts ? Reduction::value(best, space.query_scale[self.index], params.tau) : 0.0f;
  space.row_value[self.index] = value;
  if (saved && query.span.valid && token < params.problem.argmax_width)
    saved[query.pair * params.problem.argmax_width + token] =
        counts ? Reduction::saved(best, value) : Reduction::nothing();
}

// Scores one document, or the document of one pair, against the queries of one group.
template <typename T, Format kFormat, typename Reduction>
inline void score_item(constant ForwardParams& params, Tensors tensors, Extras extras, Workspace space, Thread self,
                       Places places, int64_t item, int64_t query_group, device float* scores,
                       device typename Reduction::Saved* saved) {
  constant ProblemParams& problem = params.problem;
  const bool cross = problem.meeting == Meeting::cross;
  PairIds ids = {0, item};
  if (!cross) ids = pair_ids(problem, tensors.query_ids, tensors.document_ids, item);
  const Span document = span_of(problem.documents, tensors.document_extents, ids.document);

  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (self.index < params.slots) {
    const int64_t query = cross ? query_group * params.slots + self.index : ids.query;
    const Span span = span_of(problem.queries, tensors.query_extents, query);
    const bool fits = !saved || span.length <= problem.argmax_width;
    threadgroup Slot& slot = space.slots[self.index];
    slot.pair = !cross ? item : query < problem.queries.count ? query * problem.documents.count + item : -1;
    slot.query = query;
    slot.span.begin = span.begin;
    slot.span.mask_begin = span.mask_begin;
    slot.span.first_row = span.first_row;
    slot.span.valid = span.valid && document.valid && fits;
    slot.span.length = slot.span.valid ? span.length : 0;
  }
  const bool filled = any_token_kept(params, tensors, space, self, document);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  int longest = 0;
  if (filled)
    for (int s = 0; s < params.slots; ++s) longest = max(longest, space.slots[s].span.length);
  Sum sum = {0.0f, 0.0f};  // thread s sums up slot s
  int first_chunk = 0;
  for (; first_chunk * kChunk < longest; first_chunk += params.chunks) {
    meet<T, kFormat, Reduction>(params, tensors, extras, space, self, places, ids.document, document, first_chunk);
    settle_row<Reduction>(params, tensors, space, self, first_chunk, saved);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (self.index < params.slots)
      for (int row = 0; row < params.chunks * kChunk; ++row)
        sum = add(sum, space.row_value[self.index * params.chunks * kChunk + row]);
  }

  if (self.index < params.slots && space.slots[self.index].pair >= 0) {
    const float score = filled ? rounded(sum) : problem.empty_score;
    scores[space.slots[self.index].pair] = space.slots[self.index].span.valid ? score : NAN;
  }
  if (saved)  // where no row has written
    for (int s = 0; s < params.slots; ++s) {
      if (space.slots[s].pair < 0) continue;
      const int64_t from = space.slots[s].span.valid ? first_chunk * kChunk : 0;
      for (int64_t i = from + self.index; i < problem.argmax_width; i += kThreads)
        saved[space.slots[s].pair * problem.argmax_width + i] = Reduction::nothing();
    }
}

// The whole of a kernel: a threadgroup's share of the grid.
template <typename T, Format kFormat, typename Reduction>
inline void forward(constant ForwardParams& params, Tensors tensors, Extras extras, threadgroup uchar* memory,
                    uint3 group, uint3 groups, uint index, uint lane, uint simdgroup, device float* scores,
                    device typename Reduction::Saved* saved) {
  const Thread self = {int(index), int(lane), int(simdgroup), int(simdgroup) % params.row_groups,
                       int(simdgroup) / params.row_groups};
  const Places places = learn_places(memory, index);
  const Workspace space = workspace_in(memory);
  for (int64_t item = group.y; item < params.items; item += groups.y)
    for (int64_t query_group = group.x; query_group < params.query_groups; query_group += groups.x)
      score_item<T, kFormat, Reduction>(params, tensors, extras, space, self, places, item, query_group, scores, saved);
}

}  // namespace metal_backend
}  // namespace maxsim
