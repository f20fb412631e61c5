// Documents one after another as one stream of tokens, of which every warp takes an equal part: no document is too long
// and none is left for the end.
#pragma once

#include "codes.cuh"
#include "residual_args.cuh"
#include "residual_config.cuh"

namespace maxsim {
namespace cuda {

// Codes of a known width as they lie in memory. What a code means is asked a step later.
template <int kBytes>
struct StreamCode {
  uint32_t low = 0, high = 0;

  __device__ __forceinline__ void load(const CodeView& codes, int64_t row) {
    if constexpr (kBytes == 2)  // into 32 bits at once: to widen it later would wait for it
      asm volatile("ld.global.nc.u16 %0, [%1];" : "=r"(low) : "l"(static_cast<const uint16_t*>(codes.data) + row));
    if constexpr (kBytes == 4) low = __ldg(static_cast<const uint32_t*>(codes.data) + row);
    if constexpr (kBytes == 8) {
      const uint2 both = __ldg(static_cast<const uint2*>(codes.data) + row);
      low = both.x, high = both.y;
    }
  }
  // Negative ones are large without their sign, and no fewer than `limit`.
  static __device__ __forceinline__ uint32_t limit(const Residuals& index) {
    const int64_t most = kBytes == 2 && index.codes.is_signed ? 1 << 15 : INT32_MAX;
    return static_cast<uint32_t>(min(index.centroid_count, most));
  }
  __device__ __forceinline__ bool known(uint32_t limit) const { return (kBytes < 8 || high == 0) && low < limit; }
};

__device__ __forceinline__ void prefetch_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// What 16 tokens are stored in, so that it comes from memory before it is asked for: as many lanes as there are lines
// of buckets have one each, and one lane codes and lengths.
template <int kBits, int kCode, bool kLengths>
struct StreamLines {
  static constexpr int kOfBuckets = 16 * 16 * kBits / 128;
  const char* first;
  int32_t row_bytes, last_row;

  __device__ __forceinline__ explicit StreamLines(const ResidualArgs& args) {
    const int lane = threadIdx.x % 32;
    const Residuals& index = args.index;
    row_bytes = lane < kOfBuckets ? 16 * kBits : lane == kOfBuckets ? kCode : sizeof(float);
    first = lane < kOfBuckets    ? reinterpret_cast<const char*>(index.bytes) + 128 * lane
            : lane == kOfBuckets ? static_cast<const char*>(index.codes.data)
                                 : reinterpret_cast<const char*>(index.inverse_norms);
    last_row = static_cast<int32_t>(args.problem.documents.extent - 1);
    asm volatile("" : "+l"(first), "+r"(row_bytes));  // else they are worked out again at every step
  }
  __device__ __forceinline__ void prefetch(int32_t row) const {
    if (threadIdx.x % 32 < kOfBuckets + 1 + kLengths)
      prefetch_l2(first + static_cast<int64_t>(min(row, last_row)) * row_bytes);
  }
};

// Neighbouring tokens of one document: rows up to `last`, which stands in for those behind it, since a token that is
// met twice changes no maximum. Behind the end of a warp's part, row 0.
struct StreamStep {
  int32_t row = 0, last = 0, document = 0;
  bool ends = false;   // the document in this warp's part
  bool split = false;  // other warps have more of it
  bool began = false;  // in front of this warp's part
};

// What a warp takes: rows `first` up to `beyond`, of documents from `document` on.
struct StreamPart {
  int32_t first, beyond, document, documents;
};

// Equal parts of all documents, where they follow one another.
struct StreamParts {
  int64_t base, end;  // rows of all documents
  int32_t rows;       // of a part

  // Parts are multiples of `grain` rows. Offsets that are not in order may say anything; only a row count comes of it.
  __device__ __forceinline__ StreamParts(const Segments& side, int warps, int grain)
      : base(side.offsets[0]), end(side.offsets[side.count]) {
    const int64_t tokens = base < 0 || base > end ? 0 : min(end, side.extent) - base;
    rows = part_rows(max(tokens, int64_t{0}), warps, grain);
  }
  __device__ __forceinline__ int32_t of(int64_t row) const {
    return static_cast<int32_t>(static_cast<uint32_t>(row - base) / static_cast<uint32_t>(rows));
  }
  __device__ __forceinline__ StreamPart part(int number, int32_t document, int64_t documents) const {
    const int64_t begin = base + int64_t{number} * rows;
    if (begin >= end) return {0, 0, 0, 0};
    return {static_cast<int32_t>(begin), static_cast<int32_t>(min(begin + rows, end)), document,
            static_cast<int32_t>(documents)};
  }
};

// Whole documents, where they do not.
__device__ __forceinline__ StreamPart unordered_part(int number, int warps, int64_t documents) {
  return {0, INT32_MAX, static_cast<int32_t>(quotient(number * documents, warps)),
          static_cast<int32_t>(quotient((number + 1) * documents, warps))};
}

// A warp's way through its part, 16 tokens at a step. Bounds of 32 documents wait in the lanes' registers.
struct TokenStream {
  const Segments& side;
  StreamPart part;
  int32_t window, place = 0;      // the lanes' first document, and which of them this one is
  int32_t first = 0, beyond = 0;  // rows of the lane's document that are in the part
  uint32_t pending = 0;           // lanes whose documents are not begun
  uint32_t split = 0, began = 0;  // lanes whose documents are not all in the part, and which of them begin before it
  int32_t row = 0, end = 0;       // of the present document

  __device__ __forceinline__ TokenStream(const Segments& side, const StreamPart& part)
      : side(side), part(part), window(part.document) {}

  __device__ __forceinline__ void look() {
    const int32_t document = window + static_cast<int32_t>(threadIdx.x % 32);
    Span span;
    if (document < part.documents) span = span_of(side, document);
    const int32_t from = static_cast<int32_t>(span.first_row), to = from + span.length;
    first = max(from, part.first), beyond = min(to, part.beyond);
    pending = __ballot_sync(~0u, first < beyond);
    began = __ballot_sync(~0u, from < part.first);
    split = began | __ballot_sync(~0u, to > part.beyond);
    // Where documents follow one another, none behind one that ends behind the part is in it.
    if (__any_sync(~0u, to >= part.beyond)) part.documents = min(part.documents, window + 32);
  }

  // All steps of the part. The stream is at its beginning then.
  __device__ __forceinline__ int steps() {
    int count = 0;
    for (;;) {
      look();
      count += __reduce_add_sync(~0u, max(0, beyond - first + 15) / 16);
      if (window + 32 >= part.documents) break;
      window += 32;
    }
    if (window != part.document) {
      window = part.document;
      look();
    }
    return count;
  }

  // To the next document; false where there is none.
  __device__ __forceinline__ bool advance() {
    while (!pending) {
      if (window + 32 >= part.documents) return false;
      window += 32;
      look();
    }
    place = __ffs(pending) - 1;
    pending &= pending - 1;
    row = __shfl_sync(~0u, first, place);
    end = __shfl_sync(~0u, beyond, place);
    return true;
  }
  __device__ __forceinline__ int32_t document() const { return window + place; }
  __device__ __forceinline__ bool is_split() const { return split >> place & 1; }
  __device__ __forceinline__ bool has_begun() const { return began >> place & 1; }

  __device__ __forceinline__ StreamStep next() {
    if (row >= end && !advance()) return {};
    StreamStep step;
    step.row = row;
    step.document = document();
    row += 16;
    step.last = min(row, end) - 1;
    step.ends = row >= end;
    step.split = is_split();
    step.began = has_begun();
    return step;
  }
};

}  // namespace cuda
}  // namespace maxsim
