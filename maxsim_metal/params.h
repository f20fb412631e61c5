// What a launch tells a kernel: plain data that the host's plan fills in and Metal reads as it is.
#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#define MAXSIM_CONSTANT constant constexpr
#else
#include <cstdint>
#define MAXSIM_CONSTANT inline constexpr
#endif

namespace maxsim {
namespace metal_backend {

// The shape of the forward: a threadgroup multiplies 32 query tokens times 32 document tokens in each simdgroup.
MAXSIM_CONSTANT int kSimdgroups = 4;
MAXSIM_CONSTANT int kThreads = 32 * kSimdgroups;
MAXSIM_CONSTANT int kChunk = 32;             // query tokens of a row group, document tokens of a simdgroup
MAXSIM_CONSTANT int kMaxRowGroups = 4;       // row groups times document slices is always kSimdgroups
MAXSIM_CONSTANT int kTileRows = 5 * kChunk;  // the most query and document rows a step holds: 1 + 4 or 4 + 1 groups
MAXSIM_CONSTANT int kTileRowBytes = 64;      // features of a row in one step: 32 of 16 bits, 16 of 32 bits
MAXSIM_CONSTANT int kTilePitchBytes = 80;    // 16 bytes apart from a power of two, so that rows do not share banks
MAXSIM_CONSTANT int kForwardMemoryBytes = 16128;  // of threadgroup memory: two threadgroups fit where there are 32 KB

// The shape of the backward for documents.
MAXSIM_CONSTANT int kGradientTokens = 32;     // document tokens whose gradients one threadgroup sums
MAXSIM_CONSTANT int kGradientFeatures = 128;  // features of a step, one a thread
MAXSIM_CONSTANT int kBackwardMemoryBytes = 19200;

// The shape of the soft maximum's backward: a threadgroup sums the gradients of 32 rows of one side, a step of 32
// features, or of 32 tokens of the other side, at a time.
MAXSIM_CONSTANT int kSoftRows = 32;
MAXSIM_CONSTANT int kSoftPitch = 36;      // floats of a row in the tile: 16 bytes apart from a power of two
MAXSIM_CONSTANT int kSoftFeatures = 128;  // features whose sums are in registers at a time
MAXSIM_CONSTANT int kSoftMemoryBytes = 15616;

// DType's numbers, see problem.h.
enum class Element : int32_t { f32 = 0, f16 = 1, bf16 = 2, e4m3 = 3, e5m2 = 4, s8 = 5, u8 = 6, bit = 7 };
enum class Meeting : int32_t { cross = 0, slab = 1, list = 2 };

// One side of a problem. Strides count elements; `begin`, lengths and masks are found as problem.h describes.
struct SideParams {
  int64_t count;
  int64_t extent;
  int64_t inner;
  int64_t token_stride;
  int64_t feature_stride;
  int64_t outer_stride;
  int64_t inner_stride;
  int64_t extents_stride;  // of offsets or lengths, along the outer segments
  int64_t extents_inner_stride;
  int64_t mask_token_stride;
  int64_t mask_outer_stride;
  int64_t mask_inner_stride;
  Element element;
  int32_t packed;
  int32_t has_lengths;
  int32_t wide_extents;  // int64 rather than int32
  int32_t has_mask;
  int32_t vectorised;  // four features at a time can be read as one aligned vector
};

struct ProblemParams {
  SideParams queries;
  SideParams documents;
  int64_t dim;
  int64_t pairs;
  int64_t query_ids_stride;
  int64_t document_ids_stride;
  int64_t argmax_width;  // 0 without an argmax
  Meeting meeting;
  int32_t wide_query_ids;
  int32_t wide_document_ids;
  int32_t normalize;
  float empty_score;
  int32_t padding;
};

// How document tokens become features.
enum class Format : int32_t {
  dense = 0,
  stored = 1,    // a byte or a bit for each feature, times the token's scale, plus its minimum; queries perhaps too
  residual = 2,  // a centroid's number, and a bucket of `bits` bits for each feature, lowest bits first; contiguous
};

// One float for each `block` neighbouring tokens, as problem.h's TokenFactor.
struct FactorParams {
  int64_t block;
  int64_t block_stride;
  int64_t outer_stride;
  int64_t inner_stride;
  int32_t exists;
  int32_t padding;
};

struct ResidualParams {
  int64_t row_bytes;
  int64_t centroids;
  int32_t bits;
  int32_t code_bytes;
  int32_t codes_are_signed;
  Element centroid;
  Element weight;
  int32_t padding;
};

// Bits of ProblemParams::normalize.
MAXSIM_CONSTANT int kNormalizeQueries = 1;
MAXSIM_CONSTANT int kNormalizeDocuments = 2;

struct ForwardParams {
  ProblemParams problem;
  ResidualParams residual;
  FactorParams query_scale;
  FactorParams document_scale;
  FactorParams document_minimum;
  int64_t items;         // documents of a cross product, else pairs
  int64_t query_groups;  // of `slots` queries each; 1 unless a cross product
  int32_t row_groups;    // slots * chunks
  int32_t slots;         // queries that meet a document together
  int32_t chunks;        // chunks of one query that meet a document together
  float tau;             // the soft maximum's temperature
};

struct NormParams {
  SideParams side;
  int64_t dim;
  int64_t rows;
};

struct BackwardParams {
  ProblemParams problem;
  int64_t items;  // slots of the argmax of all queries, or documents; under a soft maximum the own side's segments
  float tau;
  int32_t padding;
};

// Scores by centroids: every query's similarities with all of them, and the documents' centroid numbers.
struct ApproxParams {
  SideParams documents;
  int64_t pairs;
  int64_t width;  // query tokens
  int64_t centroids;
  int32_t code_bytes;
  int32_t codes_are_signed;
  int32_t has_probed;
  int32_t padding;
};

static_assert(sizeof(SideParams) == 120, "the layout is the same for the host and for Metal");
static_assert(sizeof(ProblemParams) == 304, "the layout is the same for the host and for Metal");
static_assert(sizeof(ForwardParams) == 496, "the layout is the same for the host and for Metal");

// Where each argument of a kernel is bound. A buffer that a call does not have is bound to another one and never read.
enum Buffer : int32_t {
  kParams = 0,
  kQueries = 1,
  kDocuments = 2,
  kQueryExtents = 3,  // offsets of packed queries or lengths of padded ones
  kDocumentExtents = 4,
  kQueryMask = 5,
  kDocumentMask = 6,
  kQueryIds = 7,
  kDocumentIds = 8,
  kScores = 9,  // forward: written; backward: the scores' gradient
  kArgmax = 10,
  kSortedIds = 11,
  kPairOrder = 12,
  kQueryNorms = 13,
  kDocumentNorms = 14,
  kGradient = 15,
  kCodes = 16,
  kCentroids = 17,
  kBucketWeights = 18,
  kQueryScales = 19,
  kDocumentScales = 20,
  kDocumentMinima = 21,
  kParts = 22,  // what each query token adds to a score, under a soft maximum
  kCentroidScores = 23,
  kProbed = 24,
};

}  // namespace metal_backend
}  // namespace maxsim
