// The forward: tiles of query rows and document tokens through simdgroup matrices, the max taken from the
// accumulators. No similarity leaves the threadgroup, and a document is read once for all query rows of a pass.
#pragma once

#include <metal_simdgroup_matrix>
#include <metal_stdlib>

#include "device.h"
#include "params.h"

namespace maxsim {
namespace metal_backend {

using namespace metal;

// The tensors of a call, as the kernel's arguments bring them.
struct Tensors {
  device const uchar* queries;
  device const uchar* documents;
  device const uchar* query_extents;
  device const uchar* document_extents;
  device const uchar* query_mask;
  device const uchar* document_mask;
  device const uchar* query_ids;
  device const uchar* document_ids;
  device const uchar* codes;   // of residual documents
  device const uchar* table;   // centroids of residual documents, scales of bytes
  device const uchar* second;  // bucket weights of residual documents, minima of bytes
};

// A query that meets the document at hand: where its rows are, and the score it writes. Pair -1 beyond the last query.
struct Slot {
  int64_t pair;
  int64_t begin;
  int64_t mask_begin;
  int32_t length;
  int32_t valid;
};

// Threadgroup memory by use. The first bytes hold the step's rows, then, once all of a document is met, the winners.
struct Workspace {
  threadgroup uchar* tile;
  threadgroup float* best_value;        // [rows][winner candidates], where the tile was
  threadgroup int32_t* best_index;      // behind best_value
  threadgroup float* document_scale;    // [document tokens of a step] 1 / norm
  threadgroup float* query_scale;       // [rows]
  threadgroup float* row_value;         // [rows] what a query token adds to its score
  threadgroup float* document_minimum;  // [document tokens of a step] of bytes
  threadgroup float* query_sum;         // [rows] of features, which every minimum is multiplied with
  threadgroup int32_t* kept;            // [document tokens of a step]
  threadgroup int32_t* found;           // [simdgroups] whether a document token was kept
  threadgroup Slot* slots;
};

constant constexpr int kBestBytes = kThreads * 8 * 4;  // a simdgroup's 32 rows and 8 columns, four bytes each
constant constexpr int kRowBytes = kThreads * 4;

inline Workspace workspace_in(threadgroup uchar* memory) {
  Workspace space;
  space.tile = memory;
  space.best_value = (threadgroup float*)memory;
  space.best_index = (threadgroup int32_t*)(memory + kBestBytes);
  threadgroup uchar* next = memory + kTileRows * kTilePitchBytes;
  space.document_scale = (threadgroup float*)next;
  space.query_scale = (threadgroup float*)(next + kRowBytes);
  space.row_value = (threadgroup float*)(next + 2 * kRowBytes);
  space.document_minimum = (threadgroup float*)(next + 3 * kRowBytes);
  space.query_sum = (threadgroup float*)(next + 4 * kRowBytes);
  space.kept = (threadgroup int32_t*)(next + 5 * kRowBytes);
  space.found = (threadgroup int32_t*)(next + 6 * kRowBytes);
  space.slots = (threadgroup Slot*)(next + 6 * kRowBytes + kSimdgroups * 4);
  return space;
}

static_assert(2 * kBestBytes <= kTileRows * kTilePitchBytes, "the winners fit where the tile was");
static_assert(kTileRows * kTilePitchBytes + 6 * kRowBytes + kSimdgroups * 4 + kMaxRowGroups * int(sizeof(Slot)) <=
                  kForwardMemoryBytes,
              "the host asks for enough threadgroup memory");

struct Thread {
  int index;  // in the threadgroup
  int lane;
  int simdgroup;
  int row_group;  // which 32 query rows this simdgroup multiplies
  int slice;      // with which 32 document tokens of a step
};

// Four features of a row from feature `k` on, in the tile's type; zeros behind the last feature.
template <typename T>
inline vec<T, 4> load_features(device const uchar* data, constant SideParams& side, int64_t row_begin, int64_t k,
                               int64_t dim) {
  if (side.vectorised && k + 4 <= dim) return *(device const vec<T, 4>*)(data + (row_begin + k) * int64_t(sizeof(T)));
  vec<T, 4> features = vec<T, 4>(T(0.0f));
  for (int i = 0; i < 4; ++i)
    if (k + i < dim) features[i] = T(load_element(data, side.element, row_begin + (k + i) * side.feature_stride));
  return features;
}

// Four features of a document token in the tile's type. Bytes stay whole numbers, which every type of tile holds.
template <typename T, Format kFormat>
inline vec<T, 4> load_document(constant ForwardParams& params, Tensors tensors, Span document, int token, int64_t k) {
  constant SideParams& side = params.problem.documents;
  if (kFormat == Format::dense)
    return load_features<T>(tensors.documents, side, document.begin + token * side.token_stride, k, params.problem.dim);
  constant FormatParams& format = params.format;
  const int64_t row = document.first_row + token;
  device const uchar* packed = tensors.documents + row * format.row_bytes;
  vec<T, 4> features = vec<T, 4>(T(0.0f));
  int64_t code = 0;
  if (kFormat == Format::residual) code = load_index(tensors.codes, format.wide_codes, row);
  for (int i = 0; i < 4; ++i) {
    if (k + i >= params.problem.dim) continue;
    if (kFormat == Format::bytes) {
      const uchar byte = packed[k + i];
      features[i] = T(format.is_signed ? float(int8_t(byte)) : float(byte));
    } else if (code < 0 || code >= format.centroids) {
      features[i] = T(NAN);  // a token that names no centroid spoils its document's score
    } else {
      const int64_t bit = (k + i) * format.bits;
      const int bucket = packed[bit / 8] >> (bit % 8) & ((1 << format.bits) - 1);
      features[i] = T(load_element(tensors.table, format.table, code * params.problem.dim + k + i) +
                      load_element(tensors.second, format.second, bucket));
    }
  }
  return features;
}

// Rows of all slots, then document tokens from `first_token` on: features [k0, k0 + kTileRowBytes / sizeof(T)).
// Rows that do not exist are zeros: a multiplication by them is finite and looked at by nobody.
template <typename T, Format kFormat>
inline void stage(constant ForwardParams& params, Tensors tensors, Workspace space, Thread self, Span document,
                  int first_chunk, int first_token, int64_t k0) {
  constexpr int kPieces = kTileRowBytes / int(4 * sizeof(T));
  const int query_rows = params.row_groups * kChunk;
  const int rows = query_rows + kThreads / params.row_groups;
  for (int i = self.index; i < rows * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const int64_t k = k0 + piece * 4;
    vec<T, 4> features = vec<T, 4>(T(0.0f));
    if (row < query_rows) {
      const int group = row / kChunk, slot = group / params.chunks;
      const int token = (first_chunk + group % params.chunks) * kChunk + row % kChunk;
      threadgroup const Slot& query = space.slots[slot];
      if (token < query.length)
        features = load_features<T>(tensors.queries, params.problem.queries,
                                    query.begin + token * params.problem.queries.token_stride, k, params.problem.dim);
    } else {
      const int token = first_token + row - query_rows;
      if (token < document.length) features = load_document<T, kFormat>(params, tensors, document, token, k);
    }
    *(threadgroup vec<T, 4>*)(space.tile + row * kTilePitchBytes + piece * int(4 * sizeof(T))) = features;
  }
}

// The sum of squares of one row of the tile, in the order of features wherever the row lies.
template <typename T>
inline float add_squares(threadgroup const uchar* tile, int row, float square) {
  threadgroup const T* features = (threadgroup const T*)(tile + row * kTilePitchBytes);
  for (int k = 0; k < kTileRowBytes / int(sizeof(T)); ++k) {
    const float value = float(features[k]);
    square = fma(value, value, square);
  }
  return square;
}

template <typename T>
inline float add_features(threadgroup const uchar* tile, int row, float sum) {
  threadgroup const T* features = (threadgroup const T*)(tile + row * kTilePitchBytes);
  for (int k = 0; k < kTileRowBytes / int(sizeof(T)); ++k) sum += float(features[k]);
  return sum;
}

// Multiplies this simdgroup's 32 query rows with its 32 document tokens, over the features in the tile.
template <typename T>
inline void multiply(threadgroup const uchar* tile, int row_groups, Thread self, int features,
                     thread simdgroup_matrix<float, 8, 8> (&sums)[4][4]) {
  constexpr int kPitch = kTilePitchBytes / int(sizeof(T));
  threadgroup const T* queries = (threadgroup const T*)tile + self.row_group * kChunk * kPitch;
  threadgroup const T* documents = (threadgroup const T*)tile + (row_groups + self.slice) * kChunk * kPitch;
  for (int k = 0; k < features; k += 8) {
    simdgroup_matrix<T, 8, 8> a[4], b[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      simdgroup_load(a[i], queries + i * 8 * kPitch + k, kPitch);
      simdgroup_load(b[i], documents + i * 8 * kPitch + k, kPitch, ulong2(0), true);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) simdgroup_multiply_accumulate(sums[i][j], a[i], b[j], sums[i][j]);
  }
}

// Which row and column of an 8 x 8 matrix each of this lane's two elements is. Apple does not document it, so it is
// read off a matrix that says it.
struct Places {
  int row[2];
  int column[2];
};

inline Places learn_places(threadgroup uchar* memory, Thread self) {
  threadgroup float* numbers = (threadgroup float*)memory;
  if (self.index < 64) numbers[self.index] = float(self.index);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_matrix<float, 8, 8> matrix;
  simdgroup_load(matrix, numbers, 8);
  Places places;
  for (int e = 0; e < 2; ++e) {
    const int number = int(matrix.thread_elements()[e]);
    places.row[e] = number / 8;
    places.column[e] = number % 8;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return places;
}

// Meets all tokens of the document with the rows of one pass; leaves the winners' candidates in threadgroup memory.
template <typename T, Format kFormat>
inline void meet(constant ForwardParams& params, Tensors tensors, Workspace space, Thread self, Places places,
                 Span document, int first_chunk) {
  constexpr int kFeatures = kTileRowBytes / int(sizeof(T));
  const int query_rows = params.row_groups * kChunk, step_tokens = kThreads / params.row_groups;
  const int32_t normalize = params.problem.normalize;
  const bool minima = kFormat == Format::bytes && params.format.has_minima;
  Best best[4][2];
  for (int i = 0; i < 4; ++i)
    for (int e = 0; e < 2; ++e) best[i][e] = {-INFINITY, -1};

  for (int first_token = 0; first_token < document.length; first_token += step_tokens) {
    const bool has_tokens = first_token + self.slice * kChunk < document.length;
    simdgroup_matrix<float, 8, 8> sums[4][4];
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) sums[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    float squares[2] = {0.0f, 0.0f};  // of rows self.index and self.index + kThreads
    float features_sum = 0.0f;        // of row self.index
    for (int64_t k0 = 0; k0 < params.problem.dim; k0 += kFeatures) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
      stage<T, kFormat>(params, tensors, space, self, document, first_chunk, first_token, k0);
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
        space.query_scale[row] = normalize & kNormalizeQueries ? inverse : 1.0f;
        if (minima) space.query_sum[row] = features_sum;
      } else {
        const int token = first_token + local;
        float scale = normalize & kNormalizeDocuments ? inverse : 1.0f;
        if (kFormat == Format::bytes && token < document.length) {
          scale = load_element(tensors.table, params.format.table, document.first_row + token);
          if (minima)
            space.document_minimum[local] =
                load_element(tensors.second, params.format.second, document.first_row + token);
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
          if (minima)
            value += space.document_minimum[local] * space.query_sum[self.row_group * kChunk + i * 8 + places.row[e]];
          const Best candidate = {value, first_token + local};
          if (beats(candidate, best[i][e])) best[i][e] = candidate;
        }
      }
  }

  // The tile's last readers are before the barrier above: a document that is met has tokens.
  const int candidates = step_tokens / 4;  // of one row: eight from every slice
  for (int i = 0; i < 4; ++i)
    for (int e = 0; e < 2; ++e) {
      const int row = self.row_group * kChunk + i * 8 + places.row[e];
      const int place = row * candidates + self.slice * 8 + places.column[e];
      space.best_value[place] = best[i][e].value;
      space.best_index[place] = best[i][e].index;
    }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Thread r settles query row r of the pass: its winner, and what it adds to the score.
inline void settle_row(constant ForwardParams& params, Tensors tensors, Workspace space, Thread self, int first_chunk,
                       device int32_t* argmax) {
  if (self.index >= params.row_groups * kChunk) return;
  const int group = self.index / kChunk, slot = group / params.chunks;
  const int token = (first_chunk + group % params.chunks) * kChunk + self.index % kChunk;
  threadgroup const Slot& query = space.slots[slot];
  const bool counts =
      token < query.length && token_kept(params.problem.queries, tensors.query_mask, query.mask_begin, token);
  const int candidates = kThreads / params.row_groups / 4;
  Best best = {0.0f, -1};
  if (counts)
    for (int c = 0; c < candidates; ++c) {
      const Best candidate = {space.best_value[self.index * candidates + c],
                              space.best_index[self.index * candidates + c]};
      if (beats(candidate, best)) best = candidate;
    }
  space.row_value[self.index] = counts ? best.value * space.query_scale[self.index] : 0.0f;
  if (argmax && query.valid && token < params.problem.argmax_width)
    argmax[query.pair * params.problem.argmax_width + token] = best.index;
}

// Whether the document has a token that counts; the same answer in every thread.
inline bool any_token_kept(constant ForwardParams& params, Tensors tensors, Workspace space, Thread self,
                           Span document) {
  if (!params.problem.documents.has_mask) return document.length > 0;
  bool found = false;
  for (int token = self.index; token < document.length; token += kThreads)
    found = found || token_kept(params.problem.documents, tensors.document_mask, document.mask_begin, token);
  found = simd_any(found);
  if (self.lane == 0) space.found[self.simdgroup] = found;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  found = false;
  for (int i = 0; i < kSimdgroups; ++i) found = found || space.found[i] != 0;
  return found;
}

// Scores one document, or the document of one pair, against the queries of one group.
template <typename T, Format kFormat>
inline void score_item(constant ForwardParams& params, Tensors tensors, Workspace space, Thread self, Places places,
                       int64_t item, int64_t query_group, device float* scores, device int32_t* argmax) {
  constant ProblemParams& problem = params.problem;
  const bool cross = problem.meeting == Meeting::cross;
  PairIds ids = {0, item};
  if (!cross) ids = pair_ids(problem, tensors.query_ids, tensors.document_ids, item);
  const Span document = span_of(problem.documents, tensors.document_extents, ids.document);

  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (self.index < params.slots) {
    const int64_t query = cross ? query_group * params.slots + self.index : ids.query;
    const Span span = span_of(problem.queries, tensors.query_extents, query);
    const bool fits = !argmax || span.length <= problem.argmax_width;
    threadgroup Slot& slot = space.slots[self.index];
    slot.pair = !cross ? item : query < problem.queries.count ? query * problem.documents.count + item : -1;
    slot.begin = span.begin;
    slot.mask_begin = span.mask_begin;
    slot.valid = span.valid && document.valid && fits;
    slot.length = slot.valid ? span.length : 0;
  }
  const bool filled = any_token_kept(params, tensors, space, self, document);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  int longest = 0;
  if (filled)
    for (int s = 0; s < params.slots; ++s) longest = max(longest, space.slots[s].length);
  Sum sum = {0.0f, 0.0f};  // thread s sums up slot s
  int first_chunk = 0;
  for (; first_chunk * kChunk < longest; first_chunk += params.chunks) {
    meet<T, kFormat>(params, tensors, space, self, places, document, first_chunk);
    settle_row(params, tensors, space, self, first_chunk, argmax);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (self.index < params.slots)
      for (int row = 0; row < params.chunks * kChunk; ++row)
        sum = add(sum, space.row_value[self.index * params.chunks * kChunk + row]);
  }

  if (self.index < params.slots && space.slots[self.index].pair >= 0) {
    const float score = filled ? rounded(sum) : problem.empty_score;
    scores[space.slots[self.index].pair] = space.slots[self.index].valid ? score : NAN;
  }
  if (argmax)  // what no row has written
    for (int s = 0; s < params.slots; ++s) {
      if (space.slots[s].pair < 0) continue;
      const int64_t from = space.slots[s].valid ? first_chunk * kChunk : 0;
      for (int64_t i = from + self.index; i < problem.argmax_width; i += kThreads)
        argmax[space.slots[s].pair * problem.argmax_width + i] = -1;
    }
}

// The whole of a kernel: a threadgroup's share of the grid.
template <typename T, Format kFormat>
inline void forward(constant ForwardParams& params, Tensors tensors, threadgroup uchar* memory, uint3 group,
                    uint3 groups, uint index, uint lane, uint simdgroup, device float* scores, device int32_t* argmax) {
  const Thread self = {int(index), int(lane), int(simdgroup), int(simdgroup) % params.row_groups,
                       int(simdgroup) / params.row_groups};
  const Places places = learn_places(memory, self);
  const Workspace space = workspace_in(memory);
  for (int64_t item = group.y; item < params.items; item += groups.y)
    for (int64_t query_group = group.x; query_group < params.query_groups; query_group += groups.x)
      score_item<T, kFormat>(params, tensors, space, self, places, item, query_group, scores, argmax);
}

}  // namespace metal_backend
}  // namespace maxsim
